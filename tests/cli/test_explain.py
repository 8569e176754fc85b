"""Graphs, propagation, theory and trajectories as a user runs them, and what is refused."""

import numpy as np
import pytest

from channelscope import store, tables
from cli.commands import refused, run, small_network


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return small_network(tmp_path_factory.mktemp("small"))


class TestGraphs:
    def test_tables_and_the_report(self, network, tmp_path, capsys):
        _, profile = network
        assert run("graphs", profile, "--out", tmp_path) == 0
        assert "report.html" in capsys.readouterr().out
        assert {path.stem for path in tmp_path.glob("*.csv")} == {"graphs", "graph_depth", "graph_nodes", "graph_edges"}
        frame = tables.read(tmp_path / "graphs.csv")
        assert frame.site.nunique() == len(store.load(profile).sites)

    def test_without_shards_and_weights(self, network, tmp_path):
        _, profile = network
        assert run("graphs", profile, "--no-shards", "--no-weighted", "--share", "0.3", "--out", tmp_path) == 0
        frame = tables.read(tmp_path / "graphs.csv")
        assert frame.modularity_low.isna().all()
        assert np.isfinite(frame.modularity).any()

    def test_a_share_that_is_none(self, network, capsys, tmp_path):
        _, profile = network
        assert "share is within (0, 1], received 2" in refused(capsys, "graphs", profile, "--share", "2", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
