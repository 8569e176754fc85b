import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from channelscope.circuits.kernel_scores import GradientOptions
from channelscope.discarding.cid import CIDOptions
from channelscope.errors import InputError, ShapeError, UserCode, at, first_line, near_paths, no_such
from channelscope.experiments import AblationPlan
from channelscope.formulas.intervals import permutation_p
from channelscope.network.removal.groups import groups
from channelscope.pruning.budget import Budget
from channelscope.pruning.cut import cut
from channelscope.pruning.distillation import DistillationPlan
from channelscope.pruning.repair import repair
from channelscope.ranking import Ranking
from channelscope.subset import Subset
from channelscope.zoo.toys import label_channel
from channelscope.zoo.training_run import Schedule

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))

TOY = label_channel()


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


def any_ranking():
    found = groups(TOY.model, TOY.batches[0][0][:1]).sites
    shape = tuple(TOY.batches[0][0].shape[1:])
    return Ranking("any", "", "high", {site.name: torch.arange(float(site.channels)).numpy() for site in found}, found, shape)


CHOICES = {
    "repair": lambda name: repair(nn.Linear(1, 1), nn.Linear(1, 1), Subset({}), method=name),
    "allocation": lambda name: cut(any_ranking(), TOY.model, macs=0.5, allocation=name),
    "budget": lambda name: Budget(of=name),
    "heads": lambda name: groups(TOY.model, TOY.batches[0][0][:1], heads=name),
    "normalizer": lambda name: CIDOptions(normalizer=name),
    "gradient": lambda name: GradientOptions(reduce=name),
    "path": lambda name: GradientOptions(path=name),
    "optimizer": lambda name: Schedule(optimizer=name),
    "precision": lambda name: DistillationPlan(precision=name),
    "silence": lambda name: AblationPlan(silence=name),
    "side": lambda name: permutation_p(torch.zeros(1), torch.zeros(3, 1), side=name),
}


@pytest.mark.parametrize("place", CHOICES)
def test_another_name_is_refused_in_the_same_words_everywhere(place):
    with pytest.raises(InputError, match=r"^no [\w ]+ is called nothing; there are: \w+, "):
        CHOICES[place]("nothing")


def test_no_other_words_refuse_a_name():
    """One check for all: a list of names that is compared by hand has no near matches."""
    by_hand = re.compile(r"if (?!path\.suffix)[\w.]+ not in (get_args\(|\((None, )?\"[^)]*\)):\n +raise InputError")
    found = [path.name for path in SOURCES for match in by_hand.finditer(path.read_text(encoding="utf-8"))]
    assert found == ["subfeatures.py"]  # refuses a part of a feature's name
