"""The command line as a user meets it: each command runs, and every bad input is one sentence and status 2."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import version
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from channelscope import cli, scores, tables, zoo
from channelscope.cli.measure import channel_pictures, strongest_first
from channelscope.data.sources import ImageSource
from channelscope.profiling.collect import collect
from channelscope.profiling.collect import load as load_profile
from channelscope.profiling.collect import save as save_profile
from cli.commands import refused, run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an untrained digits network and its profile."""
    folder = tmp_path_factory.mktemp("cli")
    model, _ = zoo.load("resnet20", "digits")
    zoo.save_weights(model.state_dict(), folder / "net.safetensors")
    assert run("profile", "resnet20", "--out", folder / "net.profile", "--images", "120", "--weights", folder / "net.safetensors") == 0
    return folder


def test_help_explains_every_command_in_a_whole_sentence(capsys):
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split()).replace("Grad- CAM", "Grad-CAM")
    for name in cli.FUNCTIONS:
        sentence = " ".join(cli.function_of(name).__doc__.split("\n\n")[0].split())
        assert f" {name} {sentence}" in text
        assert sentence.endswith(".")
    for name in ("demo", "train", "profile", "merge", "scores", "axes", "report", "ablate", "prune", "circuit", "discard"):
        assert f" {name} " in text


HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "scipy.stats")
NETWORK = ("resnet20(width=2)",)
LEAST = {
    "demo": (),
    "sites": NETWORK,
    "list": ("scores",),
    "info": ("runs/a",),
    "doctor": (),
    "profile": (*NETWORK, "--out", "a.profile"),
    "merge": ("a.profile", "b.profile", "--out", "c.profile"),
    "scores": ("a.profile", "--out", "a.csv", "--scores", "support,overlap", "--shrinkage", "0.5"),
    "axes": (*NETWORK, "-w", "net.safetensors", "--mean", "0.1,0.2,0.3", "--sensitivity"),
    "evaluate": (*NETWORK, "--part", "train"),
    "ablate": (*NETWORK, "--layers", "conv1,layer1.0.conv1", "--all", "--hull-order", "prefix"),
    "hulls": ("a.profile", "--hull-size", "3", "--out", "runs/a"),
    "communities": ("a.profile", "--no-intervals", "--out", "runs/a"),
    "propagation": (*NETWORK, "--preset", "paper"),
    "gradients": (*NETWORK, "--readout", "pooled"),
    "trajectory": ("runs/a", "runs/b", "--out", "runs/c", "--layer-count", "3"),
    "prune": (*NETWORK, "--macs", "0.7", "--out", "runs/a", "--closest"),
    "benchmark": (*NETWORK, "--budgets", "0.5,0.4", "--seeds", "0,1", "--out", "runs/a"),
    "export": ("runs/a", "--format", "pt2"),
    "circuit": (*NETWORK, "--feature", "conv1:0", "--keep", "0.2", "--out", "runs/a"),
    "subcircuits": (*NETWORK, "--feature", "conv1:0", "--out", "runs/a"),
    "discard": (*NETWORK, "--out", "runs/a", "--no-cap", "--probe-noise", "0.02"),
    "faithfulness": (*NETWORK, "--out", "runs/a", "--tuning", "8"),
    "report": ("runs/a",),
    "compare": ("runs/a", "runs/b"),
    "explain": ("conv1:0", "runs/a", "runs/b", "--out", "runs/c"),
    "train": (*NETWORK, "--out", "runs/a", "--epochs", "2"),
}
"""command → a call of it"""


def test_every_command_has_a_call_here():
    assert set(LEAST) == set(cli.FUNCTIONS)


@pytest.mark.parametrize("name", LEAST)
def test_the_options_of_every_command_go_through_a_file(name, capsys, tmp_path):
    assert run(name, *LEAST[name], "--dry-run") == 0
    printed = capsys.readouterr().out
    (tmp_path / "config.toml").write_text(printed)
    assert run(name, "--config", tmp_path / "config.toml", "--dry-run") == 0
    assert capsys.readouterr().out == printed
    options = tomllib.loads(printed)[name]
    for flag, value in itertools.pairwise(LEAST[name]):
        if flag.startswith("--") and not value.startswith("-"):
            assert str(options[flag.removeprefix("--")]) == value
    (tmp_path / "config.toml").write_text(f"[{name}]\nuot = 1\n")
    assert f"no option of {name} is called uot" in refused(capsys, name, "--config", tmp_path / "config.toml")


@pytest.mark.parametrize("words", [(), ("-w", "-x.pt"), ("-q",), ("-vq",), ("--quiet",), ("-h",), ("--dry-run",)], ids=str)
def test_the_first_line_says_what_will_be_done_and_only_where_something_is(monkeypatch, capsys, words):
    loaded = []
    monkeypatch.setattr(cli, "function_of", loaded.append)
    for name in LEAST:
        cli._load(name, [*LEAST[name], *words])
        sentence = cli.sentence_of(name)
        said = f"{name}: {sentence[0].lower()}{sentence[1:-1]}\n"
        assert capsys.readouterr().err == ("" if words and words[0] != "-w" else said)
    assert loaded == list(LEAST)


def test_a_command_that_is_interrupted_while_it_is_loaded_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "function_of", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cli._load("axes", ["resnet20"])
    assert capsys.readouterr().err.splitlines()[1:] == ["interrupted; nothing was kept"]


@pytest.mark.parametrize("completing", [True, False])
def test_nothing_is_said_while_words_are_completed(monkeypatch, completing):
    said = []
    monkeypatch.setattr(cli, "_load", lambda name, words: said.append((name, words)))
    monkeypatch.setattr(cli, "sys", SimpleNamespace(modules={}))
    group = typer.main.get_command(cli.app)
    name, found, rest = group.resolve_command(typer.Context(group, resilient_parsing=completing), ["list", "models"])  # type: ignore[attr-defined]
    assert (name, found.name, rest) == ("list", "list", ["models"])
    assert said == ([] if completing else [("list", ["models"])])


def test_the_first_line_comes_before_pytorch_is_loaded():
    call = [sys.executable, "-X", "importtime", "-m", "channelscope", "list", "data"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    said = lines.index("list: list the networks, data sets, scores or circuit criteria that can be named")
    loaded = [place for place, line in enumerate(lines) if re.match(r"import time:.*\| +(torch|pandas|numpy)$", line)]
    assert loaded
    assert said < min(loaded)
    assert done.stdout.startswith("name ")


def test_a_command_that_writes_a_folder_has_one_of_its_own():
    commands = typer.main.get_command(cli.app).commands
    outs = {name: param.default for name, each in commands.items() for param in each.params if param.name == "out"}
    files = {name for name, default in outs.items() if default is None or str(default).rpartition("/")[0] != "runs"}
    assert files == {"profile", "merge", "scores", "export"}
    folders = [str(default) for name, default in outs.items() if name not in files]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", LEAST)
def test_the_examples_in_the_help_of_every_command_can_be_typed(name, capsys):
    assert run(name, "-h") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: ")
    assert "\nThis call:\n" in text
    lines = text.partition("\nExamples:\n")[2].splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["channelscope", name]
        assert run(*words[1:], "--dry-run") == 0


@pytest.mark.parametrize("earlier", cli.EARLIER_COMMANDS)
def test_commands_of_earlier_versions_are_refused_with_their_present_names(capsys, earlier):
    present = cli.EARLIER_COMMANDS[earlier]
    assert f"No such command '{earlier}'. It is now '{present}'." in refused(capsys, earlier, "x")
    assert run(present, "--help") == 0


def test_the_version_is_printed(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"channelscope {version('channelscope')}\n"


def test_the_module_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "channelscope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"channelscope {version('channelscope')}\n"


def test_profile_scores_and_merge(place, capsys):
    assert load_profile(place / "net.profile").images == 120
    assert run("scores", place / "net.profile", "--out", place / "scores.csv", "--standard-errors") == 0
    frame = tables.read(place / "scores.csv")
    assert {"site", "channel", "capture", "capture_se", "relevance"} <= set(frame)
    capsys.readouterr()
    said = refused(capsys, "merge", place / "net.profile", place / "net.profile", "--out", place / "sum.profile")
    assert "net.profile is given twice, and its images would be counted twice" in said
    shutil.copy(place / "net.profile", place / "copy.profile")
    said = refused(capsys, "merge", place / "net.profile", place / "copy.profile", "--out", place / "sum.profile")
    assert "120 of the 120 images of one are among the 120 of the other" in said
    assert not (place / "sum.profile").exists()


def test_profiles_of_disjoint_images_merge(place, capsys):
    model, images = zoo.load("resnet20", "digits", place / "net.safetensors")
    for name, split in (("one", images.test.take(30)), ("other", images.validation.take(20))):
        save_profile(collect(model, split), place / f"{name}.profile")
    assert run("merge", place / "one.profile", place / "other.profile", "--out", place / "both.profile") == 0
    assert load_profile(place / "both.profile").images == 50


def test_axes_writes_a_report_that_report_writes_again(place, capsys):
    out = place / "axes"
    arguments = [
        "axes",
        "resnet20",
        "--weights",
        place / "net.safetensors",
        "--images",
        "120",
        "--out",
        out,
        "--profile",
        place / "net.profile",
    ]
    assert run(*arguments) == 0
    assert "report.html" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["images"] == 120
    mass = tables.read(out / "task_mass.csv")
    assert mass.site.tolist() == [site.name for site in load_profile(place / "net.profile").sites]
    known = mass.task_low > 0
    assert ((mass.duplicate_share - mass.duplicate / (mass.duplicate + mass.nonreplaceable)).abs() < 1e-9).equals(known)
    assert (mass.note == "").equals(known)
    assert "Task information that peers have" in (out / "report.html").read_text(encoding="utf-8")
    first = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert (out / "report.html").read_bytes() == first


def test_axes_shows_pictures_only_when_asked_and_takes_them_away_again(place, tmp_path):
    out = tmp_path / "axes"
    call = ("axes", "resnet20", "--weights", place / "net.safetensors", "--images", "120", "--out", out, "--profile", place / "net.profile")
    assert run(*call) == 0
    assert not (out / "channel_pictures").exists()
    assert not (out / "channel_pictures.csv").exists()
    assert run(*call, "--pictures", "strongest") == 0
    channels, shown = tables.read(out / "channels.csv"), tables.read(out / "channel_pictures.csv")
    for site, layer in channels.groupby("site"):
        assert shown[shown.site == site].channel.unique().tolist() == layer.nlargest(3, "relevance").channel.tolist()
    assert (shown.groupby(["site", "channel"]).size() == 6).all()
    assert sorted(path.stem for path in (out / "channel_pictures").iterdir()) == sorted(channels.site.unique())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Images that drive channels" in page
    assert page.count('src="data:image/svg+xml') == channels.site.nunique()
    assert run(*call) == 0
    assert len(tables.read(out / "channel_pictures.csv")) == 0
    assert not list((out / "channel_pictures").iterdir())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Images that drive channels" not in page
    assert 'src="data:image/svg+xml' not in page


def test_channels_that_are_the_same_for_all_images_leave_their_place_to_the_next(tmp_path):
    """Channel 1 of the first layer says the most before its ReLU and is 0 behind it; two of the second layer are 0 already before."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Conv2d(1, 5, 3), "
        "nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    model, images = zoo.load(f"{tmp_path / 'net.py'}:Net", ImageSource("digits", images=60))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, -100.0, 1.0, 1.0, 1.0]))
        model[2].bias.fill_(1.0)
        model[2].weight[:2] = 0
    zoo.save_weights(model.state_dict(), tmp_path / "net.safetensors")
    channels = scores.table(collect(model, images.calibration), ["relevance"])
    channels.loc[channels.site.eq("0") & channels.channel.eq(1), "relevance"] = 9.0
    frame = channel_pictures(tmp_path, model, images, channels)["channel_pictures"]
    first = strongest_first(channels)
    assert (first["0"][0], sorted(first["2"])) == (1, [2, 3])
    expected = {"0": first["0"][1:4], "2": first["2"]}
    assert {site: rows.channel.unique().tolist() for site, rows in frame.groupby("site")} == expected
    for name, numbers in expected.items():
        sheet = (tmp_path / "channel_pictures" / f"{name}.svg").read_text(encoding="utf-8")
        assert sorted(re.findall(r">(\d)</text>", sheet)) == sorted(map(str, numbers))


def test_missing_and_corrupt_weights(place, capsys, tmp_path):
    out = tmp_path / "x.profile"
    assert "found nothing there" in refused(capsys, "profile", "resnet20", "--out", out, "--weights", tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    assert "bad.safetensors" in refused(capsys, "profile", "resnet20", "--out", out, "--weights", tmp_path / "bad.safetensors")
    assert not list(tmp_path.glob("*.profile*"))


@pytest.mark.parametrize(
    ("near", "call"),
    [
        ("trained.safetensors", ("sites", "resnet20", "--weights", "{}/traned.safetensors")),
        ("photos", ("sites", "resnet20", "--data", "folder:{}/phtos")),
        ("pictures", ("sites", "resnet20", "--data", "hf:{}/picture")),
        ("nets.py", ("sites", "{}/net.py:Net")),
        ("net.profile", ("hulls", "{}/nets.profile")),
        ("photos", ("info", "{}/phots")),
        ("photos", ("sites", "{}/phots")),
        ("photos", ("trajectory", "{}/phots")),
    ],
    ids=["weights", "folder", "hf", "network", "profile", "info", "pruned", "training"],
)
def test_a_wrong_name_of_a_file_is_refused_with_the_nearest_one(capsys, tmp_path, near, call):
    for name in ("trained.safetensors", "nets.py", "net.profile"):
        (tmp_path / name).touch()
    for name in ("photos", "pictures"):
        (tmp_path / name).mkdir()
    assert f"near matches: {tmp_path / near}" in refused(capsys, *(part.format(tmp_path) for part in call))


@pytest.mark.parametrize(
    ("flag", "said"), [("--epochs", "epochs of at least 1, received 0"), ("--lr", "positive learning rate, received 0")]
)
def test_a_training_of_no_epochs_or_without_a_rate_is_refused(capsys, tmp_path, flag, said):
    assert said in refused(capsys, "train", "resnet20(width=2)", flag, "0", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_state_dict_that_does_not_fit_names_keys(place, capsys, tmp_path):
    weights = load_file(place / "net.safetensors")
    first = sorted(weights)[0]
    del weights[first]
    save_file(weights, tmp_path / "short.safetensors")
    assert first in refused(capsys, "profile", "resnet20", "--out", tmp_path / "x.profile", "--weights", tmp_path / "short.safetensors")


def test_a_pickle_that_is_no_state_dict(capsys, tmp_path):
    torch.save(["not", "a", "state", "dict"], tmp_path / "list.pt")
    assert "expected named tensors, received list" in refused(
        capsys, "profile", "resnet20", "--out", tmp_path / "x.profile", "--weights", tmp_path / "list.pt"
    )


def test_a_corrupt_image_is_named_or_counted(capsys, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (32, 32), (number, 9 * number % 255, 77)).save(tmp_path / "set" / label / f"{number}.png")
    for number in range(10, 20):
        (tmp_path / "set" / "cat" / f"{number}.png").write_bytes(b"\x89PNG broken")
    arguments = ["profile", "resnet20", "--out", tmp_path / "x.profile", "--data", f"folder:{tmp_path / 'set'}"]
    assert re.search(r"cat/1\d\.png", refused(capsys, *arguments))
    assert run(*arguments, "--skip-corrupt") == 0


def test_empty_and_unknown_data(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "profile", "resnet20", "--out", tmp_path / "x.profile", "--data", f"folder:{tmp_path / 'empty'}")
    assert "digits" in refused(capsys, "profile", "resnet20", "--out", tmp_path / "x.profile", "--data", "mnist")


def test_an_unknown_network_lists_what_there_is(capsys, tmp_path):
    assert "resnet20" in refused(capsys, "profile", "resnet19", "--out", tmp_path / "x.profile")


def test_a_profile_of_other_weights_is_refused(place, capsys, tmp_path):
    said = refused(capsys, "axes", "resnet20", "--seed", "3", "--profile", place / "net.profile", "--out", tmp_path / "out")
    assert "collect it again" in said
    assert not (tmp_path / "out").exists()


def test_truncated_and_foreign_profiles(place, capsys, tmp_path):
    whole = (place / "net.profile").read_bytes()
    (tmp_path / "cut.profile").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(capsys, "scores", tmp_path / "cut.profile", "--out", tmp_path / "s.csv")
    shutil.copy(place / "net.safetensors", tmp_path / "weights.profile")
    assert "not a profile" in refused(capsys, "scores", tmp_path / "weights.profile", "--out", tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_unknown_scores_and_targets(place, capsys, tmp_path):
    assert "there are: " in refused(capsys, "scores", place / "net.profile", "--out", tmp_path / "s.csv", "--scores", "magic")
    assert "margin" in refused(capsys, "scores", place / "net.profile", "--out", tmp_path / "s.csv", "--target", "magic").replace("'", "")


def test_too_few_images_are_said_where_they_are_too_few(place, capsys, tmp_path):
    assert run("profile", "resnet20", "--out", tmp_path / "few.profile", "--images", "30") == 0
    assert run("scores", tmp_path / "few.profile", "--out", tmp_path / "s.csv") == 0
    assert "layer2.0.conv1: 30 images are too few to regress each of 32 channels" in " ".join(capsys.readouterr().err.split())
    assert tables.read(tmp_path / "s.csv").query("site == 'layer3.0.conv1'")["support"].isna().all()


def test_a_folder_without_a_run(capsys, tmp_path):
    assert "run.json" in refused(capsys, "report", tmp_path)


NETS = """
import torch
from torch import nn


class Plain(nn.Sequential):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class Flat(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(32 * 32, num_classes))


class Fixed(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(4 * 62 * 62, num_classes))


class Four(Plain):
    def __init__(self, num_classes=10):
        super().__init__(4)


class Two(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class Broken(Plain):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        nn.init.constant_(self[0].weight, float("nan"))


class Branching(Plain):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    file = tmp_path_factory.mktemp("nets") / "nets.py"
    file.write_text(NETS)
    return file


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Flat", "has no convolution or linear layer whose channels can be told apart"),
        ("Fixed", "cannot take images of shape"),
        ("Two", "to have 2 channels, but got 1 channels instead"),
        ("Four", "labels"),
        ("Broken", "at 0: activations are not finite"),
        ("Branching", "nets.py:39 (forward): the pass depends in Python on the values of a tensor"),
    ],
)
def test_networks_that_cannot_be_profiled(nets, capsys, tmp_path, name, said):
    out = tmp_path / "x.profile"
    assert said in refused(capsys, "profile", f"{nets}:{name}", "--out", out, "--images", "60", "--size", "32")
    assert not list(tmp_path.iterdir())


def test_images_of_other_sizes_in_one_folder_are_brought_to_one(nets, capsys, tmp_path):
    for label, side in (("cat", 32), ("dog", 48)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (side, side), (number * 9, 33, side)).save(tmp_path / "set" / label / f"{number}.png")
    arguments = ["profile", f"{nets}:Plain", "--out", tmp_path / "x.profile", "--data", f"folder:{tmp_path / 'set'}"]
    assert "size" in refused(capsys, *arguments)
    assert not (tmp_path / "x.profile").exists()
    assert run(*arguments, "--size", "24") == 0
    assert load_profile(tmp_path / "x.profile").input_shape == (3, 24, 24)


def test_profiles_of_different_networks_do_not_merge(place, nets, capsys, tmp_path):
    assert run("profile", f"{nets}:Plain", "--out", tmp_path / "other.profile", "--images", "60", "--size", "32") == 0
    said = refused(capsys, "merge", place / "net.profile", tmp_path / "other.profile", "--out", tmp_path / "both.profile")
    assert "profiles can only be added when their weights_hash agree" in said
    assert not (tmp_path / "both.profile").exists()


def test_a_profile_of_another_format_version(place, capsys, tmp_path):
    with safe_open(place / "net.profile", "pt") as file:
        header = json.loads(file.metadata()["channelscope"]) | {"format": 99}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "new.profile", metadata={"channelscope": json.dumps(header)})
    assert "format 99, this version reads" in refused(capsys, "scores", tmp_path / "new.profile", "--out", tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_what_is_said_is_said_to_the_letter(tmp_path, capsys):
    name = f"{tmp_path}/[timm] :two: nets.py:Net"
    assert name.removesuffix(":Net") in refused(capsys, "axes", name)


def test_warnings_are_remarks(capsys, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (8, 8), (number * 20, 33, 7)).save(tmp_path / "set" / "train" / label / f"{number}.png")
    (tmp_path / "set" / "stray").mkdir()
    arguments = ("sites", "resnet20(width=2)", "--data", f"folder:{tmp_path / 'set'}", "--mean", "0.5", "--std", "0.2")
    said = f"note {tmp_path / 'set'}: the parts are train; passed over, for they are none: stray\n"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(*arguments) == 0
        assert said in capsys.readouterr().err
        assert run(*arguments, "-q") == 0
        assert capsys.readouterr().err == ""


def test_help_version_and_the_names_of_commands_need_no_library_of_tensors():
    lines = (
        "import sys; from channelscope import cli\n"
        "for words in (['-h'], ['--version'], []):\n"
        "    sys.argv = ['channelscope', *words]\n"
        "    try:\n        cli.main()\n    except SystemExit:\n        pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_imports_no_charts_clusters_or_published_networks_before_they_are_needed():
    lines = f"import sys, channelscope.cli.inspection; print([name for name in {HEAVY[1:]} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_names_of_commands_are_completed_with_their_sentences():
    group = typer.main.get_command(cli.app)
    found = group.shell_complete(typer.Context(group, info_name="channelscope"), "a")
    assert [(each.value, each.help.split(",")[0]) for each in found] == [
        ("axes", "Measure both axes of every channel"),
        ("ablate", "Ablate channels one by one"),
    ]
    assert [each.value for each in group.shell_complete(typer.Context(group, info_name="channelscope"), "--v")] == ["--version"]
