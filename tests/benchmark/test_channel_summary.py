"""Why was it kept? The answer joins real run folders, made by the commands a user would give."""

import json
import shutil

import pytest

from channelscope import tables
from channelscope.benchmark.channel_summary import EvidenceFolder, Finding, answer, channel_summary
from channelscope.circuits import folder
from channelscope.errors import FormatError, InputError, MismatchError, SiteError
from channelscope.pruning.folder import Manifest
from cli.commands import refused, run, small_network

FEATURE = "layer2.0.conv1:1"
ABLATION = ("--test", "40", "--channels", "6", "--controls", "3", "--draws", "20", "--groups", "4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small folder of every command that says something about channels."""
    home = tmp_path_factory.mktemp("runs")
    given, profile = small_network(home)
    few = (*given, "--images", "80")
    assert run("axes", *few, "--profile", profile, "--out", home / "axes") == 0
    assert run("ablate", *few, *ABLATION, "--profile", profile, "--out", home / "ablation") == 0
    assert run("hulls", profile, "--out", home / "hulls") == 0
    assert run("prune", *few, "--out", home / "pruned") == 0
    assert run("circuit", *few, "--held-out", "20", "--feature", FEATURE, "--pictures", "none", "--out", home / "circuit") == 0
    some = ("--strongest", "24", "--clusters", "2")
    assert run("subcircuits", *few, "--feature", FEATURE, *some, "--out", home / "groups") == 0
    return home


ALL = ("axes", "ablation", "hulls", "pruned", "circuit", "groups")


def folders(home, *names):
    return [home / name for name in names or ALL]


def told(home, channel, kind, *names):
    frame = channel_summary(channel, folders(home, *names))["explanation"]
    return frame[frame["evidence"] == kind]["sentence"].tolist()


def ablated_channel(home):
    row = tables.read(home / "ablation" / "ablations.csv").iloc[0]
    return f"{row['site']}:{row['channel']}"


class TestWhatIsSaid:
    def test_a_pruning_says_what_its_recipe_says(self, runs):
        kept = Manifest.read(runs / "pruned" / "recipe.json").kept
        for layer, marks in kept.masks.items():
            for channel in (0, len(marks) - 1):
                (said,) = told(runs, f"{layer}:{channel}", "pruning")
                assert (" kept it" in said) == bool(marks[channel])
                assert f"{int(marks.sum())} of the {len(marks)} channels of {layer}" in said
                assert "score reconstruction, 50 % of the multiply-adds" in said

    def test_an_ablation_says_its_damage_and_what_peers_recover(self, runs):
        frame = tables.read(runs / "ablation" / "ablations.csv")
        row = frame.iloc[0]
        (said,) = told(runs, ablated_channel(runs), "ablations")
        assert tables.format_number(float(row["loss"]), 4) in said
        assert "40 images" in said
        assert "largest" in said
        assert "of the divergence" in said

    def test_scores_stand_by_rank_in_the_layer(self, runs):
        channels = tables.read(runs / "axes" / "channels.csv")
        ranks = channel_summary("conv1:3", folders(runs))["explanation_scores"].set_index("score")
        part = channels[channels["site"] == "conv1"].set_index("channel")
        for score in ("rayleigh", "capture", "overlap", "relevance"):
            place = int(part[score].rank(ascending=False, method="min")[3])
            assert ranks.loc[score, "rank"] == place
            assert ranks.loc[score, "of"] == 4
            assert ranks.loc[score, "value"] == part.loc[3, score]
            assert ranks.loc[score, "above"] == pytest.approx((4 - place) / 3)
        (said,) = told(runs, "conv1:3", "scores")
        assert "among the 4 channels of conv1" in said

    def test_hulls_name_the_peers(self, runs):
        frame = tables.read(runs / "hulls" / "hulls.csv").query("site == 'conv1' and channel == 3")
        (said,) = told(runs, "conv1:3", "hulls")
        assert ", ".join(str(frame.iloc[0]["members"]).split()) in said

    def test_circuits_that_have_its_kernels_are_counted(self, runs):
        homes = {"circuit": runs / "circuit"} | {f"groups/circuit_{group}": runs / "groups" / f"circuit_{group}" for group in (0, 1)}
        for channel in range(4):
            said = told(runs, f"conv1:{channel}", "circuits")
            assert len(said) == len(homes)  # neither the union nor the mixed control is a circuit of its own
            for line, (name, home) in zip(sorted(said), sorted(homes.items()), strict=True):
                own = int(folder.load_mask(home)["conv1"][channel].sum())
                assert name in line
                assert ("has none of" not in line) == (own > 0)
        rows = tables.read(runs / "circuit" / "circuit_kernels.csv")
        first = rows[rows["site"] == "conv1"].iloc[0]
        line = next(line for line in told(runs, f"conv1:{first['channel']}", "circuits") if "groups" not in line)
        share = rows[(rows["site"] == "conv1") & (rows["channel"] == first["channel"])]["saliency"].sum() / rows["saliency"].sum()
        assert f"with {tables.format_percent(float(share))} of the circuit's saliency" in line
        assert "r = " in line

    def test_its_own_circuit_is_no_reason_and_later_layers_serve_none(self, runs):
        assert all(said.endswith("computes it.") for said in told(runs, FEATURE, "circuits"))
        assert all("nothing leads from layer3.0.conv1:2" in said for said in told(runs, "layer3.0.conv1:2", "circuits"))
        (said,) = told(runs, FEATURE, "answer")
        assert "circuit" not in said

    def test_the_answer_counts_what_speaks_for_it(self):
        found = [Finding("pruning", "a", "", True), Finding("pruning", "b", "", False), Finding("circuits", "c", "", None)]
        assert answer("x:1", found) == "x:1: kept by 1 of 2 prunings."
        assert answer("x:1", found[2:]) == "x:1: no run here prunes, ablates or uses it."
        assert answer("x:1", [Finding("ablations", "a", "", True)]) == "x:1: missed in 1 of 1 ablation."


class TestWhatIsMissing:
    def test_every_missing_kind_comes_with_its_command(self, runs):
        said = told(runs, "conv1:2", "missing", "circuit")
        assert [line.partition(":")[0] for line in said] == ["No pruning", "No ablation of it", "No scores", "No replacements"]
        assert "channelscope ablate" in said[1]
        assert "--layers conv1 --all" in said[1]
        assert "--data digits" in said[0]
        assert told(runs, ablated_channel(runs), "missing") in (
            [],
            [f"No circuit of a feature that {ablated_channel(runs).rpartition(':')[0]} leads to"],
        )

    def test_ablations_of_other_channels_are_none_of_this(self, runs):
        done = {f"{row['site']}:{row['channel']}" for row in tables.read(runs / "ablation" / "ablations.csv").to_dict("records")}
        other = next(f"conv1:{channel}" for channel in range(4) if f"conv1:{channel}" not in done)
        assert any(line.startswith("No ablation of it") for line in told(runs, other, "missing"))
        assert told(runs, other, "ablations") == []


class TestWhatIsRefused:
    def test_runs_of_other_weights(self, runs, tmp_path):
        other = shutil.copytree(runs / "axes", tmp_path / "other")
        facts = json.loads((other / "run.json").read_text())
        (other / "run.json").write_text(json.dumps(facts | {"weights": "0" * 64}))
        with pytest.raises(MismatchError, match=r"has weights [0-9a-f]{12} .*, .*other has 000000000000"):
            channel_summary("conv1:1", [runs / "circuit", other])

    def test_names_that_are_none(self, runs):
        with pytest.raises(SiteError, match=r"no channel is called layr2\.0\.conv1:1.*layer2\.0\.conv1:1"):
            channel_summary("layr2.0.conv1:1", folders(runs))
        with pytest.raises(InputError, match="conv1 has channels 0 to 3 in these runs, received 4"):
            channel_summary("conv1:4", folders(runs))
        for text in ("conv1", "conv1:", "conv1:x", ":3", "conv1[3]"):
            with pytest.raises(InputError, match=r"expected layer:channel, such as layer3\.0\.conv2:17"):
                channel_summary(text, folders(runs))

    def test_tables_of_earlier_versions_are_read(self, tmp_path):
        (tmp_path / "run.json").write_text('{"weights": "00"}')
        tables.write(tables.table([{"site": "conv1", "channel": 0}], "lesions"), tmp_path / "lesions.csv")
        assert EvidenceFolder.read(tmp_path).layers() == {"conv1": 1}

    def test_folders_that_are_no_runs(self, tmp_path):
        with pytest.raises(FormatError, match=r"expected a run folder with run\.json"):
            EvidenceFolder.read(tmp_path)
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(FormatError, match="does not say which weights"):
            EvidenceFolder.read(tmp_path)
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(FormatError, match=r"run\.json is damaged"):
            EvidenceFolder.read(tmp_path)


class TestTheCommand:
    def test_the_answer_is_printed_and_reported(self, runs, tmp_path, capsys):
        assert run("explain", "conv1:3", *folders(runs), "--out", tmp_path / "out") == 0
        said = capsys.readouterr()
        assert " ".join(said.err.split()).startswith("conv1:3: kept by 1 of 1 pruning")
        assert said.out.strip().endswith("report.html")
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "Why conv1:3?" in page
        for line in tables.read(tmp_path / "out" / "explanation.csv")["sentence"]:
            assert line.split(",")[0].replace("'", "&#39;") in page

    def test_nothing_is_written_when_the_question_is_wrong(self, runs, tmp_path, capsys):
        out = tmp_path / "out"
        assert "near matches: conv1:3" in refused(capsys, "explain", "convv1:3", *folders(runs), "--out", out)
        assert "expected a run folder" in refused(capsys, "explain", "conv1:3", tmp_path / "none", "--out", out)
        assert not out.exists()


def scored(folder, **scores):
    """A run folder with the scores of one layer's channels."""
    rows = [
        {"site": "conv1", "channel": channel, **dict(zip(scores, row, strict=True))}
        for channel, row in enumerate(zip(*scores.values(), strict=True))
    ]
    tables.write(tables.table(rows, "channels"), folder / "channels.csv")
    tables.write_json({"weights": "0" * 64}, folder / "run.json")
    return folder


def test_places_are_counted_from_the_largest_value(tmp_path):
    home = scored(tmp_path, capture=[float(-channel) for channel in range(24)])
    places = [told(home.parent, f"conv1:{channel}", "scores", home.name)[0].split("(")[1].split(")")[0] for channel in range(24)]
    ends = {2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}
    assert places == ["largest", *(f"{place}{ends.get(place, 'th')} largest" for place in range(2, 25))]


def test_scores_of_one_channel_are_one_sentence(tmp_path):
    home = scored(tmp_path, capture=[0.5, 2.0, 1.0], overlap=[3.0, 0.25, float("nan")])
    (said,) = told(home.parent, "conv1:1", "scores", home.name)
    assert said == f"Scores in {home}, among the 3 channels of conv1: input capture 2.000 (largest), peer overlap 0.250 (2nd largest)."
    frame = channel_summary("conv1:1", [home])["explanation_scores"]
    assert frame[["score", "rank", "of", "above"]].values.tolist() == [["capture", 1, 3, 1.0], ["overlap", 2, 2, 0.0]]
