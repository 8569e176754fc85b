import pytest

from channelscope.errors import ShapeError, at, no_such


def test_of_many_names_the_first_forty_are_listed():
    message = no_such("layer", "x", [f"block{k}" for k in range(41)])
    assert message.startswith("no layer is called x; there are: block0, block1, ")
    assert message.endswith("block39, … (41 in all)")
    assert no_such("layer", "x", [f"block{k}" for k in range(40)]).endswith("block38, block39")


def test_an_empty_name_and_no_names_are_said():
    assert no_such("layer", "", []) == "no layer is called ''; there are: none"


def test_the_place_is_put_before_an_error_without_arguments():
    with pytest.raises(ShapeError, match="at conv1: "), at("conv1"):
        raise ShapeError
