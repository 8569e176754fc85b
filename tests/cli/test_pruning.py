"""prune as a user meets it: one command leaves a whole folder, and every bad input is one sentence and status 2."""

import errno
import json
import re
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from channelscope import tables, zoo
from channelscope.cli import pruning
from channelscope.errors import FormatError
from channelscope.network.module_state import weights_hash
from channelscope.pruning import folder as folders
from channelscope.pruning.distillation import DistillationPlan, distill
from channelscope.pruning.folder import load_pruned
from channelscope.zoo.training_run import History
from cli.commands import refused, run, small_network
from image_files import write_folder

LATENCIES = ["latency", "latency_low", "latency_high"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small network on disk, trained a little, and what prune makes of it."""
    path = tmp_path_factory.mktemp("pruning")
    given, _ = small_network(path)
    assert run("prune", *given, "--images", "100", "--macs", "0.6", "--out", path / "small", "--export", "pt2") == 0
    return path, given


def test_one_command_leaves_a_whole_folder(place):
    path, _ = place
    files = {each.name for each in (path / "small").iterdir()}
    assert files >= {"weights.safetensors", "recipe.json", "check.safetensors", "pruning.csv", "run.json", "report.html", "network.pt2"}
    frame = tables.read(path / "small" / "pruning.csv").set_index("state")
    assert list(frame.index) == ["original", "pruned", "repaired"]
    card = (path / "small" / "README.md").read_text()
    for state, row in frame.iterrows():
        assert f"| {state} | {row.accuracy:.1%} [{row.accuracy_low:.1%}, {row.accuracy_high:.1%}] | {row.macs:,.0f} |" in card
    assert frame.loc["repaired", "kept"] <= 0.6
    assert frame.loc["repaired", "macs"] == frame.loc["pruned", "macs"]
    small = load_pruned(path / "small")
    assert sum(each.numel() for each in small.parameters()) == frame.loc["repaired", "parameters"]
    recipe = json.loads((path / "small" / "recipe.json").read_text())
    assert recipe["made"]["score"] == "reconstruction"
    assert recipe["made"]["repair"] == "least_squares"
    exported = torch.export.load(path / "small" / "network.pt2").module()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), small(images), rtol=1e-3, atol=1e-4)
    page = (path / "small" / "report.html").read_text()
    assert "smaller network" in page
    assert "repaired" in page


def test_random_channels_follow_the_seed(place):
    path, given = place
    kept = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        options = ("--score", "random", "--repair", "none", "--seed", seed)
        assert run("prune", *given, "--images", "60", "--macs", "0.7", *options, "--out", path / name) == 0
        kept[name] = json.loads((path / name / "recipe.json").read_text())["kept"]
    assert kept["one"] == kept["again"] != kept["two"]


@pytest.mark.parametrize(
    ("score", "repair", "allocation"), [("l2", "none", "uniform"), ("taylor_weight", "batchnorm", "global"), ("capture", "peers", "global")]
)
def test_every_choice_runs(place, score, repair, allocation, capsys):
    path, given = place
    options = ("--score", score, "--repair", repair, "--allocation", allocation)
    assert run("prune", *given, "--images", "60", "--macs", "0.7", *options, "--out", path / score) == 0
    states = list(tables.read(path / score / "pruning.csv")["state"])
    assert states == (["original", "pruned"] if repair == "none" else ["original", "pruned", "repaired"])
    assert "multiply-adds" in capsys.readouterr().err
    load_pruned(path / score)


def test_the_weights_of_the_original_are_hashed_once(place, monkeypatch):
    path, given = place
    hashed = []
    for module in [each for name, each in sys.modules.items() if name.startswith("channelscope.") and "weights_hash" in vars(each)]:
        monkeypatch.setattr(module, "weights_hash", lambda model: hashed.append(weights_hash(model)) or hashed[-1])
    options = ("--images", "60", "--macs", "0.7", "--repair", "none", "--out", path / "hashed")
    assert run("prune", *given, *options) == 0
    facts = [json.loads((path / "hashed" / name).read_text()) for name in ("recipe.json", "run.json")]
    assert hashed.count(hashed[0]) == 1
    assert all(hashed[0] in json.dumps(each) for each in facts)


def test_a_budget_out_of_reach_is_refused_or_the_closest_taken(place, capsys):
    path, given = place
    options = ("--images", "60", "--macs", "0.001", "--score", "l1", "--repair", "none", "--out", path / "closest")
    said = refused(capsys, "prune", *given, *options)
    assert "cannot be met; the smallest budget is 0." in said
    assert "(--closest takes it): of what is then left, " in said
    assert run("prune", *given, *options, "--closest") == 0
    frame = tables.read(path / "closest" / "pruning.csv").set_index("state")
    smallest = float(said.split("smallest budget is ")[1].split()[0])
    assert smallest - 0.001 <= frame.loc["pruned", "kept"] <= smallest


def test_weights_that_depend_on_the_image_are_refused_before_anything_is_ranked(tmp_path, capsys, monkeypatch):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torch.nn import functional as F\n\n\nclass Scaled(nn.Conv2d):\n    def forward(self, x):\n"
        "        return F.conv2d(x, self.weight * x.mean(), self.bias)\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a, self.b, self.c = Scaled(1, 8, 3), Scaled(8, 8, 3), nn.Linear(8, 10)\n\n"
        "    def forward(self, x):\n        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))\n"
    )
    monkeypatch.setattr(pruning, "make_ranking", lambda *_: pytest.fail("ranked"))
    said = refused(capsys, "prune", f"{tmp_path / 'net.py'}:Net", "--images", "60", "--macs", "0.8", "--out", tmp_path / "out")
    assert "cannot be met; the smallest budget is 1.000" in said
    assert "b holds" in said


def test_the_original_teaches_the_smaller_network(place, capsys, monkeypatch):
    path, given = place
    options = (
        "--images",
        "60",
        "--macs",
        "0.5",
        "--score",
        "l1",
        "--repair",
        "batchnorm",
        "--distill",
        "--distill-epochs",
        "2",
        "--out",
        path / "distilled",
    )
    plans = []
    monkeypatch.setattr(pruning, "distill", lambda *given: plans.append(given[-1]) or distill(*given))
    assert run("prune", *given, *options, "--distill-epochs", "2", "--precision", "bfloat16") == 0
    assert plans == [DistillationPlan(epochs=2, precision="bfloat16")]
    recipe = json.loads((path / "distilled" / "recipe.json").read_text(encoding="utf-8"))["made"]
    assert (recipe["distilled_in"], recipe["distilled_epochs"]) == ("bfloat16", 2)
    said = capsys.readouterr().err
    assert "images to distill on are few" in said
    before, after = map(float, re.findall(r"loss on the judging images ([\d.e-]+) nats before, ([\d.e-]+) after", said)[0])
    frame = tables.read(path / "distilled" / "pruning.csv").set_index("state")
    assert list(frame.index) == ["original", "pruned", "repaired", "distilled"]
    assert frame.loc["distilled", "macs"] == frame.loc["pruned", "macs"]
    assert after < before or "the network stays as it was" in said
    weights = load_file(path / "distilled" / "weights.safetensors")
    assert torch.equal(weights["conv1.weight"], load_pruned(path / "distilled").conv1.weight)

    assert said.index("images to distill on are few") < said.index("evaluation of the original")
    assert "images to distill on are few" in refused(capsys, "prune", *given, *options, "--macs", "0.001")  # before anything is computed


def test_a_distillation_that_does_harm_is_said_to_be_undone(place, monkeypatch):
    path, given = place
    options = ("--images", "60", "--macs", "0.5", "--score", "l1", "--repair", "batchnorm")
    assert run("prune", *given, *options, "--out", path / "untaught") == 0
    monkeypatch.setattr(pruning, "DistillationPlan", partial(pruning.DistillationPlan, lr=1.0))
    assert run("prune", *given, *options, "--distill", "--distill-epochs", "1", "--out", path / "harmed") == 0
    frame = tables.read(path / "harmed" / "pruning.csv").set_index("state")
    assert frame.loc["distilled", "loss"] == frame.loc["repaired", "loss"]
    assert "Distillation made it worse" in (path / "harmed" / "report.html").read_text(encoding="utf-8")
    assert "Distillation made it worse" not in (path / "untaught" / "report.html").read_text(encoding="utf-8")


def test_a_distillation_that_diverges_leaves_the_network_from_before(place, capsys, monkeypatch):
    path, given = place
    options = ("--images", "60", "--macs", "0.5", "--score", "l1", "--repair", "batchnorm")
    assert run("prune", *given, *options, "--out", path / "closed") == 0
    monkeypatch.setattr(pruning, "DistillationPlan", partial(pruning.DistillationPlan, lr=1e30))
    said = refused(capsys, "prune", *given, *options, "--distill", "--out", path / "diverged")
    assert re.search(r"the loss of distillation is (nan|inf) at step \d+ of epoch \d; .*the network in \S+ is the one from before", said)
    assert list(tables.read(path / "diverged" / "pruning.csv")["state"]) == ["original", "pruned", "repaired"]
    closed, diverged = (load_file(path / name / "weights.safetensors") for name in ("closed", "diverged"))
    assert all(torch.equal(value, diverged[name]) for name, value in closed.items())


def test_a_fine_tuning_that_diverges_leaves_the_network_from_before(place, capsys, monkeypatch):
    path, given = place
    options = ("--images", "60", "--macs", "0.5", "--score", "l1", "--repair", "batchnorm")
    assert run("prune", *given, *options, "--out", path / "untuned") == 0
    monkeypatch.setattr(pruning.zoo, "finetuning_schedule", lambda *about, **how: zoo.Schedule(epochs=1, lr=1e30))
    said = refused(capsys, "prune", *given, *options, "--finetune", "1", "--out", path / "burst")
    assert re.search(r"epoch 1: the loss is (nan|inf); .*the network in \S+ is the one from before that", said)
    untuned, burst = (load_file(path / name / "weights.safetensors") for name in ("untuned", "burst"))
    assert all(torch.equal(value, burst[name]) for name, value in untuned.items())


NORMALIZED = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 10))
"""


def test_networks_normalized_by_layer_norm_are_trained_and_fine_tuned_by_adamw(capsys, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NORMALIZED)
    name, out = f"{tmp_path / 'net.py'}:Net", tmp_path / "trained"
    assert run("train", name, "--epochs", "1", "--out", out) == 0
    assert "AdamW with learning rate 0.001" in capsys.readouterr().err
    assert History.read(out).settings["schedule"]["optimizer"] == "adamw"
    assert run("train", name, "--epochs", "1", "--optimizer", "sgd", "--out", tmp_path / "sgd") == 0
    assert "SGD with learning rate 0.03" in capsys.readouterr().err
    said = refused(capsys, "train", name, "--epochs", "1", "--optimizer", "sgd", "--out", out)
    assert "holds another training run: its schedule is" in said
    small = ("--images", "60", "--macs", "0.7", "--score", "l2", "--finetune", "1", "--out", tmp_path / "small")
    schedules, real = [], zoo.finetune
    monkeypatch.setattr(zoo, "finetune", lambda *given, **how: (schedules.append(given[3]), real(*given, **how))[1])
    assert run("prune", name, "--weights", out / "trained.safetensors", *small) == 0
    assert [(schedule.optimizer, schedule.lr) for schedule in schedules] == [("adamw", pytest.approx(0.0001))]


def test_a_set_without_training_images_is_not_fine_tuned_on(place, capsys, tmp_path):
    path, given = place
    write_folder(tmp_path / "few", dict.fromkeys("0123456789", 4), gray=True)
    said = refused(capsys, "prune", *given, "-d", f"folder:{tmp_path / 'few'}", "--finetune", "1", "--out", path / "few")
    assert "there are no training images: a set of fewer than 1,000 images without parts" in said
    assert "removal" not in said


def test_the_original_is_evaluated_once_for_all_runs(place, capsys):
    path, given = place
    options = ("--images", "60", "--macs", "0.7", "--score", "l2", "--repair", "none", "--test", "100")
    assert run("prune", *given, *options, "--out", path / "first") == 0
    (stored,) = path.glob("evaluation-*-100-test.json")
    assert f"kept in {stored}" in capsys.readouterr().err
    assert run("prune", *given, *options, "--out", path / "second") == 0
    assert f"{stored}, from an earlier run" in capsys.readouterr().err
    first, second = (tables.read(path / name / "pruning.csv").drop(columns=LATENCIES) for name in ("first", "second"))
    assert first.equals(second)
    assert run("prune", *given, *options, "--mean", "0.3", "--std", "0.5", "--out", path / "third") == 0
    assert "kept in" in capsys.readouterr().err  # the same weights and numbers of images, but other images


def test_the_speed_of_the_result_is_measured(place, capsys, monkeypatch):
    path, given = place
    few = {"runs": 3, "runtimes": ("eager", "onnxruntime")}  # compilers take long; test_timing.py has them
    monkeypatch.setattr(pruning, "compare_runtimes", partial(pruning.compare_runtimes, **few))
    options = ("--images", "60", "--macs", "0.7", "--score", "l2", "--repair", "none", "--speed")
    assert run("prune", *given, *options, "--out", path / "timed") == 0
    assert re.search(r"A pass takes \d\.\d+ \[.*\] \(n = 3 runs\) of the original's time at best \(", capsys.readouterr().err)
    frame = tables.read(path / "timed" / "pruning_speed.csv")
    assert list(frame["runtime"]) == ["eager"] * 2 + ["onnxruntime"] * 2
    assert "time at best (" in (path / "timed" / "report.html").read_text()


def test_fine_tuning_trains_and_replaces(place):
    path, given = place
    before = load_file(path / "small" / "weights.safetensors")
    assert run("prune", *given, "--images", "60", "--macs", "0.6", "--finetune", "1", "--out", path / "small") == 0
    frame = tables.read(path / "small" / "pruning.csv").set_index("state")
    assert list(frame.index) == ["original", "pruned", "repaired", "fine-tuned"]
    assert frame.loc["fine-tuned", "loss"] < frame.loc["repaired", "loss"]
    assert not torch.equal(load_file(path / "small" / "weights.safetensors")["conv1.weight"], before["conv1.weight"])
    load_pruned(path / "small")


def test_silent_channels_are_said_and_go_first(place, capsys):
    path, given = place
    state = load_file(path / "net.safetensors")
    state["layer1.0.conv1.weight"][2] = 0
    save_file(state, path / "silent.safetensors")
    arguments = (given[0], "--weights", path / "silent.safetensors", "--images", "60", "--macs", "0.9")
    assert run("prune", *arguments, "--score", "overlap", "--repair", "none", "--out", path / "silent") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "have no value and go first, such as layer1.0.conv1[2]" in said
    kept = json.loads((path / "silent" / "recipe.json").read_text())["kept"]["marks"]["layer1.0.conv1"]["marked"]
    assert 2 not in kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--macs", "0.001"), "cannot be met; the smallest budget is 0."),
        (("--macs", "1.5"), "expected a fraction of the multiply-adds"),
        (("--score", "beauty"), "no score is called beauty"),
        (("--repair", "magic"), "magic"),
    ],
)
def test_bad_input_leaves_nothing(place, capsys, options, message):
    path, given = place
    assert message in refused(capsys, "prune", *given, "--images", "60", "--out", path / "bad", *options)
    assert not list(path.glob("bad*"))


def test_a_full_disk_and_a_foreign_folder(place, capsys, monkeypatch):
    path, given = place
    (path / "thesis").mkdir(exist_ok=True)
    (path / "thesis" / "thesis.txt").write_text("three years")
    options = ("--images", "60", "--score", "l1", "--repair", "none")
    assert "holds something else" in refused(capsys, "prune", *given, *options, "--out", path / "thesis")
    before = {each.name: each.read_bytes() for each in (path / "small").iterdir() if each.is_file()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    assert "No space left on device" in refused(capsys, "prune", *given, *options, "--out", path / "small")
    assert {each.name: each.read_bytes() for each in (path / "small").iterdir() if each.is_file()} == before


def test_the_file_of_the_network_may_move(place, tmp_path):
    path, given = place
    model, _ = zoo.load(given[0], "digits")
    (path / "net.py").rename(tmp_path / "net.py")
    try:
        found = load_pruned(path / "small", model)
    finally:
        (tmp_path / "net.py").rename(path / "net.py")
    assert weights_hash(found) == weights_hash(load_pruned(path / "small"))


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A network of two images, and a file with the second."""
    path = tmp_path_factory.mktemp("guided")
    (path / "two.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)\n\n"
        "    def forward(self, x, y):\n        return self.c(torch.relu(self.b(torch.relu(self.a(x) + self.a(y)))).mean((2, 3)))\n"
    )
    save_file({"y": torch.rand(1, 1, 8, 8)}, path / "y.safetensors")
    return path, f"{path / 'two.py'}:Two"


def test_a_network_of_two_inputs_takes_an_example(guided):
    path, name = guided
    example = ("--example", path / "y.safetensors")
    assert run("axes", name, *example, "--images", "80", "--out", path / "axes") == 0
    assert set(tables.read(path / "axes" / "channels.csv")["site"]) == {"b"}
    assert run("prune", name, *example, "--images", "60", "--macs", "0.6", "--export", "pt2", "--out", path / "small") == 0
    small = load_pruned(path / "small")
    assert torch.equal(zoo.extra_inputs(small)["y"], load_file(path / "y.safetensors")["y"])
    options = ("--scores", "l1", "--budgets", "0.6", "--repairs", "none", "--images", "60", "--test", "40")
    assert run("benchmark", name, *example, *options, "--finetune", "1", "--out", path / "bench") == 0
    assert "scratch" in set(tables.read(path / "bench" / "benchmark.csv")["repair"])


def test_a_network_of_two_inputs_without_them_is_refused_in_one_sentence(guided, capsys):
    path, name = guided
    said = refused(capsys, "prune", name, "--images", "60", "--out", path / "bad")
    assert "the forward pass of Two takes images and y; the example lacks y: pass --example FILE, with tensors of these names" in said
    save_file({"z": torch.rand(1, 1, 8, 8)}, path / "z.safetensors")
    assert "has z" in refused(capsys, "prune", name, "--example", path / "z.safetensors", "--images", "60", "--out", path / "bad")
    save_file({"y": torch.rand(1, 1, 5, 5)}, path / "y5.safetensors")
    assert "(1, 8, 8)" in refused(capsys, "prune", name, "--example", path / "y5.safetensors", "--images", "60", "--out", path / "bad")
    assert "nothing there" in refused(capsys, "prune", name, "--example", path / "no.safetensors", "--out", path / "bad")
    assert not (path / "bad").exists()


def test_a_folder_without_its_example_is_refused(guided, tmp_path):
    path, name = guided
    options = ("--images", "60", "--repair", "none", "--score", "l1", "--out", tmp_path / "small")
    assert run("prune", name, "--example", path / "y.safetensors", *options) == 0
    (tmp_path / "small" / "example.safetensors").unlink()
    with pytest.raises(FormatError, match="example\\.safetensors is missing"):
        load_pruned(tmp_path / "small")


def test_a_latency_is_met_as_measured_and_the_table_is_kept(place, capsys, monkeypatch):
    path, given = place
    options = ("--images", "60", "--score", "l2", "--repair", "none", "--closest", "--round", "2", "--latency-batch", "8")
    tables_before = len(list((path / "fast").parent.glob("latency-*.json")))
    monkeypatch.setattr(pruning, "measure_latency", partial(pruning.measure_latency, runs=3, max_noise=float("inf")))
    assert run("prune", *given, *options, "--latency", "0.9", "--out", path / "fast") == 0
    said = capsys.readouterr().err
    assert "pruning to 90% of the time" in said
    assert re.search(
        r"time of the smaller network: \d\.\d+ ± \d\.\d+ of the original's, asked for 0.9, predicted \d\.\d+; widths in multiples of 2",
        said,
    )
    kept = list(path.glob("latency-*-cpu-*-b8-float32.json"))
    assert len(kept) == tables_before + 1
    assert json.loads((path / "fast" / "recipe.json").read_text())["made"]["measured_latency"] > 0
    assert run("prune", *given, *options, "--latency", "0.95", "--out", path / "faster") == 0
    assert f"{kept[0]}, from an earlier run" in capsys.readouterr().err
    load_pruned(path / "faster")


def test_blocks_may_go(place, capsys):
    path, given = place
    assert run("prune", *given, "--images", "60", "--score", "l2", "--macs", "0.5", "--blocks", "--out", path / "blocks") == 0
    recipe = json.loads((path / "blocks" / "recipe.json").read_text())["made"]
    said = capsys.readouterr().err
    assert (f"{len(recipe['blocks_left_out'])} residual blocks are left out" in said) == bool(recipe["blocks_left_out"])
    assert tables.read(path / "blocks" / "pruning.csv")["kept"].iloc[-1] <= 0.5
    load_pruned(path / "blocks")


@pytest.mark.parametrize(("flag", "value", "said"), [
    ("--latency", "1.5", "latency: expected a fraction of the time of a pass above 0 and at most 1, received 1.5"),
    ("--round", "0", "expected 1 or more, received 0 and 1"),
])  # fmt: skip
def test_a_budget_out_of_range_is_refused(place, capsys, flag, value, said):
    path, given = place
    assert said in refused(capsys, "prune", *given, "--images", "60", flag, value, "--out", path / "none")


STREAMS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.narrow, self.norm = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)
        self.wide, self.head = nn.Conv2d(16, 32, 3), nn.Linear(32, 10)
        first, second = nn.init.orthogonal_(torch.empty(16, 16)), nn.init.orthogonal_(torch.empty(16, 24))
        self.narrow.weight.data = (first @ torch.diag(20 * 0.6 ** torch.arange(16.0)) @ second)[:, :, None, None]
        nn.init.normal_(self.head.weight, std=3.0)

    def forward(self, x):
        return self.head(self.wide(self.norm(self.narrow(self.stem(x).relu()))).relu().mean((2, 3)))
"""


@pytest.mark.parametrize("macs", [0.6, 0.3])
def test_linear_streams_are_turned_where_that_is_nearer_to_the_original(tmp_path, capsys, macs):
    """Sixteen channels that all hold a bit of everything; in another basis few hold nearly all."""
    (tmp_path / "net.py").write_text(STREAMS)
    network, out = f"{tmp_path / 'net.py'}:Net", tmp_path / "small"
    assert run("prune", network, "--images", "200", "--test", "50", "--macs", str(macs), "--rotate", "--out", out) == 0
    found = re.search(r"1 linear stream in another basis: ([\d.e-]+) nats .* images, ([\d.e-]+) in .*, so (\w+) ", capsys.readouterr().err)
    assert found is not None
    other, own, taken = float(found[1]), float(found[2]), found[3]
    assert taken == ("the" if other < own else "their")
    recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))["made"]
    assert (recipe["rotate"], recipe["rotated"]) == (True, other < own)
    assert ("the channels left there are mixtures" in (out / "report.html").read_text(encoding="utf-8")) == (other < own)
    small = load_pruned(out, zoo.build(network, classes=10, channels=1, image_size=8))
    kept = tables.read(out / "pruned_layers.csv").set_index("site")["kept"]
    assert small.narrow.out_channels == small.wide.in_channels == kept["narrow"] < 16
    frame = tables.read(out / "pruning.csv").set_index("state")
    assert abs(frame.loc["repaired", "loss"] - frame.loc["original", "loss"]) < 0.05


def test_that_linear_streams_can_be_turned_is_said_where_there_are_any(tmp_path, capsys):
    (tmp_path / "net.py").write_text(STREAMS)
    given = ("--images", "60", "--test", "50", "--macs", "0.6")
    assert run("prune", f"{tmp_path / 'net.py'}:Net", *given, "--out", tmp_path / "small") == 0
    assert "1 linear stream can be written in another basis: --rotate also tries that" in capsys.readouterr().err
    for network, *more in ((f"{tmp_path / 'net.py'}:Net", "--score", "l2"), ("resnet20(width=4)",)):
        out = tmp_path / network[-3:]
        assert run("prune", network, *more, *given, "--out", out) == 0
        assert "--rotate" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "why"),
    [(("--score", "l2"), "expected --score reconstruction"), ((), "no stream that layers alone write and read")],
)
def test_networks_and_scores_that_have_nothing_to_turn_are_refused(place, capsys, monkeypatch, more, why):
    path, given = place
    monkeypatch.setattr(pruning, "make_ranking", lambda *_: pytest.fail("ranked"))
    assert why in refused(capsys, "prune", *given, "--images", "60", "--rotate", *more, "--out", path / "turned")
