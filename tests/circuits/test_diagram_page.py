"""The three files of a diagram: self-contained, well-formed, and with every kernel and channel in them."""

import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from channelscope.circuits import diagram_page
from channelscope.circuits.diagram_layout import Edge
from channelscope.circuits.diagram_page import BLUE, GREY, MAX_INLINE_HEATMAPS, RED, effect_color, kernel_heatmap
from circuits.diagrams import small, wide

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("diagram")).parent


def test_nothing_but_the_three_files_is_left(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["circuit.html", "circuit.png", "circuit.svg"]


def test_the_page_needs_nothing_else(folder):
    page = (folder / "circuit.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"]+\"", page.replace('href="data:', 'href="data:'))
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "A &lt;small&gt; circuit" in page
    assert "twelve &amp; no more" in page


def test_the_data_is_in_the_page(folder):
    page = (folder / "circuit.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="circuit" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert sum(not edge["link"] for edge in data["edges"]) == 12
    assert [node["name"] for node in data["nodes"] if node["feature"]] == ["last:1"]
    channels = [node for node in data["nodes"] if node["kind"] == "channel"]
    assert any(len(node["pictures"]) > 1 for node in channels)


def test_the_drawing_is_well_formed(folder):
    root = ElementTree.parse(folder / "circuit.svg").getroot()
    width, height = (float(size) for size in root.get("viewBox").split()[2:])
    ways = root.findall(f".//{SVG}g[@data-edge]")
    assert len([way for way in ways if "link" not in way.get("class")]) == 12
    for way in ways:
        assert re.match(r"rgb\(\d+,\d+,\d+\)", way.find(f"{SVG}path").get("stroke"))
    for image in root.iter(f"{SVG}image"):
        kind = "png" if image.get("class") == "kernel" else "jpeg"
        assert image.get("href").startswith(f"data:image/{kind};base64,")
        assert 0 <= float(image.get("x")) <= width
        assert 0 <= float(image.get("y")) <= height


def test_the_picture_is_the_drawing(folder):
    with Image.open(folder / "circuit.png") as shown:
        pixels = np.asarray(shown.convert("RGB")).astype(int)
    root = ElementTree.parse(folder / "circuit.svg").getroot()
    width, height = (float(size) for size in root.get("viewBox").split()[2:])
    assert pixels.shape[:2] == pytest.approx((2 * height, 2 * width), abs=2)
    red, blue = ((pixels == end).all(2).sum() for end in (RED, BLUE))
    assert red + blue > 0
    assert ((pixels == 255).all(2).mean()) > 0.3


@pytest.mark.parametrize("kernels", [30, 300])
def test_heat_maps_are_shown_where_there_is_room(kernels, tmp_path):
    drawn, shots = wide(kernels)
    diagram_page.write_diagram(tmp_path, drawn, shots, "wide", "")
    root = ElementTree.parse(tmp_path / "circuit.svg").getroot()
    page = (tmp_path / "circuit.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="circuit" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert len(root.findall(f".//{SVG}image[@class='kernel']")) == (kernels if kernels <= MAX_INLINE_HEATMAPS else 0)
    assert sum(bool(edge["heat"]) for edge in data["edges"]) == (
        0 if kernels <= MAX_INLINE_HEATMAPS else kernels
    )  # the page draws them when asked
    assert len(page) < (200_000 if kernels <= MAX_INLINE_HEATMAPS else 600_000)


def test_without_pictures_channels_are_blank(tmp_path):
    drawn, _ = wide(30)
    diagram_page.write_diagram(tmp_path, drawn, {}, "bare", "")
    root = ElementTree.parse(tmp_path / "circuit.svg").getroot()
    assert len(root.findall(f".//{SVG}rect[@class='blank']")) == sum(node.kind != "sum" for node in drawn.nodes)


def test_colors_are_symmetric_and_grey_at_zero():
    assert effect_color(0.0) == effect_color(float("nan")) == GREY
    assert effect_color(1.0) == RED
    assert effect_color(-1.0) == BLUE
    for share in (0.1, 0.5, 0.9):
        for sign, end in ((1, RED), (-1, BLUE)):
            assert np.allclose(effect_color(sign * share), np.array(GREY) + share**0.5 * np.subtract(end, GREY), atol=0.5)


def test_heat_maps_are_symmetric_in_the_largest_weight():
    shown = np.asarray(kernel_heatmap(np.array([[2.0, -2.0], [0.0, 1.0]])))
    assert tuple(shown[0, 0]) == RED
    assert tuple(shown[0, 1]) == BLUE
    assert tuple(shown[1, 0]) == (255, 255, 255)
    assert shown[1, 1, 1] == pytest.approx((255 + RED[1]) / 2, abs=1)
    assert np.asarray(kernel_heatmap(np.zeros((3, 3)))).min() == 255


def test_png_pictures_survive():
    drawn, shots = wide(30)
    file = io.BytesIO()
    diagram_page.png(drawn, shots).save(file, "png")
    assert len(file.getvalue()) > 10_000


def test_curves_and_widths_to_the_number():
    straight = [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
    assert [diagram_page._bezier_point(straight, share) for share in (0.0, 0.25, 1.0)] == [(0.0, 1.0), (0.75, 1.0), (3.0, 1.0)]
    widths = [diagram_page._width(Edge(0, 1, score, 0.0, np.ones((1, 1)))) for score in (0.0, 0.25, 1.0)]
    assert widths == pytest.approx([0.6, 3.3, 6.0])
    assert diagram_page._width(Edge(0, 1, 1.0)) == 0.6


def test_heat_maps_are_inline_up_to_sixty_kernels():
    for kernels, shown in ((60, True), (61, False)):
        layout, _ = wide(kernels)
        assert layout.kernels == kernels
        assert any(edge["heat"] for edge in diagram_page._svg(layout, {}, "")["edges"]) == shown
        data = json.loads(diagram_page._data(layout, {}))
        assert all(bool(edge["heat"]) != shown for edge in data["edges"]), "the script has those that the drawing has not"
