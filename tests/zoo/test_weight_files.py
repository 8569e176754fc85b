"""Weights on disk: what is read, what is refused, and that nothing half-fitting is loaded."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from channelscope.errors import WeightsError
from channelscope.network.module_state import weights_hash
from channelscope.zoo.weight_files import load_weights, read_weights, save_weights


def net(width=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 5))


@pytest.fixture
def source():
    return net(seed=1)


def same(state, model):
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_safetensors_come_back(tmp_path, source):
    save_weights(source.state_dict(), tmp_path / "w.safetensors")
    same(read_weights(tmp_path / "w.safetensors"), source)


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": {"net": state}}]
)
def test_pytorch_files_come_back_wherever_the_state_is(tmp_path, source, wrap):
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    same(read_weights(tmp_path / "w.pth"), source)


def test_the_prefix_of_a_parallel_network_is_dropped(tmp_path, source):
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pt")
    same(read_weights(tmp_path / "w.pt"), source)


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == {"module.a", "b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single_and_nothing_else_changes(tmp_path, dtype):
    state = {"a": torch.randn(3).to(dtype), "b": torch.randn(3).double(), "n": torch.tensor(7)}
    save_weights(state, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {"a": torch.float32, "b": torch.float64, "n": torch.int64}
    assert torch.equal(found["a"], state["a"].float())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.safetensors: expected a weights file .* found nothing there"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="found nothing there"):
        read_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5])
def test_a_truncated_safetensors_file_is_refused(tmp_path, source, keep):
    path = tmp_path / "w.safetensors"
    save_weights(source.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match="corrupt safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("data", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_a_corrupt_pytorch_file_is_refused(tmp_path, data):
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="not a state dictionary that can be read safely"):
        read_weights(tmp_path / "w.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "save", [lambda thing, path: torch.save(thing, path), lambda thing, path: path.write_bytes(pickle.dumps(thing, 2))]
)
def test_a_pickle_is_never_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="save it as safetensors"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_network_is_no_state_dictionary(tmp_path, source):
    torch.save(source, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not a state dictionary"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ({}, "a dictionary with keys"),
        ({"epoch": 3, "best": 0.5}, "a dictionary with keys epoch, best"),
        ([torch.ones(1)], "list"),
        (torch.ones(1), "Tensor"),
        ({1: torch.ones(1)}, "a dictionary with keys 1"),
    ],
)
def test_other_things_are_no_state_dictionary(tmp_path, thing, said):
    torch.save(thing, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"expected named tensors, received {said}"):
        read_weights(tmp_path / "w.pth")


def test_weights_are_loaded_and_the_network_returned(tmp_path, source):
    save_weights(source.state_dict(), tmp_path / "w.safetensors")
    model = net()
    assert load_weights(model, tmp_path / "w.safetensors") is model
    assert weights_hash(model) == weights_hash(source)


def refused(tmp_path, state, match):
    save_weights(state, tmp_path / "w.safetensors")
    model = net()
    before = weights_hash(model)
    with pytest.raises(WeightsError, match=match):
        load_weights(model, tmp_path / "w.safetensors")
    assert weights_hash(model) == before, "all or nothing"


def test_missing_tensors_are_named(tmp_path, source):
    state = source.state_dict()
    del state["3.bias"], state["0.weight"]
    refused(tmp_path, state, r"does not fit Sequential \(9 tensors\): 2 missing in the file: 0\.weight, 3\.bias$")


def test_left_over_tensors_are_named_three_of_them(tmp_path, source):
    state = {**source.state_dict(), **{f"9.{k}": torch.ones(1) for k in "abcde"}}
    refused(tmp_path, state, r"5 not in the network: 9\.a, 9\.b, 9\.c, …$")


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path):
    refused(tmp_path, net(width=6).state_dict(), r"7 of another shape: 0\.weight \(network \(4, 3, 3, 3\), file \(6, 3, 3, 3\)\), .*, …")


def test_all_troubles_are_told_at_once(tmp_path, source):
    state = {f"other.{name}": value for name, value in source.state_dict().items()}
    refused(
        tmp_path, state, r"8 missing in the file: 0\.weight.*; 9 not in the network: other\.0\.bias, other\.0\.weight, other\.1\.bias, …$"
    )


def test_the_batch_count_that_no_forward_pass_reads_may_be_missing(tmp_path, source):
    state = source.state_dict()
    del state["1.num_batches_tracked"]
    save_weights(state, tmp_path / "w.safetensors")
    model = load_weights(net(), tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, source[0].weight)


def test_saving_makes_the_folder_and_leaves_no_part(tmp_path, source):
    path = tmp_path / "deep" / "er" / "w.safetensors"
    save_weights(source.state_dict(), path, {"epoch": "3"})
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, source, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(2)}, path)

    def broken(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("channelscope.zoo.weight_files.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_weights({"a": torch.zeros(2)}, path)
    assert torch.equal(load_file(path)["a"], torch.ones(2))


def test_shared_and_permuted_tensors_can_be_saved(tmp_path):
    shared = torch.randn(4, 3, 2, 2)
    state = {"a": shared, "b": shared, "c": shared.to(memory_format=torch.channels_last), "d": shared.permute(1, 0, 2, 3)}
    save_weights(state, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert found["c"].is_contiguous()


def test_files_of_other_writers_are_read(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert read_weights(str(tmp_path / "w.safetensors"))["a"].tolist() == [0, 1, 2]


WRAPPED = {
    "model_state": lambda state: {"model_state": state, "epoch": 3},
    "model.": lambda state: {f"model.{name}": value for name, value in state.items()},
    "Lightning's names": lambda state: {"state_dict": {f"model.net.{name}": value for name, value in state.items()}, "global_step": 3},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "compiled and parallel": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "averaged": lambda state: {"ema": {"n_averaged": torch.tensor(5), **{f"module.{name}": value for name, value in state.items()}}},
    "beside what is none": lambda state: {"model": {"depth": 3}, "params": {"lr": 0.1}, "state_dict": state},
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_as_people_have_them_are_loaded(tmp_path, source, name):
    torch.save(WRAPPED[name](source.state_dict()), tmp_path / "w.pth")
    model = load_weights(net(), tmp_path / "w.pth")
    for key, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-3)


def test_a_networks_own_names_come_before_a_wrappers(tmp_path, source):
    own = nn.Sequential(OrderedDict(model=net(seed=2)))
    torch.save(own.state_dict(), tmp_path / "w.pth")
    loaded = load_weights(nn.Sequential(OrderedDict(model=net())), tmp_path / "w.pth")
    assert weights_hash(loaded) == weights_hash(own)


def test_averaged_weights_come_first_and_it_is_said(tmp_path, source):
    torch.save({"state_dict": net().state_dict(), "state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="the averaged weights 'state_dict_ema' are read, not 'state_dict'"):
        same(read_weights(tmp_path / "w.pth"), source)


class Recorder:
    """An object of a training run, such as a callback."""

    def __init__(self):
        self.best, self.seen = 0.5, [1, 2]


def test_a_checkpoint_with_other_objects_gives_its_tensors_and_runs_nothing(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    state = {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in source.state_dict().items()}
    state["0.weight"] = nn.Parameter(source[0].weight.detach().permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3))
    torch.save({"callbacks": {"best": Recorder()}, "evil": Evil(), "hyper": Path("x"), "state_dict": state}, tmp_path / "w.ckpt")
    same(read_weights(tmp_path / "w.ckpt"), source)
    assert not (tmp_path / "ran").exists()


def test_a_pointer_of_git_lfs_is_said(tmp_path):
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightsError, match="a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"):
        read_weights(tmp_path / "w.safetensors")


def sharded(folder, model):
    state = model.state_dict()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    for file, some in shards.items():
        save_weights({name: state[name] for name in some}, folder / file)
    listed = {name: file for file, some in shards.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors", ""])
def test_weights_in_several_files(tmp_path, source, name):
    sharded(tmp_path, source)
    same(read_weights(tmp_path / name), source)


def test_a_file_of_several_that_is_missing_is_named(tmp_path, source):
    sharded(tmp_path, source)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"expected the files it names beside it, missing: model-00001-of-00002\.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="not an index of weights files"):
        read_weights(tmp_path)


def test_a_folder_of_two_networks_asks_which(tmp_path, source):
    for name in ("a", "b"):
        save_weights(source.state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"found a\.safetensors, b\.safetensors; name one of them"):
        read_weights(tmp_path)


def test_modules_that_ask_for_their_version_are_told_it(tmp_path):
    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
            assert local_metadata["version"] == 3
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    model = Versioned(2, 3)
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    other = load_weights(Versioned(2, 3), tmp_path / "weights.safetensors")
    assert torch.equal(other.weight, model.weight)
