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


def test_at_most_four_near_matches_are_named():
    message = no_such("layer", "conv", [f"conv{k}" for k in range(6)])
    assert message.count("conv") == 1 + 4 + 6, "the name, four near matches, all six"


def test_the_place_goes_before_the_message_and_the_other_arguments_stay():
    error = ShapeError("expected 3", "further", 7)
    with pytest.raises(ShapeError) as caught, at("fc"):
        raise error
    assert caught.value.args == ("at fc: expected 3", "further", 7)
