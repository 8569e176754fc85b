"""plot draws profiles, rankings, subsets and tables, and refuses what it cannot draw."""

import numpy as np
import pandas as pd
import pytest
import torch

import channelscope
from channelscope.drawing import plot
from channelscope.errors import InputError, SiteError
from channelscope.ranking import Ranking
from channelscope.site import Site
from channelscope.subset import Subset


def named(rows: list[dict], name: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame.attrs = {"name": name, "columns": {}}
    return frame


def site(name: str, channels: int) -> Site:
    return Site(name, name, channels, (channels, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))


SITES = (site("a", 3), site("b", 2))
RANKING = Ranking("overlap", "nats", "low", {"a": np.array([0.5, 0.1, np.inf]), "b": np.array([1.0, 3.0])}, SITES, (3, 8, 8))


def test_a_ranking_has_a_point_for_every_finite_value_and_a_median_for_every_layer():
    (axes,) = RANKING.plot()
    points, medians = axes.lines[::2], axes.lines[1::2]
    assert [line.get_ydata().tolist() for line in points] == [[0.5, 0.1], [1.0, 3.0]]
    assert [line.get_xdata() for line in points] == [pytest.approx([-0.3, 0.3]), pytest.approx([0.7, 1.3])]
    assert [line.get_ydata().tolist() for line in medians] == [[0.3, 0.3], [2.0, 2.0]]
    assert [line.get_xdata() for line in medians] == [pytest.approx([-0.3, 0.3]), pytest.approx([0.7, 1.3])]
    assert {(line.get_marker(), line.get_markersize(), line.get_markeredgewidth(), line.get_alpha()) for line in points} == {
        (".", 3, 0, 0.5)
    }
    assert {line.get_linewidth() for line in medians} == {1.4}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert axes.get_ylabel() == "peer overlap [nats]"
    assert axes.figure.get_suptitle() == "A point is a channel, a line a layer's median (low is kept, 1 without a finite value left out)"


def test_a_layer_of_one_channel_has_its_point_in_the_middle():
    one = Ranking("overlap", "", "high", {"a": np.array([0.5, 0.1, 0.4]), "c": np.array([2.0])}, (SITES[0], site("c", 1)), (3, 8, 8))
    (axes,) = plot(one)
    first, _, point, median = axes.lines
    assert first.get_xdata() == pytest.approx([-0.3, 0.0, 0.3])
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([1], [2.0])
    assert median.get_xdata() == pytest.approx([0.7, 1.3])
    assert axes.get_ylabel() == "peer overlap"
    assert axes.figure.get_suptitle() == "A point is a channel, a line a layer's median (high is kept)"


def test_layers_are_chosen_by_name_and_a_misspelled_one_is_refused():
    (axes,) = plot(RANKING, layers=["b"], title="one")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b"]
    assert axes.figure.get_suptitle() == "one"
    with pytest.raises(SiteError, match="no site is called c"):
        plot(RANKING, layers=["c"])


def test_a_profile_has_a_panel_for_every_layer(profile):
    axes = profile.plot(layers=[profile.sites[0].name])
    assert len(axes) == 1
    assert axes[0].collections[0].get_offsets().shape == (profile.sites[0].channels, 2)
    expected = channelscope.scores.table(profile, ["capture", "relevance"]).query("site == @profile.sites[0].name")
    np.testing.assert_allclose(axes[0].collections[0].get_offsets(), expected[["capture", "relevance"]])
    assert len(plot(profile)) == len(profile.sites)


@pytest.fixture(scope="module")
def profile():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    model.append(torch.nn.Linear(5 * 16, 3))
    images = torch.randn(40, 3, 8, 8, generator=draw)
    return channelscope.collect(model.eval(), [(images, torch.arange(40) % 3)])


def test_a_subset_has_a_bar_for_every_layer():
    marks = Subset({"a": torch.tensor([True, False, False]), "b": torch.tensor([True, True])}, SITES, (3, 8, 8))
    (axes,) = plot(marks)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([1 / 3, 1.0])
    assert axes.figure.get_suptitle() == "3 of 5 channels"
    assert axes.get_ylim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [pytest.approx((-0.3, 0.6)), pytest.approx((0.7, 0.6))]
    (axes,) = plot(Subset({"a": torch.ones(2, 2, dtype=torch.bool)}))
    assert axes.get_ylabel() == "kernels marked [fraction]"


def test_a_table_has_the_chart_of_the_report():
    rows = [{"quantity": "ratio", "epoch": epoch, "value": 0.1 * epoch, "low": 0.0, "high": 1.0, "n": 3} for epoch in range(3)]
    frame = named(rows, "trajectory")
    (axes,) = plot(frame)
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.0, 0.1, 0.2])
    with pytest.raises(InputError, match="no chart is called Quantities over trainig; near matches: Quantities over training"):
        plot(frame, title="Quantities over trainig")


def test_what_nothing_draws_is_refused():
    with pytest.raises(InputError, match="no chart is declared for the table 'made_up'"):
        plot(named([{"n": 1}], "made_up"))
    with pytest.raises(InputError, match="the table 'trajectory' has no numbers to draw"):
        plot(named([{"epoch": 0, "value": np.nan, "quantity": "ratio"}], "trajectory"))
    with pytest.raises(InputError, match="received list"):
        plot([1, 2])
