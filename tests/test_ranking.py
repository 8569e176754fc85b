import re
from dataclasses import replace

import numpy as np
import pytest

from channelscope import tables
from channelscope.errors import ShapeError, SiteError
from channelscope.ranking import Ranking
from channelscope.site import Site

SITES = tuple(Site(f"block{k}.conv", "conv", 2, (2, 4, 4), 0, f"conv{k}", f"relu{k}", k, 3, (3, 3)) for k in range(20))


def ranking(**changes):
    values = {site.name: np.array([1.0, 2.0]) for site in SITES}
    return replace(Ranking("overlap", "nats", "low", values, SITES, (3, 4, 4)), **changes)


def test_a_misspelled_site_is_refused_with_the_nearest():
    for read in (ranking().__getitem__, ranking().importance):
        with pytest.raises(SiteError, match=re.escape("no site is called block3.con; near matches: block3.conv")):
            read("block3.con")


def test_printed_it_has_at_most_fifteen_lines():
    lines = repr(ranking(notes={"block0.conv": {0: "silent"}})).splitlines()
    assert lines[0] == "Ranking(overlap [nats], low is kept: 40 channels at 20 sites, 1 with a note)"
    assert lines[1] == "  block0.conv: 2 channels, 1 … 2"
    assert lines[-1] == "  … 7 more"
    assert len(lines) == 15


def test_printed_an_undefined_site_says_so():
    one = ranking(values={SITES[0].name: np.array([np.nan, np.nan])}, sites=SITES[:1], unit="")
    assert repr(one) == "Ranking(overlap, low is kept: 2 channels at 1 sites, 0 with a note)\n  block0.conv: 2 channels, all undefined"


def test_importance_turns_values_of_which_the_low_are_kept():
    assert ranking().importance("block0.conv").tolist() == [-1, -2]
    assert ranking(keeps="high").importance("block0.conv").tolist() == [1, 2]


def test_values_must_match_the_sites():
    values = {site.name: np.array([1.0, 2.0]) for site in SITES}
    with pytest.raises(ShapeError, match=r"has no values for site block19\.conv"):
        ranking(values={name: each for name, each in values.items() if name != "block19.conv"})
    with pytest.raises(ShapeError, match=r"expected 2 values, received shape \(3,\)"):
        ranking(values=values | {"block1.conv": np.zeros(3)})


def test_printed_thirteen_sites_are_all_listed():
    some = ranking(values={site.name: np.array([1.0, 2.0]) for site in SITES[:13]}, sites=SITES[:13])
    assert repr(some).splitlines()[-1] == "  block12.conv: 2 channels, 1 … 2"
    assert len(repr(some).splitlines()) == 14


def test_the_best_channels_come_first_whichever_are_kept():
    one = ranking(values={"block0.conv": np.array([2.0, 0.5]), "block1.conv": np.array([np.nan, 1.0])}, sites=SITES[:2])
    assert one.top(9) == [("block0.conv", 1, 0.5), ("block1.conv", 1, 1.0), ("block0.conv", 0, 2.0)]
    assert replace(one, keeps="high").top(2) == [("block0.conv", 0, 2.0), ("block1.conv", 1, 1.0)]
    assert one.top(1, "block1.conv") == [("block1.conv", 1, 1.0)]


def test_as_a_frame_it_has_a_row_for_every_channel_with_its_note():
    frame = ranking(
        values={"block0.conv": np.array([2.0, np.nan]), "block1.conv": np.array([3.0, 1.0])},
        sites=SITES[:2],
        notes={"block0.conv": {1: "silent"}},
    ).to_frame()
    assert frame.columns.tolist() == ["site", "depth", "channel", "overlap", "note"]
    assert frame.drop(columns="overlap").values.tolist() == [
        ["block0.conv", 0, 0, ""],
        ["block0.conv", 0, 1, "silent"],
        ["block1.conv", 1, 0, ""],
        ["block1.conv", 1, 1, ""],
    ]
    np.testing.assert_array_equal(frame.overlap, [2.0, np.nan, 3.0, 1.0])


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_a_ranking_is_exported_as_a_described_table(tmp_path, ending):
    given = ranking(notes={"block0.conv": {1: "silent"}})
    back = tables.read(tables.write(given.to_frame(), tmp_path / f"overlap.{ending}"))
    assert len(back) == 40
    assert back.loc[1, ["site", "channel", "overlap", "note"]].tolist() == ["block0.conv", 1, 2.0, "silent"]
    assert back.attrs["columns"]["overlap"]["unit"] == "nats"
