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


def test_the_wheel_zooms_and_the_button_returns(pages):
    page, (_, wide_page) = pages
    page.open(wide_page)
    box = "svg.getAttribute('viewBox')"
    before = page.run(box)
    page.run("svg.dispatchEvent(new WheelEvent('wheel', {deltaY: -400, clientX: 400, clientY: 400, cancelable: true}))")
    after = page.run(box)
    assert float(after.split()[2]) < 0.6 * float(before.split()[2])
    page.click("#whole")
    assert [float(part) for part in page.run(box).split()] == [float(part) for part in before.split()]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (600, 900)])
def test_the_page_fits_its_window(files, tmp_path, width, height):
    with Chromium(tmp_path, width, height) as page:
        for file in files:
            page.open(file)
            assert page.run("document.documentElement.scrollWidth - window.innerWidth") <= 0
            assert page.run("document.querySelector('#stage svg').getBoundingClientRect().height") > 200
            assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth)")
