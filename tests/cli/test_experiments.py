"""Ablations and hulls as a user runs them, and what is refused."""

import json
import re
import sys

import pandas as pd
import pytest

from channelscope import data, tables, zoo
from channelscope.experiments.ablation import ablate
from channelscope.experiments.ablation_plan import AblationPlan
from channelscope.profiling.collect import load as load_profile
from channelscope.tables.run_folder import RunFolder
from cli.commands import refused, run, small_network

ABLATION = sys.modules["channelscope.experiments.ablation"]
FEW = ("--images", "80", "--test", "40", "--channels", "6", "--controls", "3", "--draws", "20", "--groups", "4")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return small_network(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def done(network, tmp_path_factory):
    """A finished ablation run."""
    given, profile = network
    out = tmp_path_factory.mktemp("done")
    assert run("ablate", *given, *FEW, "--profile", profile, "--out", out) == 0
    return out


NAMES = (
    "ablations",
    "ablated_channels",
    "consumers",
    "notes",
    "recovered",
    "ablation_correlations",
    "ablation_matched",
    "ablation_partial",
)


class TestAblate:
    def test_every_table_and_the_report_are_there(self, done):
        assert {path.stem for path in done.glob("*.csv")} == set(NAMES)
        assert "<html" in (done / "report.html").read_text()
        facts = json.loads((done / "run.json").read_text())
        assert facts["images"] == 80
        assert facts["title"].startswith("Ablations in")
        assert "Gaussian" in facts["assumption"]

    def test_the_plan_is_what_was_asked_for(self, done):
        ablations = tables.read(done / "ablations.csv")
        assert ablations.intervention.value_counts().to_dict() == {"silence": 6, "hull": 6, "random": 3, "mean": 3}
        assert ablations.attrs["provenance"]["images"] == 40

    def test_every_score_is_set_beside_the_damage(self, done):
        named = set(tables.read(done / "ablation_correlations.csv").score)
        assert {"capture", "overlap", "support", "compactness", "relevance", "excess", "l2", "taylor_weight", "fisher"} <= named

    def test_what_a_reader_must_know_is_printed(self, network, tmp_path, capsys):
        given, profile = network
        assert run("ablate", *given, *FEW, "--profile", profile, "--out", tmp_path / "out") == 0
        said = capsys.readouterr()
        assert "40 images are too few for" in " ".join(said.err.split())
        assert re.search(r"\(hulls\) recover .* channels\)", " ".join(said.err.split()))
        assert said.out.strip().endswith("report.html")

    def test_it_is_added_beside_other_tables_of_the_same_network(self, network, done, tmp_path):
        given, profile = network
        assert run("hulls", profile, "--out", tmp_path) == 0
        assert run("ablate", *given, *FEW, "--profile", profile, "--out", tmp_path) == 0
        both = RunFolder.read(tmp_path)
        assert both.facts["title"].startswith("Hulls of")
        assert [(call["name"], call["options"].get("test")) for call in both.calls] == [("hulls", None), ("ablate", 40)]
        assert [both.call_of(name)["name"] for name in ("hulls", "ablations")] == ["hulls", "ablate"]
        assert (tmp_path / "hulls.csv").exists()
        pd.testing.assert_frame_equal(tables.read(tmp_path / "ablations.csv"), tables.read(done / "ablations.csv"))

    def test_an_interrupted_run_goes_on_and_gives_the_same_tables(self, network, done, tmp_path, monkeypatch, capsys):
        """Without a profile given: the pass of the first call serves the second one too."""
        given, _ = network
        written = []
        write = ABLATION.AblationStore.write

        def failing(self, *arguments):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(1)
            write(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ABLATION.AblationStore, "write", failing)
            assert run("ablate", *given, *FEW, "--out", tmp_path) == 130
        said = capsys.readouterr().err
        assert f"interrupted; kept {tmp_path / 'network.profile'} (" in said
        assert f"{tmp_path / 'ablation.unfinished'} (ablations measured so far): give the same command again" in said
        assert {path.name for path in tmp_path.iterdir()} == {"ablation.unfinished", "network.profile"}
        written.clear()
        monkeypatch.setattr(ABLATION.AblationStore, "write", lambda *arguments: (written.append(1), write(*arguments)))
        assert run("ablate", *given, *FEW, "--out", tmp_path) == 0
        assert not (tmp_path / "ablation.unfinished").exists()
        sites = tables.read(done / "ablations.csv").site.nunique()
        assert len(written) == sites - 3
        for name in NAMES:
            pd.testing.assert_frame_equal(tables.read(tmp_path / f"{name}.csv"), tables.read(done / f"{name}.csv"))

    def test_all_channels_of_one_site(self, network, tmp_path):
        given, profile = network
        out = ("--all", "--layers", "conv1,layer1.0.conv1", "--out", tmp_path)
        assert run("ablate", *given, *FEW, "--profile", profile, *out) == 0
        assert tables.read(tmp_path / "ablated_channels.csv").groupby("site").size().to_dict() == {"conv1": 4, "layer1.0.conv1": 4}

    def test_a_residual_ablation_says_which_layers_see_it(self, done):
        consumers = tables.read(done / "consumers.csv").set_index("site")
        assert "tied into a residual sum: seen through it by" in consumers.loc["layer2.0.conv2", "note"]


class TestAblateRefuses:
    def test_a_profile_of_other_weights(self, network, capsys, tmp_path):
        (name, *_), profile = network
        said = refused(capsys, "ablate", name, "--seed", "3", *FEW, "--profile", profile, "--out", tmp_path / "out")
        assert re.search(r"with weights \w{12}, the network given has weights \w{12}", said)
        assert not (tmp_path / "out").exists()

    def test_a_profile_of_another_network(self, network, capsys, tmp_path):
        _, profile = network
        assert "the network given has weights" in refused(capsys, "ablate", "resnet20", *FEW, "--profile", profile, "--out", tmp_path / "o")
        assert not (tmp_path / "o").exists()

    def test_a_site_that_is_none_lists_near_matches(self, network, capsys, tmp_path):
        given, profile = network
        arguments = ("ablate", *given, *FEW, "--profile", profile, "--layers", "layer1.0.conv9", "--out", tmp_path / "out")
        assert "no site is called layer1.0.conv9; near matches: layer1.0.conv" in refused(capsys, *arguments)
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_other_weights(self, network, capsys, tmp_path):
        given, profile = network
        (tmp_path / "run.json").write_text(json.dumps({"network": "another", "weights": "0" * 64}))
        said = refused(capsys, "ablate", *given, *FEW, "--profile", profile, "--out", tmp_path)
        assert "holds a run of another with weights 000000000000" in said
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]

    def test_a_damaged_folder(self, network, capsys, tmp_path):
        given, profile = network
        (tmp_path / "run.json").write_text("{")
        assert "run.json is damaged" in refused(capsys, "ablate", *given, *FEW, "--profile", profile, "--out", tmp_path)

    def test_other_images_than_the_folders_profile(self, network, capsys, tmp_path):
        given, profile = network
        (tmp_path / "network.profile").write_bytes(profile.read_bytes())
        said = refused(capsys, "ablate", *given, *FEW, "--images", "90", "--out", tmp_path)
        assert "is of 80 images with seed 0, asked for are 90 with seed 0" in said

    def test_too_few_or_too_many_images(self, network, capsys, tmp_path):
        given, profile = network
        arguments = ("ablate", *given, *FEW, "--profile", profile, "--out", tmp_path / "out")
        assert "3 evaluation images leave some of 4 groups empty" in refused(capsys, *arguments, "--test", "3")
        assert "at least 1" in refused(capsys, *arguments, "--test", "0")
        assert "asked for 5000" in refused(capsys, *arguments, "--test", "5000")
        assert not (tmp_path / "out" / "ablations.csv").exists()

    def test_another_plan_than_the_unfinished_one(self, network, capsys, tmp_path, monkeypatch):
        given, profile = network
        arguments = ("ablate", *given, *FEW, "--profile", profile, "--out", tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(ABLATION, "_ablate_batches", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert run(*arguments) == 130
        assert "another run of ablations: they differ in" in refused(capsys, *arguments, "--ablation", "mean")
        assert (tmp_path / "ablation.unfinished").exists()

    def test_nonsense_numbers(self, network, capsys, tmp_path):
        given, profile = network
        assert "groups of at least 2" in refused(capsys, "ablate", *given, "--groups", "1", "--out", tmp_path / "out")
        assert "--hull-size: expected at least 1, received 0" in refused(
            capsys, "ablate", *given, *FEW, "--profile", profile, "--hull-size", "0", "--out", tmp_path / "out"
        )

    def test_a_missing_profile(self, network, capsys, tmp_path):
        given, _ = network
        assert "no profile at" in refused(capsys, "ablate", *given, *FEW, "--profile", tmp_path / "none", "--out", tmp_path / "out")


class TestHulls:
    def test_tables_of_a_profile(self, network, tmp_path, capsys):
        _, profile = network
        assert run("hulls", profile, "--out", tmp_path) == 0
        assert "report.html" in capsys.readouterr().out
        frame = tables.read(tmp_path / "hulls.csv")
        assert len(frame) == sum(site.channels for site in load_profile(profile).sites)
        assert {path.stem for path in tmp_path.glob("*.csv")} == {"hulls", "hull_curve", "hull_layers"}

    def test_the_rule_is_in_the_flags(self, network, tmp_path):
        _, profile = network
        for order in ("forward", "prefix"):
            arguments = (
                "--hull-order",
                order,
                "--hull-size",
                "2",
                "--hull-absolute",
                "--hull-threshold",
                "0.5",
                "--hull-pool",
                "2",
                "--hull-ridge",
                "0.01",
            )
            assert run("hulls", profile, *arguments, "--out", tmp_path / order) == 0
        forward, prefix = (tables.read(tmp_path / order / "hulls.csv") for order in ("forward", "prefix"))
        assert forward["size"].max() <= 2
        assert (forward.explained.fillna(0) >= prefix.explained.fillna(0) - 1e-6).all()

    def test_too_few_images_are_refused_and_shrinkage_helps(self, network, capsys, tmp_path):
        assert run("profile", *network[0], "--images", "12", "--out", tmp_path / "few.profile") == 0
        said = refused(capsys, "hulls", tmp_path / "few.profile", "--out", tmp_path / "out")
        assert "12 images are too few" in said
        assert not (tmp_path / "out").exists()
        assert run("hulls", tmp_path / "few.profile", "--shrinkage", "oas", "--out", tmp_path / "out") == 0

    def test_no_profile_and_no_order_of_that_name(self, network, capsys, tmp_path):
        _, profile = network
        assert "no profile at" in refused(capsys, "hulls", tmp_path / "none", "--out", tmp_path / "out")
        assert "prefix" in refused(capsys, "hulls", profile, "--hull-order", "backward", "--out", tmp_path / "out").replace("'", "")
        assert run("hulls") == 2
        assert not (tmp_path / "out").exists()


def test_the_library_calls_are_the_commands(network, done):
    """What the command writes is what the function returns."""
    (name, _, weights), profile = network
    model, images = zoo.load(name, data.ImageSource("digits", images=80), weights=weights)
    plan = AblationPlan(channels=6, controls=3, draws=20, groups=4)
    found = ablate(model, load_profile(profile), images.test.take(40), plan, progress=False)
    for frame in found.values():
        kept = tables.read(done / f"{frame.attrs['name']}.csv")
        pd.testing.assert_frame_equal(tables.describe(frame, frame.attrs), kept, check_dtype=False, rtol=1e-9)
