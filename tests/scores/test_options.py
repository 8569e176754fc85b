"""Every option that does not exist is refused with the nearest one that does, by every score and every call that takes options."""

import inspect
from dataclasses import fields

import pytest

from channelscope import experiments, scores
from channelscope.errors import InputError
from measured import images, network, profile

CONVENTION = tuple(field.name for field in fields(scores.ScoreOptions))
EVERY = [(name, option) for name, score in scores.REGISTRY.items() for option in (*score.options, *CONVENTION)]
FIRST = {
    "table": lambda: (profile(),),
    "permutation_null": lambda: (profile(), "relevance"),
    "ablate": lambda: (network(), profile(), [images()]),
    "axis_propagation": lambda: (network(), profile()),
    "training_trajectory": lambda: ([("run", 0, profile())],),
}
"""what a call needs before its options; the others need a profile alone"""


def calls() -> list:
    """Every public function of the scores and the experiments that passes options on."""
    rooms = [scores, experiments]
    found = {
        name: value
        for room in rooms
        for name, value in vars(room).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith("channelscope.")
        if "options" in inspect.signature(value).parameters
    }
    return list(found.values())


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_a_score_refuses_a_misspelled_option(name, option):
    with pytest.raises(InputError, match=rf"no option is called {option[:-1]}; near matches: .*\b{option}\b.*; there are: "):
        scores.REGISTRY[name](profile(), **{option[:-1]: 1})


@pytest.mark.parametrize("call", calls(), ids=lambda call: call.__name__)
def test_a_call_refuses_a_misspelled_option(call):
    arguments = FIRST.get(call.__name__, lambda: (profile(),))()
    with pytest.raises(InputError, match="no option is called shrinkge; near matches: shrinkage; there are: "):
        call(*arguments, shrinkge="oas")
    with pytest.raises(InputError, match=r"no target is called mragin; near matches: margin.*; there are: "):
        call(*arguments, target="mragin")


def test_the_calls_with_options_are_found():
    known = {
        "table",
        "permutation_null",
        "axis_alignment",
        "axis_clusters",
        "replacement_sets",
        "find_communities",
        "axis_propagation",
        "training_trajectory",
        "ablate",
        "task_mass",
    }
    assert {call.__name__ for call in calls()} == known


@pytest.mark.parametrize("name", sorted(scores.REGISTRY))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papr"}, "no preset is called papr; near matches: paper; there are: default, paper"),
        ({"target": "lable"}, "no target is called lable; near matches: label; there are: margin, "),
        ({"target_readout": "poolde"}, "no target_readout is called poolde; near matches: pooled; there are: pooled, positions"),
        ({"shrinkage": "oass"}, "shrinkage: expected a number or 'oas', received 'oass'"),
        ({"noise": "medain"}, "noise: expected a number or 'median', received 'medain'"),
    ],
)
def test_a_score_refuses_a_misspelled_value(name, options, message):
    with pytest.raises(InputError, match=message):
        scores.REGISTRY[name](profile(), **options)


def test_a_table_has_no_options_of_single_scores():
    with pytest.raises(InputError, match="no option is called ceiling; there are: target, target_readout"):
        scores.table(profile(), ["overlap"], ceiling=3.1)
    assert scores.overlap(profile(), ceiling=0.05).values["0"].max() <= 0.05


def test_a_misspelled_score_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="no score is called relevnce; near matches: relevance; there are: "):
        scores.lookup(["overlap", "relevnce"])
    with pytest.raises(InputError, match="no score is called excss; near matches: excess"):
        scores.permutation_null(profile(), "excss")
