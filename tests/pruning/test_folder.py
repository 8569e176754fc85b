"""A pruned network comes back as it was, or not at all; what was there before survives whatever fails."""

import copy
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from channelscope import zoo
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.network.cost import cost, macs
from channelscope.network.edits import silence
from channelscope.network.removal.groups import groups
from channelscope.pruning import folder as folders
from channelscope.pruning.cut import cut, cuts, shrink
from channelscope.pruning.folder import Manifest, NetworkSpec, load_pruned, save_pruned
from channelscope.pruning.prune import prune
from channelscope.pruning.repair import repair
from channelscope.ranking import Ranking
from removals import lively

IMAGES = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def control(found, seed=0) -> Ranking:
    draw = np.random.default_rng(seed)
    values = {site.name: draw.random(site.channels) for site in found.sites}
    return Ranking("random", "", "high", values, found.sites, tuple(found.example[0].shape[1:]))


@pytest.fixture(scope="module")
def whole():
    model = zoo.build("resnet20(width=4)", classes=5, channels=3, image_size=16, seed=1)
    found = groups(model, IMAGES[:1])
    return model, found, prune(control(found), found, [IMAGES], macs=0.5)


@pytest.fixture
def saved(whole, tmp_path):
    model, _, made = whole
    return save_pruned(made.model, model, made.kept, tmp_path / "small", settings={"score": "random", "macs": 0.5})


def test_the_card_says_what_it_is_and_how_it_is_loaded(whole, saved, monkeypatch):
    cards = pytest.importorskip("huggingface_hub", reason="the extra hf")
    card = cards.ModelCard.load(saved / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.tags) == (
        "channelscope",
        "image-classification",
        ["channelscope", "pruning"],
    )
    kept = whole[2].kept
    left, channels = kept.count, sum(map(len, kept.masks.values()))
    assert (
        f"resnet20(width=4) with fewer channels, cut by channelscope: {left} of {channels} channels of {len(kept.masks)} layers"
        in card.text
    )
    assert "| score | random |\n| macs | 0.5 |" in card.text
    monkeypatch.chdir(saved.parent)
    names: dict = {}
    exec(card.text.partition("```python\n")[2].partition("```")[0], names)
    with torch.no_grad():
        assert torch.equal(names["model"](IMAGES), whole[2].model(IMAGES))


@torch.no_grad()
def test_it_comes_back_from_its_factory_to_the_bit(whole, saved):
    made = whole[2]
    again = load_pruned(saved)
    assert torch.equal(again(IMAGES), made.model(IMAGES))
    assert not again.training
    recipe = Manifest.read(saved / "recipe.json")
    assert recipe.factory == NetworkSpec("resnet20(width=4)", 5, 3, 16)
    assert recipe.kept == made.kept
    assert recipe.made == {"score": "random", "macs": 0.5}
    assert recipe.versions["torch"] == torch.__version__
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".md", ".safetensors", ".safetensors"]


@torch.no_grad()
def test_a_network_pruned_three_times_comes_back(whole, tmp_path):
    model, _, made = whole
    small = made.model
    for turn in range(2):
        before, found = small, groups(small, IMAGES[:1])
        made = prune(control(found, turn), found, [IMAGES], macs=0.8, method="none")
        small = copy.deepcopy(made.model)
    save_pruned(small, before, made.kept, tmp_path / "thrice")
    for given in (None, model, whole[2].model, before):
        assert torch.equal(load_pruned(tmp_path / "thrice", given)(IMAGES), small(IMAGES))
    recipe = Manifest.read(tmp_path / "thrice" / "recipe.json")
    assert recipe.earlier == (whole[2].kept, cuts(before)[1])
    assert cuts(small) == (*recipe.earlier, recipe.kept)
    assert cuts(model) == ()


@torch.no_grad()
def test_a_network_of_ones_own_is_passed_in(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 14 * 14, 2)).eval()

    model = make(0)
    found = groups(model, IMAGES[:1])
    kept = cut(control(found), found, macs=0.6)
    small = shrink(found, kept)
    save_pruned(small, model, kept, tmp_path / "own")
    with pytest.raises(InputError, match="names no factory"):
        load_pruned(tmp_path / "own")
    fresh = make(9)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert torch.equal(load_pruned(tmp_path / "own", fresh)(IMAGES), small(IMAGES))
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["recipe.json", "weights.safetensors", "check.safetensors"])
@pytest.mark.parametrize("how", ["cut short", "gone", "noise"])
def test_a_damaged_file_is_named(saved, name, how):
    path = saved / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut short" else b"\x00\x01noise" * 20)
    with pytest.raises(FormatError, match=name):
        load_pruned(saved)


class Two(nn.Module):
    """A network with two heads, in a dictionary."""

    def __init__(self):
        super().__init__()
        self.a, self.f, self.g = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x)).mean((2, 3))
        return {"kind": self.f(h), "place": self.g(h)}


def test_a_network_with_two_heads_is_compared_in_both(tmp_path):
    model = Two().eval()
    found = groups(model, torch.zeros(1, 3, 8, 8))
    kept = found.to_subset(np.arange(len(found)) % 2 == 0)
    small = shrink(found, kept)
    save_pruned(small, model, kept, tmp_path / "two")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(load_pruned(tmp_path / "two", model)(x), small(x))
    check = load_file(tmp_path / "two" / "check.safetensors")
    assert check["logits"].shape == (len(check["images"]), 7)


def test_recipes_and_weights_of_different_runs_are_told_apart(whole, saved, tmp_path):
    model, found, made = whole
    other = save_pruned(shrink(found, made.kept), model, made.kept, tmp_path / "other")
    shutil.copy(other / "weights.safetensors", saved)
    with pytest.raises(MismatchError, match=r"is for weights .*another run"):
        load_pruned(saved)
    wider = prune(control(found), found, method="none", macs=0.8)
    third = save_pruned(wider.model, model, wider.kept, tmp_path / "third")
    shutil.copy(third / "weights.safetensors", saved)
    with pytest.raises(FormatError, match=r"weights\.safetensors is damaged, or of another network"):
        load_pruned(saved)


def test_a_network_that_computes_something_else_is_refused(saved):
    stored = folders.load_file(saved / "check.safetensors")
    folders.save_file({"images": stored["images"], "logits": stored["logits"] * 1.01}, saved / "check.safetensors")
    with pytest.raises(MismatchError, match=r"0\.0099 \(relative\) away"):
        load_pruned(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "format 7, this version reads 1"),
        ({"kept": {"marks": {}}}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"factory": {"name": "resnet20"}}, "damaged"),
        ({"factory": {"name": "nothing", "classes": 5, "channels": 3, "image_size": 16}}, "no network is called nothing"),
    ],
)
def test_a_recipe_that_makes_no_sense(saved, change, message):
    path = saved / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((FormatError, InputError), match=message):
        load_pruned(saved)


@pytest.mark.parametrize("fails", ["save_weights", "save_file"])
def test_a_full_disk_leaves_the_previous_result(whole, saved, monkeypatch, fails):
    model, found, made = whole
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, fails, full)
    with pytest.raises(InputError, match=r"No space left on device.*as it was"):
        save_pruned(shrink(found, made.kept), model, made.kept, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_interruption_at_the_last_moment_leaves_the_previous_result(whole, saved, monkeypatch):
    model, found, made = whole
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    replace = folders.os.replace

    def stopped(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_pruned(shrink(found, made.kept), model, made.kept, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_new_result_replaces_the_old_one_and_brings_its_own_files(whole, saved):
    model, found, made = whole
    save_pruned(shrink(found, made.kept), model, made.kept, saved, write_more=lambda path: (path / "note.txt").write_text("new"))
    assert (saved / "note.txt").read_text() == "new"
    assert load_pruned(saved).conv1.out_channels == int(made.kept["conv1"].sum())


def test_a_folder_of_something_else_is_not_touched(whole, tmp_path):
    model, _, made = whole
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="holds something else"):
        save_pruned(made.model, model, made.kept, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


class Shuffled(nn.Module):
    """Heads of attention, and channels that a written-out size splits up."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.out, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x)).view(x.shape[0], 2, 4, 16).transpose(1, 2).reshape(x.shape[0], 8, 16).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(x.shape[0], 16, 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], 16, 8)
        return self.head(torch.relu(self.out(y)).mean(1))


def test_a_rewritten_network_counts_as_cut_is_repaired_and_comes_back_to_the_bit(tmp_path):
    torch.manual_seed(0)
    model = Shuffled().eval()
    found = groups(model, IMAGES[:1])
    assert found.labeled is not None
    assert {name for group in found.members for name in group.sites} == {"first", "qkv", "out"}
    kept = cut(control(found), found, macs=0.6)
    assert 0 < kept["qkv"].sum() < 24
    small = shrink(found, kept)
    assert cost(small, IMAGES[:1]).total_macs == macs(found, kept) <= 0.6 * cost(model, IMAGES[:1]).total_macs
    report = repair(small, found, kept, [IMAGES])
    assert {"qkv", "out", "head"} <= set(report.relative_errors)
    again = load_pruned(save_pruned(small, model, kept, tmp_path / "small"), model)
    assert torch.equal(again(IMAGES), small(IMAGES))


class Gated(nn.Module):
    """Half of the channels is normalized and mixed over positions, and scales the other half."""

    def __init__(self):
        super().__init__()
        self.patch, self.up, self.norm = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 20), nn.LayerNorm(10)
        self.mix, self.down, self.head = nn.Linear(16, 16), nn.Linear(10, 5), nn.Linear(5, 3)

    def forward(self, x):
        u, v = self.up(self.patch(x).flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        v = self.mix(self.norm(v).transpose(-1, -2)).transpose(-1, -2)
        return self.head(torch.relu(self.down(u * v)).mean(1))


def test_a_gate_whose_norm_is_whole_comes_back_to_the_bit(tmp_path):
    torch.manual_seed(0)
    model = lively(Gated())
    found = groups(model, IMAGES[:1])
    assert {tuple(group.members) for group in found.members if group.sites == ("up",)} == {(("up", channel),) for channel in range(10)}
    kept = found.to_subset([group.members[0] not in {("up", 1), ("up", 2), ("up", 8), ("down", 3)} for group in found.members])
    small = shrink(found, kept)
    with torch.no_grad(), silence(model, ~kept):
        expected = model(IMAGES)
    with torch.no_grad():
        assert float((small(IMAGES) - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
        assert float((model(IMAGES) - expected).abs().max()) > 1e-3 * float(expected.abs().max())
    assert (small.up.out_features, small.down.in_features, len(small.norm.weight)) == (17, 7, 10)
    report = repair(small, found, kept, [IMAGES])
    assert {"up", "down"} <= set(report.relative_errors)
    assert report.relative_errors["down"][1] < report.relative_errors["down"][0]
    again = load_pruned(save_pruned(small, model, kept, tmp_path / "small"), model)
    assert torch.equal(again(IMAGES), small(IMAGES))


@pytest.mark.parametrize("kind", ["SwinTransformerBlock", "SwinTransformerBlockV2"])
def test_heads_of_attention_in_functions_are_cut_repaired_and_come_back(tmp_path, kind):
    """In the second version the keys' biases are zeroed before the function, and heads share parameters with the position MLP."""
    from_torchvision = load_torchvision().models.swin_transformer
    torch.manual_seed(0)
    model = lively(from_torchvision.SwinTransformer([4, 4], 16, [2], [4], [2, 2], num_classes=3, block=getattr(from_torchvision, kind)))
    model = model.double()
    images = IMAGES[:6].double()
    found = groups(model, images[:1])
    heads = [group for group in found.members if group.sites == ("features.1.1.attn.qkv",)]
    assert [len(group.members) for group in heads] == [12] * 4  # queries, keys and values of a head are four channels each
    first = next(part for part in found.layers if part.name == "features.1.0.attn.qkv")
    assert cost(model, images[:1]).macs[first.name] == 16 * 48 * 16 == first.taps * first.positions * 48 * 16
    draw = np.random.default_rng(0)
    marks = np.array([group not in heads[1:] and draw.random() < 0.6 for group in found.members])
    marks[[found.members.index(group) for group in heads[:1]]] = True
    other = [index for index, group in enumerate(found.members) if group.sites == ("features.1.0.attn.qkv",)]
    marks[other] = [True, True, False, False]
    kept = found.to_subset(marks)
    small = shrink(found, kept)
    with torch.no_grad(), silence(found.graph, ~kept):
        expected = model(images)
    with torch.no_grad():
        assert float((small(images) - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert small.get_submodule("features.1.0.attn.qkv").out_features == 24
    assert cost(small, images[:1]).total_macs == macs(found, kept) < 0.7 * cost(model, images[:1]).total_macs
    report = repair(small, found, kept, [images])
    assert {"features.1.0.attn.qkv", "features.1.0.attn.proj", "features.1.1.attn.qkv"} <= set(report.relative_errors)
    again = load_pruned(save_pruned(small, model, kept, tmp_path / "small"), model)
    assert torch.equal(again(images), small(images))


def test_a_network_whose_logits_are_all_zero_comes_back(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    for parameter in model[4].parameters():
        nn.init.zeros_(parameter)
    found = groups(model, torch.zeros(1, 3, 4, 4))
    kept = found.to_subset(np.arange(4) != 1)
    save_pruned(shrink(found, kept), model, kept, tmp_path / "small")
    assert load_pruned(tmp_path / "small", model)[0].out_channels == 3


def test_a_network_that_would_be_built_otherwise_is_refused_and_leaves_nothing(tmp_path):
    """The file of the class changes between building and saving, so that the folder could not be loaded."""
    lines = "import torch.nn as nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__("
    (tmp_path / "net.py").write_text(f"{lines}nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten())\n")
    model = zoo.build(f"{tmp_path / 'net.py'}:Net")
    found = groups(model, torch.zeros(1, 3, 4, 4))
    kept = found.to_subset(np.arange(8) > 2)
    small = shrink(found, kept)
    assert load_pruned(save_pruned(small, model, kept, tmp_path / "right"))[0].out_channels == 5
    (tmp_path / "net.py").write_text(f"{lines}nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 2, 1), nn.Flatten())\n")
    with pytest.raises(InputError, match=r"Net cannot be built again as it was pruned .*8 channels at 0, the network 12"):
        save_pruned(small, model, kept, tmp_path / "wrong")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__") == ["right"]


def attending(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "torchvision":
        return lively(load_torchvision().models.swin_transformer.SwinTransformer([4, 4], 16, [2], [4], [2, 2], num_classes=3)).double()
    import timm

    return lively(timm.create_model("test_vit", img_size=16, patch_size=4, depth=1, num_classes=3)).double()


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_widths_of_heads_are_cut_repaired_and_come_back(kind, tmp_path):
    model, images = attending(kind), IMAGES[:6].double()
    with pytest.raises(InputError, match="no choice of heads is called width; near matches: widths"):
        groups(model, images[:1], heads="width")
    found = groups(model, images[:1], heads="widths")
    qkv = next(site.name for site in found.sites if site.name.endswith("qkv"))
    here = [index for index, group in enumerate(found.members) if group.sites == (qkv,)]
    marks = np.ones(len(found), dtype=bool)
    marks[here[::3]] = False
    kept = found.to_subset(marks)
    small = shrink(found, kept)
    widths = model.get_submodule(qkv).out_features
    assert small.get_submodule(qkv).out_features == int(kept[qkv].sum()) < widths
    with torch.no_grad(), silence(found.graph, ~kept):
        expected = model(images)
    with torch.no_grad():
        assert float((small(images) - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert cost(small, images[:1]).total_macs == macs(found, kept) < cost(model, images[:1]).total_macs
    assert qkv in repair(small, found, kept, [images]).relative_errors
    again = load_pruned(save_pruned(small, model, kept, tmp_path / "small"), model)
    assert torch.equal(again(images), small(images))
