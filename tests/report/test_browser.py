"""The page in a real headless Chromium: it draws, sorts, filters, keeps channels, and asks the network for nothing."""

import csv
import io
import json
import math
from xml.etree import ElementTree

import pytest

from channelscope import tables
from channelscope.report import sections
from channelscope.report.page import write_report
from channelscope.report.section import Chart, Section
from channelscope.tables.quantities import Column
from report.chromium import Chromium
from report.folders import large, tiny

pytestmark = [pytest.mark.browser]
COLUMN = "[...document.querySelectorAll('#channel-table tbody tr')].map((row) => row.cells[{}].textContent)"
MAPS = "[...document.querySelectorAll('#mapping .plot')]"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(tiny(tmp_path_factory.mktemp("run")))


@pytest.fixture
def page(report, tmp_path):
    with Chromium(tmp_path) as browser:
        browser.open(report)
        yield browser
        assert browser.problems == []
        assert browser.requests == [report.resolve().as_uri()]


def heading(page, name):
    page.click(f"#channel-table th[data-column={name}] button")


def test_everything_is_drawn_without_an_error_or_a_request(page):
    page.run("channelscope.drawAll()")
    page.settle()
    assert page.run("document.querySelectorAll('.plot').length") == page.run("document.querySelectorAll('.plot .main-svg').length / 3 * 1")
    assert page.run(f"{MAPS}.map((plot) => plot.data[0].x.length)") == [6, 6]
    assert page.run("document.querySelectorAll('#alignment .panels')[0].querySelectorAll('.scatterlayer .trace').length") == 8


def test_layers_are_written_along_the_axis_and_whiskers_are_inside_the_range(page):
    page.run("channelscope.drawAll()")
    page.settle()
    plot = "document.querySelector('#alignment .plot')"
    assert page.run(f"{plot}.layout.xaxis.ticktext") == ["conv1", "layer1.0.conv1"]
    low, high = page.run(f"{plot}.layout.yaxis.range")
    assert low < 0.1 < 0.5 < high


def test_cards_and_the_drawing_of_the_quantities_are_saved_with_their_numbers(page):
    page.run(
        "(() => { window.blobs = []; window.saved = []; const held = URL.createObjectURL; "
        "URL.createObjectURL = (blob) => { blobs.push(blob); return held(blob); }; "
        "HTMLAnchorElement.prototype.click = function () { saved.push(this.download); }; })()"
    )
    page.run("[...document.querySelectorAll('header .saves button, #quantities .saves button')].forEach((button) => button.click())")
    found = dict(zip(page.run("saved"), page.run("Promise.all(blobs.map((each) => each.text()))"), strict=True))
    assert list(found) == ["alignment_mean.svg", "alignment_mean.csv", "quantities.svg", "quantities.csv"]
    cards = ElementTree.fromstring(found["alignment_mean.svg"])
    words = [text.text for text in cards.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("input capture with task information") == 1
    assert "trained 0.30 [0.20, 0.40] n = 2 layers" in words
    places = [float(dot.get("cx")) for dot in cards.iter("{http://www.w3.org/2000/svg}circle")][:2]
    assert places == pytest.approx([260 + 3.8 * 80, 260 + 3.8 * 65])  # 0.6 and 0.3 on a scale from -1 to 1
    assert found["alignment_mean.csv"].splitlines()[0] == "stage,local,target,rho,low,high,n,pooled"
    assert ElementTree.fromstring(found["quantities.svg"]).tag == "{http://www.w3.org/2000/svg}svg"
    rows = list(csv.reader(io.StringIO(found["quantities.csv"])))
    assert len(rows) == 1 + page.run("document.querySelectorAll('table.quantities tbody tr').length")
    assert {len(row) for row in rows} == {6}


def test_on_paper_figures_have_light_colors_and_the_width_of_the_page_and_afterwards_those_of_the_screen(page):
    page.theme(dark=True)
    page.run("channelscope.drawAll()")
    page.settle()
    plot = "document.querySelector('#alignment .plot')"
    dot = "getComputedStyle(document.querySelector('#alignment .legend b')).borderColor"
    look = f"[{plot}.data[0].line.color, {plot}._fullLayout.width, {dot}]"
    color, width, dark_dot = page.run(look)
    page.run(f"addEventListener('beforeprint', () => (window.onpaper = {look}))")
    page.ask("Page.printToPDF", printBackground=False)
    light, narrow, light_dot = page.wait("window.onpaper")
    assert (color, light) == ("#7d8691", "#8a929c")
    assert narrow < width
    assert narrow <= 350
    assert light_dot != dark_dot
    page.settle()
    assert page.run(look) == [color, width, dark_dot]


def test_names_of_the_legend_fade_the_others(page):
    page.run("channelscope.drawAll()")
    page.settle()
    page.run("document.querySelector('#alignment .legend button').click()")
    page.settle()
    assert page.run("document.querySelector('#alignment .legend button').getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('#alignment .plot').data.map((each) => each.opacity)") == [1, 0.12]
    page.run("document.querySelector('#alignment .legend button').click()")
    page.settle()
    assert page.run("document.querySelector('#alignment .plot').data.map((each) => each.opacity)") == [1, 1]


def test_charts_are_saved_as_svg_and_their_numbers_as_csv(page):
    page.run("channelscope.drawAll()")
    page.settle()
    page.run("HTMLAnchorElement.prototype.click = function () { (window.saved ??= []).push([this.download, this.href.slice(0, 18)]); }")
    page.run("document.querySelector('#alignment .saves button').click()")
    page.wait("(window.saved ?? []).length >= 4")
    assert page.run("window.saved[0]") == ["alignment_rho_input_capture_with_task_information.svg", "data:image/svg+xml"]
    page.run("document.querySelectorAll('#alignment .saves button')[1].click()")
    assert page.wait("window.saved.find(([name]) => name.endsWith('.csv'))")[0] == "alignment_rho.csv"


def test_plots_wait_until_they_are_near(report, tmp_path):
    with Chromium(tmp_path, height=500) as page:
        page.open(report)
        assert not page.run("Boolean(document.querySelector('#groups .main-svg'))")
        page.show("#groups .plot")
        page.show("#groups .plot")
        assert page.run("Boolean(document.querySelector('#groups .main-svg'))")


def test_a_click_on_a_point_keeps_the_channel_everywhere(page):
    page.run("channelscope.drawAll()")
    point = f"{MAPS}[1].querySelectorAll('.scatterlayer .point')[4]"
    page.mouse(*page.middle(point))
    page.mouse(*page.middle(point), click=True)
    assert page.run("[...channelscope.state.pins.values()]") == [{"site": "layer1.0.conv1", "channel": 4, "letter": "A"}]
    assert page.run(f"{MAPS}.map((plot) => plot.data[1].text)") == [["<b>A</b>"], ["<b>A</b>"]]
    assert page.run("[...document.querySelectorAll('tr.pinned')].map((row) => row.cells[1].textContent + row.cells[2].textContent)") == [
        "layer1.0.conv14"
    ]
    assert page.run("document.querySelector('#alignment .plot').layout.annotations.map((each) => each.text)") == ["<b>A</b>"]
    assert page.run("document.querySelector('#pins .chip a').textContent") == "layer1.0.conv1, channel 4"
    page.mouse(*page.middle(point), click=True)
    assert page.run("channelscope.state.pins.size") == 0
    assert page.run("document.getElementById('pins').hidden")


def test_hover_tells_the_numbers(page):
    page.mouse(*page.middle(f"{MAPS}[1].querySelectorAll('.scatterlayer .point')[1]"))
    told = page.wait("[...document.querySelectorAll('#mapping .hoverlayer')].map((each) => each.textContent).join('')")
    assert "layer1.0.conv1" in told
    assert "channel 1" in told
    assert "input capture [nats]: 0.500" in told


def test_the_keyboard_keeps_a_channel_and_escape_lets_go(page):
    page.run("document.querySelector('#channel-table tbody tr:nth-child(2) .keep').focus()")
    page.key("Enter", 13)
    assert page.run("[...channelscope.state.pins.values()].map((each) => each.site + ':' + each.channel)") == ["conv1:1"]
    assert page.run("channelscope.state.site") == "conv1"
    assert page.run("document.activeElement.textContent") == "A"
    page.run("document.querySelector('#pins summary').click()")
    assert "an exact copy" not in page.run("document.querySelector('#pins').textContent").replace("overlap: an exact copy of channel 2", "")
    assert page.run("document.querySelectorAll('#pins thead th').length") == 2
    page.key("Escape", 27)
    assert page.run("channelscope.state.pins.size") == 0


def test_sorting_puts_undefined_values_last_both_ways(page):
    heading(page, "capture")
    down = page.run(COLUMN.format(4))
    assert page.run("document.querySelector('#channel-table th[data-column=capture]').getAttribute('aria-sort')") == "descending"
    heading(page, "capture")
    up = page.run(COLUMN.format(4))
    assert down[-1] == up[-1] == "undefined"
    assert [float(each) for each in down[:-1]] == sorted((float(each) for each in down[:-1]), reverse=True)
    assert [float(each) for each in up[:-1]] == sorted(float(each) for each in up[:-1])


def test_infinity_sorts_as_the_largest(page):
    page.run("(() => { const box = [...document.querySelectorAll('#channel-table select')][0]; box.value = ''; box.onchange(); })()")
    heading(page, "overlap")
    assert page.run(COLUMN.format(5))[0] == "∞"


def test_words_and_comparisons_filter(page):
    def rows(words):
        page.run(
            f"(() => {{ const box = document.querySelector('#channel-table input'); box.value = {json.dumps(words)}; box.oninput(); }})()"
        )
        return page.run("document.querySelectorAll('#channel-table tbody tr').length")

    assert rows("") == 10
    assert rows("layer1") == 6
    assert rows("layer1 capture>0.5") == 3
    assert rows("capture<=0.5 channel=1") == 2
    assert rows("silent") == 1
    assert rows("nothing like it") == 0
    assert page.run("document.querySelector('#channel-table [role=status]').textContent") == "0 of 0 rows (20 without filters)"


def test_choosing_a_layer_changes_every_map(page):
    page.click("#mapping .thumb:nth-child(1)")
    assert page.run(f"{MAPS}.map((plot) => plot.data[0].x.length)") == [4, 4]
    assert page.run("document.getElementById('layer').value") == "conv1"
    assert "0.25 [0.10, 0.40] (n = 4 channels)" in page.run("document.querySelector('#mapping figcaption').textContent")
    assert page.run("document.querySelector('[aria-label=\"Layer before\"]').disabled")


def test_undefined_and_infinite_channels_have_lanes_of_their_own(page):
    page.run("channelscope.select('conv1')")
    page.run("(() => { const box = document.querySelectorAll('#mapping select')[1]; box.value = 'overlap'; box.onchange(); })()")
    symbols = page.run(f"{MAPS}[0].data[0].marker.symbol")
    assert symbols == ["circle", "triangle-up", "circle", "circle"]
    assert page.run(f"{MAPS}[0].data[0].x[1] > Math.max(...[0, 2, 3].map((i) => {MAPS}[0].data[0].x[i]))")
    page.run("channelscope.select('layer1.0.conv1')")
    page.run("(() => { const box = document.querySelectorAll('#mapping select')[1]; box.value = 'capture'; box.onchange(); })()")
    assert page.run(f"{MAPS}[1].data[0].marker.symbol").count("x-thin") == 1
    assert "undefined (cross)" in page.run("document.querySelector('#mapping > .caption').textContent")


def test_folded_pairs_and_numbers_open(page):
    page.click("#alignment .charts details summary")
    page.settle()
    assert page.run("document.querySelectorAll('#alignment .charts details .main-svg').length") > 0
    page.click("#alignment > details > summary")
    assert "0.250 [0.100, 0.400]" in page.run("document.querySelector('#alignment > details').textContent")


@pytest.mark.parametrize("digits", [0, 2, 3])
def test_the_page_rounds_as_the_library_does(page, digits):
    values = [0.0, 0.23, -0.23, 0.9996, 0.99999999, 1.0, 0.0004, -0.00004, 3.2e-9, 1234.567, 98765.4321, math.pi]
    for value in values:
        for top in (None, 1.0):
            said = page.run(f"channelscope.shown({value!r}, {digits}, {json.dumps(top)})")
            assert said == tables.format_number(value, digits, top)
    assert page.run("channelscope.shown(NaN)") == tables.format_number(math.nan)
    assert page.run("channelscope.shown(-Infinity)") == tables.format_number(-math.inf)


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_it_fits_narrow_windows_and_the_dark(report, tmp_path, width, dark):
    with Chromium(tmp_path, width, dark=dark) as page:
        page.open(report)
        page.run("channelscope.drawAll()")
        page.settle()
        assert page.run("document.documentElement.scrollWidth") <= width
        paper = page.run("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(17, 20, 23)") == dark
        assert page.problems == []


def test_five_thousand_channels_stay_quick(tmp_path):
    report = write_report(large(tmp_path, widths=(512,) * 5))
    with Chromium(tmp_path) as page:
        page.open(report)
        assert page.run(f"{MAPS}[0].data[0].x.length") == 512
        heading(page, "relevance")
        assert page.run("document.querySelector('#channel-table [role=status]').textContent") == "50 of 2,560 rows (5,120 without filters)"
        assert (
            page.run(
                "(() => { const begun = performance.now(); channelscope.pin('layer1.0.conv1', 5); return performance.now() - begun; })()"
            )
            < 5000
        )
        assert page.problems == []


def test_charts_of_rows_and_bars_of_standard_errors(tmp_path):
    place = tiny(tmp_path)
    columns = {name: Column(meaning=name, source="this test") for name in ("score", "gap")}
    rows = [
        {"stage": stage, "score": score, "gap": gap, "gap_se": gap / 5}
        for stage in ("first", "second")
        for score, gap in (("capture", 0.5), ("overlap", 0.8))
    ]
    tables.write(tables.table(rows, "named", columns), place / "named.csv")
    section = Section("named", "Named", "?", (Chart("Gaps", "score", "gap", kind="rows", by="stage", zero=True),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "SECTIONS", (section,))
        report = write_report(place)
    with Chromium(tmp_path) as page:
        page.open(report)
        page.run("channelscope.drawAll()")
        plot = "document.querySelector('#named .plot')"
        assert page.run(f"{plot}.data.map((each) => each.y)") == [pytest.approx([0.15, 1.15]), pytest.approx([-0.15, 0.85])]
        assert page.run(f"{plot}.data[0].error_x.array") == pytest.approx([0.196, 0.3136])
        assert page.run(f"{plot}.layout.yaxis.ticktext") == ["input capture", "peer overlap"]
        page.click("#named > details summary")
        assert "0.500 [0.304, 0.696]" in page.run("document.querySelector('#named > details').textContent")
        assert page.problems == []
