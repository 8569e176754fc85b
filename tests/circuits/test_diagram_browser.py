"""The diagram in a real headless Chromium: a click isolates, a second one restores, and no request leaves the page."""

import pytest

from channelscope.circuits import diagram_page
from circuits.diagrams import small, wide
from report.chromium import Chromium

pytestmark = [pytest.mark.browser]
OFF = "[document.querySelectorAll('.node.off').length, document.querySelectorAll('.way.off').length]"
NODE = "[...document.querySelectorAll('.node')].find((node) => node.querySelector('title').textContent === '{}')"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagram")
    drawn, shots = wide(300)
    return small(folder / "small"), diagram_page.write_diagram(folder / "wide", drawn, shots, "wide", "300 kernels")


@pytest.fixture
def pages(files, tmp_path):
    with Chromium(tmp_path) as browser:
        yield browser, files
        assert browser.problems == []
        assert all(request.startswith(("file:", "data:")) for request in browser.requests)
        assert {request for request in browser.requests if request.startswith("file:")} <= {file.resolve().as_uri() for file in files}


def test_a_click_isolates_a_channel_and_a_second_restores(pages):
    page, (small_page, _) = pages
    page.open(small_page)
    assert page.run(OFF) == [0, 0]
    spot = page.middle(NODE.format("last:1"))
    page.mouse(*spot, click=True)
    off = page.run(OFF)
    assert min(off) > 0
    read = page.run("circuit.edges.filter((edge) => circuit.nodes[edge.to].feature).length")
    ends = "[...document.querySelectorAll('.way:not(.off):not(.link)')].map((way) => circuit.edges[way.dataset.edge].to)"
    assert page.run(f"{ends}.every((to) => circuit.nodes[to].feature)")
    assert page.run("document.querySelectorAll('.way:not(.off):not(.link)').length") == read
    assert page.run("document.querySelector('aside h2').textContent") == "last:1 (the feature)"
    assert page.run("document.querySelectorAll('aside img').length") > 0
    page.mouse(*spot, click=True)
    assert page.run(OFF) == [0, 0]
    assert "Click a channel" in page.run("document.querySelector('aside').textContent")


def test_a_click_isolates_a_kernel(pages):
    page, (small_page, _) = pages
    page.open(small_page)
    page.run("isolate('edge', Number(ways[0].dataset.edge))")
    assert page.run("document.querySelectorAll('.way:not(.off)').length") == 1
    assert page.run("document.querySelectorAll('.node:not(.off)').length") == 2
    page.key("Escape", 27)
    assert page.run(OFF) == [0, 0]


def test_heat_maps_come_where_a_click_has_isolated_their_kernels(pages):
    page, (_, wide_page) = pages
    page.open(wide_page)
    shown = "[...document.querySelectorAll('image.late')].filter((each) => getComputedStyle(each).display !== 'none').length"
    assert page.run(shown) == 0
    page.run("isolate('node', circuit.nodes.findIndex((node) => node.feature))")
    read = page.run("circuit.edges.filter((edge) => circuit.nodes[edge.to].feature).length")
    assert page.run(shown) == read > 0
    page.key("Escape", 27)
    assert page.run(shown) == 0


def test_sliders_change_what_is_shown(pages):
    page, (_, wide_page) = pages
    page.open(wide_page)
    visible = "document.querySelectorAll('.way:not(.hidden):not(.link)').length"
    assert page.run(visible) == 300
    page.run("(() => { const s = document.getElementById('shown'); s.value = 25; s.dispatchEvent(new Event('input')); })()")
    assert page.run(visible) == 25
    assert page.run("document.getElementById('count').textContent") == "25"
    assert page.run("document.querySelector('.node.feature').classList.contains('hidden')") is False
    wide_of = "document.querySelector('.node.feature').getBoundingClientRect().width"
    before = page.run(wide_of)
    page.run("(() => { const s = document.getElementById('size'); s.value = 2; s.dispatchEvent(new Event('input')); })()")
    page.settle()
    assert page.run(wide_of) > 1.8 * before


def test_letters_can_be_read_at_first_and_the_feature_is_in_view(pages):
    page, files = pages
    for file in files:
        page.open(file)
        letters = "Math.min(...[...document.querySelectorAll('.label')].map((each) => parseFloat(getComputedStyle(each).fontSize)))"
        assert page.run(f"{letters} * zoom") >= 9
        seen = "((one, all) => one.left >= all.left && one.right <= all.right && one.top >= all.top && one.bottom <= all.bottom)"
        box = "document.querySelector('.node.feature').getBoundingClientRect()"
        assert page.run(f"{seen}({box}, stage.getBoundingClientRect())")
        filled = "Math.max(svg.clientWidth / stage.clientWidth, svg.clientHeight / stage.clientHeight)"
        assert page.run(f"zoom === LARGEST || {filled} > 0.95")


def test_ctrl_and_the_wheel_zoom_and_the_button_shows_the_whole(pages):
    page, (_, wide_page) = pages
    page.open(wide_page)
    before = page.run("svg.clientWidth")
    turned = "svg.dispatchEvent(new WheelEvent('wheel', {{deltaY: -400, ctrlKey: {}, bubbles: true, clientX: 400, cancelable: true}}))"
    page.run(turned.format("false"))
    assert page.run("svg.clientWidth") == before, "without Ctrl the wheel scrolls"
    page.run(turned.format("true"))
    assert page.run("svg.clientWidth") > 1.6 * before
    page.click("#whole")
    assert page.run("svg.clientWidth <= stage.clientWidth && svg.clientHeight <= stage.clientHeight")


def test_names_of_layers_stay_above_their_columns(pages):
    page, (_, wide_page) = pages
    page.open(wide_page)
    page.run("magnify(4)")
    page.run("stage.scrollTo(0, 900)")
    page.settle()
    assert page.run("titles[0].getBoundingClientRect().top - stage.getBoundingClientRect().top") >= 0


def test_arrows_go_from_channel_to_channel_and_enter_chooses(pages):
    page, (small_page, _) = pages
    page.open(small_page)
    page.run("document.querySelector('.node.feature').focus()")
    page.key("ArrowLeft", 37)
    assert page.run("document.activeElement.classList.contains('feature')") is False
    assert page.run("document.querySelectorAll('.node[tabindex=\"0\"]').length") == 1
    page.key("Enter", 13)
    assert min(page.run(OFF)) > 0
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('aside h2').textContent") == page.run("document.activeElement.getAttribute('aria-label')")
    page.run("document.querySelector('aside li button').focus()")
    page.key("Enter", 13)
    assert page.run("document.querySelectorAll('.way:not(.off)').length") == 1
    page.key("Escape", 27)
    assert page.run(OFF) == [0, 0]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 860)])
def test_the_page_fits_its_window(files, tmp_path, width, height):
    with Chromium(tmp_path, width, height) as page:
        for file in files:
            page.open(file)
            assert page.run("document.documentElement.scrollWidth - window.innerWidth") <= 0
            assert page.run("document.querySelector('#stage svg').getBoundingClientRect().height") > 200
            assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth)")
