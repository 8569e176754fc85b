"""plot draws profiles, rankings, subsets and tables, and refuses what it cannot draw."""

import numpy as np
import pandas as pd
import pytest
import torch

import channelscope
from channelscope import circuits, data, discarding
from channelscope.drawing import plot
from channelscope.errors import InputError, SiteError
from channelscope.ranking import Ranking
from channelscope.site import Site
from channelscope.stats.tally import Tally
from channelscope.subset import Subset
from channelscope.zoo import toys


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
    (axes,) = marks.plot(["b"], "kept")
    assert (len(axes.patches), axes.figure.get_suptitle()) == (1, "kept")
    with pytest.raises(SiteError, match="no site is called c"):
        marks.plot(["c"])


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
    with pytest.raises(InputError, match=r"plot draws Profile, .*, or a mapping of names to Tally; received list"):
        plot([1, 2])
    with pytest.raises(InputError, match="received dict"):
        plot({})
    with pytest.raises(InputError, match="received dict"):
        plot({"whole": 0.9})


@pytest.mark.parametrize(
    ("result", "option"),
    [
        (RANKING, {"x": "support"}),
        (RANKING, {"errors": True}),
        (Subset({"a": torch.ones(2, dtype=torch.bool)}), {"interactive": True}),
        (named([{"epoch": 0, "value": 1.0, "quantity": "ratio"}], "trajectory"), {"layers": ["a"]}),
        ({"whole": Tally()}, {"layers": ["a"]}),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, dict) else next(iter(each)),
)
def test_an_option_that_would_change_nothing_is_refused(result, option):
    with pytest.raises(InputError, match=f"has no {next(iter(option))}: leave it out"):
        plot(result, **option)


def test_errors_are_bars_of_two_standard_errors(profile):
    (axes,) = profile.plot(layers=["2"], errors=True)
    frame = channelscope.scores.table(profile, ["capture", "relevance"], errors=True).query("site == '2'")
    lengths = {
        tuple(np.ptp(path.vertices, 0).round(6)) for each in axes.collections for path in each.get_paths() if len(path.vertices) == 2
    }
    across, up = ((2 * 1.96 * frame[f"{name}_se"]).round(6) for name in ("capture", "relevance"))
    assert lengths == {(length, 0.0) for length in across} | {(0.0, length) for length in up}
    assert len(profile.plot(layers=["2"])[0].collections) == 1


def test_interactive_points_tell_their_channels(profile):
    figure = profile.plot(layers=["0"], interactive=True, errors=True)
    frame = channelscope.scores.table(profile, ["capture", "relevance"], errors=True).query("site == '0'")
    (trace,) = figure.data
    np.testing.assert_allclose(np.stack([trace.x, trace.y], 1), frame[["capture", "relevance"]])
    assert list(trace.text) == list(frame["channel"])
    np.testing.assert_allclose(trace.error_y.array, 1.96 * frame["relevance_se"])
    assert figure.layout.xaxis.title.text == "input capture [nats]"
    assert len(profile.plot(interactive=True).data) == len(profile.sites)
    assert [list(trace.y) for trace in RANKING.plot(interactive=True).data] == [[0.5, 0.1, np.inf], [1.0, 3.0]]
    with pytest.raises(SiteError, match="no site is called c"):
        RANKING.plot(["c"], interactive=True)


def test_a_circuit_is_drawn_as_shares_of_the_kernels_that_its_feature_depends_on():
    toy = toys.independent_channels()
    target = circuits.locate_feature(toy.model, "logit:1", toy.batches[0][0])
    scored = circuits.score_kernels(target, toy.batches)
    circuit = circuits.top_k(scored, 6)
    (axes,) = circuit.plot()
    shares = [int(marks.sum()) / int(circuit.relevant[name].sum()) for name, marks in circuit.masks.items()]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(shares)
    assert axes.figure.get_suptitle() == "6 of 30 kernels that logit:1 depends on"
    (axes,) = scored.plot(["conv"])
    assert sorted(axes.lines[0].get_ydata()) == pytest.approx(sorted(scored["conv"][target.relevant["conv"]].tolist()))
    assert axes.get_ylabel() == "gate score of kernels"
    with pytest.raises(SiteError, match="no layer is called cnv; near matches: conv"):
        scored.plot(["cnv"])
    with pytest.raises(SiteError, match="no layer is called cnv; near matches: conv"):
        scored["cnv"]


def test_a_smaller_network_is_drawn_as_what_it_keeps(profile):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)).eval()
    batch = torch.rand(8, 3, 8, 8)
    found = channelscope.groups(model, batch)
    ranking = channelscope.Ranking("by hand", "", "high", {"0": np.arange(4.0)}, found.sites, (3, 8, 8))
    (axes,) = channelscope.prune(ranking, found, [batch], macs=0.5).plot()
    assert [bar.get_height() for bar in axes.patches] == [0.5]


def test_what_layers_discard_is_drawn_beside_the_images():
    images = data.read_images(data.ImageSource("digits", images=40))
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.Conv2d(2, 2, 3, bias=False), torch.nn.Flatten()).eval()
    options = discarding.CIDOptions(side=4)
    analysis = discarding.DiscardingAnalysis(model, images.test.take(2).with_batch_size(1), images.calibration, ["0", "1"], options)
    assert "not measured yet" in repr(analysis)
    axes = analysis.plot()
    assert [each.get_title().removesuffix(" *") for each in axes[[0, 1, 2]]] == [f"image {images.test.indices[0]}", "0", "1"]
    drawn = np.asarray(axes[4].images[0].get_array())
    second = next(result for result in analysis.results if result.layer.name == "0" and result.index[0] == images.test.indices[1])
    np.testing.assert_allclose(drawn.flatten(), second.entropy[0].numpy())
    np.testing.assert_allclose(axes[3].images[0].get_array()[..., 0], images.test.pixels(torch.tensor([1]))[0, 0] / 255)
    assert [len(analysis.plot(["1"])), len(axes)] == [5, 7]
    with pytest.raises(SiteError, match="no layer is called 2"):
        analysis.plot(["2"])
    assert "CID" in repr(analysis)
    assert "not measured yet" not in repr(analysis)


def test_tallies_are_drawn_with_their_intervals():
    whole, half = Tally(100.0, 90.0), Tally(100.0, 60.0)
    (axes,) = plot({"whole": whole, "half": half})
    (line,) = (each for each in axes.lines if len(each.get_xdata()) == 2)
    assert sorted(line.get_xdata()) == [0.6, 0.9]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half", "whole"]
    ends = sorted(end for collection in axes.collections for path in collection.get_paths() for end in path.vertices[:, 0])
    assert ends == pytest.approx(sorted([*half.accuracy_interval(), *whole.accuracy_interval()]))


def test_a_benchmark_is_drawn_as_accuracy_against_its_budget_with_intervals():
    rows = [
        {"score": score, "budget": budget, "accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1,
         "images": 100, "allocation": "global", "repair": "none", "epochs": 0, "seed": 0}
        for score, level in (("l2", 0.5), ("random", 0.3)) for budget, accuracy in ((0.3, level), (0.5, level + 0.2))
    ]  # fmt: skip
    (axes,) = plot(named(rows, "benchmark"))
    lines = {line.get_color(): line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2}
    assert sorted(lines.values()) == [[0.3, 0.5], [0.5, 0.7]]
    assert len(axes.collections) == 2
