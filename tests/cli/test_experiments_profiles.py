"""Communities, propagation, gradients and trajectories as a user runs them, and what is refused."""

import numpy as np
import pytest

from channelscope import tables
from channelscope.profiling.collect import load as load_profile
from cli.commands import refused, run, small_network


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return small_network(tmp_path_factory.mktemp("small"))


class TestCommunities:
    def test_tables_and_the_report(self, network, tmp_path, capsys):
        _, profile = network
        assert run("communities", profile, "--out", tmp_path) == 0
        assert "report.html" in capsys.readouterr().out
        assert {path.stem for path in tmp_path.glob("*.csv")} == {"communities", "community_depth", "community_nodes", "community_edges"}
        frame = tables.read(tmp_path / "communities.csv")
        assert frame.site.nunique() == len(load_profile(profile).sites)

    def test_without_shards_and_weights(self, network, tmp_path):
        _, profile = network
        assert run("communities", profile, "--no-intervals", "--no-weighted", "--share", "0.3", "--out", tmp_path) == 0
        frame = tables.read(tmp_path / "communities.csv")
        assert frame.modularity_low.isna().all()
        assert np.isfinite(frame.modularity).any()

    def test_a_share_that_is_none(self, network, capsys, tmp_path):
        _, profile = network
        assert "share is within (0, 1], received 2" in refused(capsys, "communities", profile, "--share", "2", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestPropagation:
    def test_tables_and_the_report(self, network, tmp_path, capsys):
        given, profile = network
        arguments = ("--images", "80", "--profile", profile, "--permutations", "20", "--out", tmp_path)
        assert run("propagation", *given, *arguments) == 0
        assert "report.html" in capsys.readouterr().out
        assert {path.stem for path in tmp_path.glob("*.csv")} == {"propagation", "propagation_mean", "propagation_axes"}
        frame = tables.read(tmp_path / "propagation_axes.csv")
        assert len(frame) == 4
        assert frame.p.between(1 / 21, 1).all()

    def test_a_profile_of_other_weights(self, network, capsys, tmp_path):
        (name, *_), profile = network
        said = refused(capsys, "propagation", name, "--seed", "3", "--profile", profile, "--out", tmp_path / "out")
        assert "the network given has weights" in said
        assert not (tmp_path / "out").exists()


class TestGradients:
    def test_tables_and_the_report(self, network, tmp_path, capsys):
        given, profile = network
        assert run("gradients", *given, "--images", "80", "--profile", profile, "--out", tmp_path) == 0
        assert "report.html" in capsys.readouterr().out
        assert {path.stem for path in tmp_path.glob("*.csv")} == {"gradients", "gradient_layers", "gradient_skipped", "simulation"}
        layers = tables.read(tmp_path / "gradient_layers.csv")
        assert len(layers) == len(load_profile(profile).sites)
        assert layers.identity.max() < 1e-3

    def test_one_site_pooled(self, network, tmp_path):
        given, profile = network
        chosen = ("--readout", "pooled", "--layers", "conv1")
        assert run("gradients", *given, "--images", "80", "--profile", profile, *chosen, "--out", tmp_path) == 0
        assert set(tables.read(tmp_path / "gradients.csv").site) == {"conv1"}

    def test_a_site_or_readout_that_is_none(self, network, capsys, tmp_path):
        given, profile = network
        arguments = ("gradients", *given, "--images", "80", "--profile", profile, "--out", tmp_path / "out")
        assert "near matches: conv1" in refused(capsys, *arguments, "--layers", "conv0")
        assert "pooled" in refused(capsys, *arguments, "--readout", "all")
        assert not (tmp_path / "out").exists()
