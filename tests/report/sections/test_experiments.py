"""What the sections of the experiments say, from tables with known numbers."""

import numpy as np
import pytest

from channelscope import tables
from channelscope.experiments import ablation_tables, gradients, hulls, propagation, trajectory
from channelscope.experiments import communities as communities_tables
from channelscope.report import figures
from channelscope.report.page import write_report
from channelscope.report.sections import SECTIONS, axes, experiments
from channelscope.tables.run_folder import RunFolder

ROOMS = (ablation_tables, communities_tables, gradients, hulls, propagation, trajectory)
SCHEMAS = {each.name: each for room in ROOMS for each in vars(room).values() if isinstance(each, tables.Schema)}

FACTS = {"title": "Tiny", "network": "tiny", "data": "noise", "images": 100, "weights": "0" * 64}


def table(name, rows):
    return tables.fill(SCHEMAS[name], rows)


def run(folder, *frames):
    """A run folder with these tables, read back."""
    for frame in frames:
        tables.write(frame, folder / f"{frame.attrs['name']}.csv")
    tables.write_json(FACTS, folder / "run.json")
    return RunFolder.read(folder)


def recovered():
    rows = []
    for site, depth in (("all layers", np.nan), ("conv1", 0)):
        for name, subset, value in (
            ("hull", "all", 0.5),
            ("hull", "controls", 0.6),
            ("random", "controls", 0.2),
            ("mean", "controls", 0.1),
        ):
            row = {"site": site, "depth": depth, "quantity": "kl", "replacement": name, "baseline": "silence", "subset": subset}
            rows.append({**row, "recovered": value, "low": value - 0.1, "high": value + 0.1, "n": 40, "damage": 0.3})
    return table("recovered", rows)


def correlations():
    values = {"l2": 0.7, "overlap": -0.4, "capture": 0.1, "relevance": 0.05}
    rows = [
        {
            "outcome": outcome,
            "score": name,
            "rho": sign * rho,
            "low": sign * rho - 0.05,
            "high": sign * rho + 0.05,
            "layers": 3,
            "n": 40,
            "pooled": 0.1,
        }
        for outcome, sign in (("damage_kl", 1), ("recovered_hull_kl", -1))
        for name, rho in values.items()
    ]
    return table("ablation_correlations", rows)


def partial():
    row = {"outcome": "damage_kl", "given": "relevance capture", "plain": -0.4, "layers": 3, "n": 40}
    known = {"overlap": -0.3, "support": np.nan, "excess": 0.2}
    rows = [{**row, "score": name, "rho": rho, "low": rho - 0.1, "high": rho + 0.1} for name, rho in known.items()]
    return table("ablation_partial", rows)


class TestAblation:
    def test_what_is_repaid_with_its_controls(self, tmp_path):
        (said,) = experiments.ablation_sentences(run(tmp_path, recovered()))
        assert said == (
            "Of the KL divergence that ablation causes, replacement sets (hulls) recover 0.50 [0.40, 0.60] (n = 40 channels), "
            "among the channels with "
            "controls they recover 0.60 [0.50, 0.70] (n = 40 channels), as many random peers 0.20 [0.10, 0.30] (n = 40 channels), "
            "and the mean 0.10 [0.00, 0.20] (n = 40 channels)."
        )

    def test_the_scores_that_knew_strongest_first_whatever_their_sign(self, tmp_path):
        damage, shares = experiments.ablation_sentences(run(tmp_path, correlations()))
        assert damage.startswith("Damage correlates most with ")
        places = [damage.index(words) for words in ("0.70 [0.65, 0.75]", "−0.40 [−0.45, −0.35]", "0.10 [0.05, 0.15]")]
        assert places == sorted(places)
        assert shares.startswith("The share that hulls recover correlates most with ")

    def test_peers_beyond_what_a_channel_says(self, tmp_path):
        (said,) = experiments.ablation_sentences(run(tmp_path, partial()))
        assert "task information and input capture: peer overlap −0.30 [−0.40, −0.20] (n = 40 channels)." in said
        assert "support" not in said

    def test_what_a_reader_must_be_told_comes_last(self, tmp_path):
        told = table("notes", [{"note": "40 images are too few for 3 channels"}])
        assert experiments.ablation_sentences(run(tmp_path, recovered(), told))[-1] == "40 images are too few for 3 channels."

    def test_nothing_is_said_of_nothing(self, tmp_path):
        assert experiments.ablation_sentences(run(tmp_path)) == []


class TestHulls:
    def channels(self, *sizes):
        rows = [
            {"site": "a", "depth": 0, "channel": place, "size": size, "support": 0.5 if size else np.nan, "saturated": size == 10}
            for place, size in enumerate(sizes)
        ]
        return table("hulls", rows)

    def test_hulls_that_are_full(self, tmp_path):
        said = experiments.hull_sentences(run(tmp_path, self.channels(1, 2, 10, 3)))
        assert said == ["1 of 4 hulls (25.0 %) are full before they reach their threshold."]

    def test_silent_channels_are_counted_apart(self, tmp_path):
        assert "1 channel does not vary and has no hull." in experiments.hull_sentences(run(tmp_path, self.channels(1, 0, 2)))

    def test_layers_have_intervals_and_n(self, tmp_path):
        rows = [
            {"site": name, "depth": depth, "channels": 8, "size": size, "size_low": size - 0.5, "size_high": size + 0.5}
            for depth, (name, size) in enumerate((("a", 2.5), ("b", 4.0), ("c", 3.0)))
        ]
        said = experiments.hull_sentences(run(tmp_path, self.channels(1, 2), table("hull_layers", rows)))
        assert said[0] == (
            "Mean number of members of a hull: 3.00 [2.50, 3.50] (n = 8 channels) in c, the median layer; "
            "from 2.50 [2.00, 3.00] (n = 8 channels) in a to 4.00 [3.50, 4.50] (n = 8 channels) in b."
        )


def drawn_graphs():
    nodes = [
        {"site": site, "depth": depth, "graph": graph, "channel": channel, "community": channel // 2, "x": channel * 0.1, "y": depth * 0.2}
        for depth, site in enumerate(("a", "b", "c", "d"))
        for graph in ("R", "S")
        for channel in range(4)
    ]
    edges = [
        {
            "site": node["site"],
            "depth": node["depth"],
            "graph": node["graph"],
            "channel": node["channel"],
            "peer": node["channel"] + 1,
            "weight": 1.0,
        }
        for node in nodes
        if node["channel"] % 2 == 0
    ]
    return table("community_nodes", nodes), table("community_edges", edges)


class TestGraphs:
    def test_modularity_with_its_interval(self, tmp_path):
        rows = [{"graph": "R", "modularity": 0.4, "modularity_low": 0.3, "modularity_high": 0.5, "rho": -0.9, "n": 5}]
        (said,) = experiments.community_sentences(run(tmp_path, table("community_depth", rows)))
        assert said == "Modularity of shared information (R): 0.40 [0.30, 0.50] (n = 5 layers); Spearman's ρ with depth −0.90."

    def test_both_graphs_of_three_layers_are_drawn(self, tmp_path):
        (drawing,) = experiments.community_drawings(run(tmp_path, *drawn_graphs()))
        titles = [axes.get_title() for axes in drawing.figure.axes]
        assert titles == ["a, R", "c, R", "d, R", "a, S", "c, S", "d, S"]
        assert all(len(axes.collections) == 2 for axes in drawing.figure.axes)

    def test_without_graphs_there_is_no_drawing(self, tmp_path):
        assert experiments.community_drawings(run(tmp_path)) == []
        assert experiments.community_sentences(run(tmp_path)) == []


def test_propagation_names_the_four_ways(tmp_path):
    rows = [{"axes": "local → target", "rho": 0.1, "low": 0.0, "high": 0.2, "plain": 0.1, "null_mean": 0.0, "p": 0.02, "n": 7}]
    (said,) = experiments.propagation_sentences(run(tmp_path, table("propagation_axes", rows)))
    assert (
        said == "From local to target: mean partial rank correlation 0.10 [0.00, 0.20] (n = 7 links), p = 0.020 against shuffled channels."
    )
    assert experiments.propagation_sentences(run(tmp_path / "none")) == []


class TestTheory:
    def layers(self):
        rows = [
            {
                "site": name,
                "depth": depth,
                "cosine": value,
                "cosine_low": value - 0.1,
                "cosine_high": value + 0.1,
                "identity": 0.0001,
                "n": 9,
            }
            for depth, (name, value) in enumerate((("a", 0.5), ("b", 0.2), ("c", 0.3)))
        ]
        return table("gradient_layers", rows)

    def test_the_range_over_layers_and_the_identity(self, tmp_path):
        said = axes.gradient_sentences(run(tmp_path, self.layers()))
        assert said[0] == (
            "The mean |cosine| of the two directions goes from 0.20 [0.10, 0.30] (n = 9 channels) in b to 0.50 [0.40, 0.60] "
            "(n = 9 channels) in a; the median layer has 0.30 (n = 3 layers)."
        )
        assert said[1].startswith("The identity w'g = 0 holds to 0.0001")

    def test_the_simulation_from_start_to_end(self, tmp_path):
        rows = [
            {"system": "network", "step": step, "alignment": value, "alignment_low": value - 0.1, "alignment_high": value + 0.1, "n": 5}
            for step, value in ((0, 0.6), (10, 0.2), (20, 0.0))
        ]
        (said,) = axes.gradient_sentences(run(tmp_path, table("simulation", rows)))
        assert "alignment 0.60 [0.50, 0.70] (n = 5 starts) at the start, 0.00 [−0.10, 0.10] (n = 5 starts) after 20 steps" in said


class TestTrajectory:
    @pytest.mark.parametrize(
        ("verdict", "words"), [("holds", "the direction holds."), ("reversed", "is reversed."), ("open", "is undecided: the interval")]
    )
    def test_each_direction_is_told_plainly(self, tmp_path, verdict, words):
        row = {"quantity": "hull_size", "first": 3.0, "last": 4.0, "change": 1.0, "change_low": 0.5, "change_high": 1.5, "n": 3}
        frame = table("trajectory_change", [{**row, "published_first": 3.08, "published_last": 4.27, "verdict": verdict}])
        (said,) = axes.trajectory_sentences(run(tmp_path, frame))
        assert "Mean hull size goes from 3.000 to 4.000, a change of 1.000 [0.500, 1.500] (n = 3 runs); published 3.080 to 4.270" in said
        assert words in said

    def test_what_was_not_published_is_not_judged(self, tmp_path):
        row = {"quantity": "gap", "first": 0.1, "last": 0.2, "change": 0.1, "change_low": np.nan, "change_high": np.nan, "n": 1}
        frame = table("trajectory_change", [{**row, "published_first": np.nan, "published_last": np.nan, "verdict": ""}])
        assert axes.trajectory_sentences(run(tmp_path, frame)) == []


def test_a_folder_with_every_table_becomes_one_page(tmp_path):
    """Charts are drawn from the tables as they are, and the graphs as a picture."""
    whole = run(tmp_path, recovered(), correlations(), partial(), *drawn_graphs(), TestTheory().layers())
    page = write_report(tmp_path).read_text()
    for words in ("Rank correlation with the damage of ablation", "Recovered share of the damage", "Angle of the two directions"):
        assert words in page
    names = {path.name for path in figures.write(whole, tmp_path / "figures")}
    assert {"ablations.svg", "gradients.png"} <= names


def test_tables_of_earlier_versions_are_shown_in_their_sections(tmp_path):
    """An earlier name stands for the present one, and a table of the present name comes first."""
    frames = (correlations(), *drawn_graphs(), TestTheory().layers())
    for frame in frames:
        tables.write(frame, tmp_path / f"{tables.EARLIER_NAMES[frame.attrs['name']]}.csv")
    again = run(tmp_path, partial())
    assert set(again.tables) == {frame.attrs["name"] for frame in (*frames, partial())}
    page = write_report(tmp_path).read_text()
    assert [name for name in ("ablations", "communities", "gradients") if f'<section id="{name}"' not in page] == []
    assert "Lesion" not in page
    newer = correlations().head(1)
    assert len(run(tmp_path, newer).table("ablation_correlations")) == 1


def test_every_section_claims_its_tables_once():
    claimed = [name for section in SECTIONS for name in (section.table, *section.more)]
    assert len(claimed) == len(set(claimed))
