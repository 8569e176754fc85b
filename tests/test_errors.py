import json

import pytest

from channelscope.errors import InputError, ShapeError, UserCode, at, first_line, near_paths, no_such


def test_of_many_names_the_first_forty_are_listed():
    message = no_such("layer", "x", [f"block{k}" for k in range(41)])
    assert message.startswith("no layer is called x; there are: block0, block1, ")
    assert message.endswith("block39, … (41 in all)")
    assert no_such("layer", "x", [f"block{k}" for k in range(40)]).endswith("block38, block39")


def test_of_many_names_near_matches_are_enough():
    message = no_such("layer", "blok7", [f"block{k}" for k in range(1041)])
    assert message == "no layer is called blok7; near matches: block7, block97, block87, block79; there are 1,041 names"


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


def test_the_first_line_of_a_message_or_the_name_of_its_class():
    assert first_line(ValueError("\n  too large\nby far")) == "too large"
    assert first_line(AssertionError()) == "AssertionError"


class TestUserCode:
    def test_any_error_and_a_call_of_exit_become_one_sentence_with_the_line(self, tmp_path):
        for source, said in (
            ("{}['depth']", r"Net cannot be made \(KeyError: 'depth', .*net\.py:1\); pass more"),
            ("\n\n1 / 0", r"Net cannot be made \(ZeroDivisionError: division by zero, .*net\.py:3\); pass more"),
            ("raise SystemExit(3)", r"Net cannot be made \(SystemExit: 3, .*net\.py:1\); pass more"),
            ("assert False", r"Net cannot be made \(AssertionError, .*net\.py:1\); pass more"),
        ):
            (tmp_path / "net.py").write_text(source, encoding="utf-8")
            with pytest.raises(InputError, match=said), UserCode(InputError, "Net cannot be made", "; pass more"):
                exec(compile(source, tmp_path / "net.py", "exec"))

    def test_a_line_of_the_library_and_a_line_that_was_typed_in_are_not_named(self):
        with pytest.raises(InputError, match=r"\(ZeroDivisionError: division by zero, [^,]*test_errors\.py:\d+\)$"):
            with UserCode(InputError, "Net cannot be made"):
                exec("1 / 0")
        with pytest.raises(InputError, match=r"\('int' object is not iterable, [^,]*test_errors\.py:\d+\)$"):
            with UserCode(InputError, "Net cannot be made"):
                no_such("layer", "x", 3)

    def test_a_line_of_python_itself_is_not_named(self):
        with pytest.raises(InputError, match=r"\(JSONDecodeError: Expecting value: [^,]*, [^,]*test_errors\.py:\d+\)$"):
            with UserCode(InputError, "Net cannot be made"):
                json.loads("depth")

    def test_the_librarys_errors_and_an_interruption_pass(self):
        for error in (ShapeError("expected 3"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, UserCode(InputError, "Net cannot be made"):
                raise error
            assert caught.value is error


def test_near_paths_are_those_beside_the_first_part_that_is_missing(tmp_path):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "labels.csv").touch()
    assert near_paths(tmp_path / "photo" / "cats" / "1.png") == f"; near matches: {tmp_path / 'photos'}"
    assert near_paths(tmp_path / "photos" / "label.csv") == f"; near matches: {tmp_path / 'photos' / 'labels.csv'}"
    assert near_paths(tmp_path / "photos" / "weights.pt") == ""
    assert near_paths(tmp_path / "photos" / "labels.csv" / "more") == ""
