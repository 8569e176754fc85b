import xml.etree.ElementTree as ET
from pathlib import Path

from channelscope.report import quantity_diagram
from channelscope.tables.quantities import HEADLINE, QUANTITIES

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def drawing():
    return ET.fromstring(quantity_diagram.svg())


def test_it_is_one_svg_that_stands_alone():
    root = drawing()
    assert root.tag == f"{SVG}svg"
    assert not [each for each in root.iter() if "href" in str(each.attrib)]
    for name in HEADLINE:
        assert QUANTITIES[name].title in root.attrib["aria-label"]


def test_it_says_unit_range_and_what_is_kept_of_the_four_headline_quantities():
    words = [each.text for each in drawing().iter(f"{SVG}text")]
    for name in HEADLINE:
        quantity = QUANTITIES[name]
        assert f"{quantity.title}  {quantity.symbol.split('_')[0]}" in words
        assert f"{quantity.unit}, {quantity.range}" in words
    assert words.count("▲ high is kept") == 3
    assert words.count("▼ low is kept") == 1


def test_everything_is_inside_the_frame():
    for each in drawing().iter(f"{SVG}rect"):
        assert float(each.attrib["x"]) + float(each.attrib["width"]) <= quantity_diagram.WIDTH
        assert float(each.attrib["y"]) + float(each.attrib["height"]) <= quantity_diagram.HEIGHT
    for each in drawing().iter(f"{SVG}text"):
        assert float(each.attrib["y"]) <= quantity_diagram.HEIGHT
        assert len(each.text or "") < 70


def test_the_table_has_a_row_per_quantity():
    lines = quantity_diagram.markdown().splitlines()
    assert len(lines) == 2 + len(QUANTITIES)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_docs_are_what_the_library_says():
    assert (DOCS / "quantities.svg").read_text() == quantity_diagram.svg()
    assert quantity_diagram.markdown() in (DOCS / "quantities.md").read_text()
