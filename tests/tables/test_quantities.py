import numpy as np
import pytest

from channelscope import tables
from channelscope.ranking import Ranking
from channelscope.scores.registry import REGISTRY
from channelscope.site import Site
from channelscope.tables.quantities import COLUMNS, HEADLINE, QUANTITIES
from channelscope.tables.schema import Column


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=lambda quantity: quantity.name)
def test_every_quantity_can_be_read_by_a_stranger(quantity):
    for fact in ("title", "symbol", "unit", "meaning", "formula", "computed", "readout", "reads", "source"):
        assert getattr(quantity, fact), fact
    assert quantity.axis in ("local", "target")
    assert quantity.keeps in ("high", "low")
    assert quantity.range.startswith("[0")


@pytest.mark.parametrize("name", [name for name in QUANTITIES if name in REGISTRY])
def test_quantities_and_scores_agree(name):
    score, quantity = REGISTRY[name], QUANTITIES[name]
    assert quantity.keeps == score.keeps
    assert quantity.axis == score.family
    if score.unit:
        assert quantity.unit == score.unit


def test_the_headline_has_two_quantities_of_each_axis():
    assert [QUANTITIES[name].axis for name in HEADLINE] == ["local", "local", "target", "target"]
    assert [QUANTITIES[name].keeps for name in HEADLINE] == ["high", "low", "high", "high"]
    assert tuple(QUANTITIES)[:4] == HEADLINE


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_a_meaning_and_a_source(name):
    assert COLUMNS[name].meaning
    assert not COLUMNS[name].meaning.endswith(".")
    assert COLUMNS[name].source


def test_ranges_are_printed_as_intervals():
    assert QUANTITIES["support"].range == "[0, 1]"
    assert QUANTITIES["capture"].range == "[0, ∞)"


def test_a_ranking_says_what_its_column_is():
    site = Site("conv1", "conv", 2, (2, 4, 4), 0, "conv1", "relu", 0, 3, (3, 3))
    ranking = Ranking("chip", "rank", "high", {"conv1": np.zeros(2)}, (site,), (3, 4, 4), source="Sui et al. 2021")
    column = Column.of(ranking)
    assert (column.unit, column.source) == ("rank", "Sui et al. 2021")
    frame = tables.table([{"chip": 0.5}], "x", {"chip": column})
    assert "high is kept" in frame.attrs["columns"]["chip"]["meaning"]
