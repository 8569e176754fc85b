"""Profiles on disk: what is read is what was written, and nothing else is read."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from channelscope.errors import FormatError, MismatchError
from channelscope.profiling import store
from channelscope.profiling.collect import CheckpointTimer, collect
from channelscope.profiling.store import load, save


@pytest.fixture(scope="module")
def profile():
    return collected(0)


def collected(seed: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    images = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return collect(model, [(images, torch.arange(20) % 3)], shards=4, sensitivity=True, maps=True)


@pytest.fixture
def file(profile, tmp_path):
    return save(profile, tmp_path / "net.profile")


def same(a, b) -> None:
    for name in ("network", "weights_hash", "input_shape", "classes", "sites", "readout", "cut_readout", "targets", "seed", "shards"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.images == b.images
    assert a.tally == b.tally
    assert a.unlabeled == b.unlabeled
    assert torch.equal(a.fingerprints, b.fingerprints) or not len(a.fingerprints)
    assert dict(a.skipped) == dict(b.skipped)
    for mine, theirs in ((a.tensors, b.tensors), *((a.weight_norms[site.name], b.weight_norms[site.name]) for site in a.sites)):
        assert set(mine) == set(theirs)
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            assert torch.equal(value, theirs[name]), name


def test_load_after_save_is_the_identity(profile, file):
    same(load(file), profile)


def test_saving_what_was_loaded_writes_the_same_bytes(file, tmp_path):
    assert save(load(file), tmp_path / "again.profile").read_bytes() == file.read_bytes()


def test_a_profile_without_shards_or_labels_comes_back(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3))
    bare = collect(model, [torch.randn(6, 1, 6, 6)], "pooled", shards=0)
    same(load(save(bare, tmp_path / "deep" / "er" / "net.profile")), bare)


def test_sums_of_loaded_profiles_are_sums_of_profiles(profile, file, tmp_path):
    other = collected(1)
    both = load(file) + load(save(other, tmp_path / "other.profile"))
    same(both, profile + other)
    assert both.images == 40
    assert len(both.fingerprints.unique()) == 40


def test_the_same_images_are_not_counted_twice(profile, file, tmp_path):
    with pytest.raises(MismatchError, match="no image in common: 20 of the 20 images of one are among the 20 of the other"):
        load(file) + load(file)
    with pytest.raises(MismatchError, match="20 of the 40 images"):
        profile + collected(1) + load(file)


def test_a_profile_without_fingerprints_is_read_and_added(profile, file):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name != "fingerprints"}  # noqa: SIM118
    del header["unlabeled"], header["checksum"]
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    old = load(file)
    same(old, profile)
    assert (len(old.fingerprints), old.unlabeled) == (0, 0)
    assert (old + collected(1)).images == 40
    with pytest.raises(MismatchError, match="20 of the 20 images"):
        old + old
    assert torch.equal((old + collected(1)).fingerprints, collected(1).fingerprints)


def test_no_file(tmp_path):
    with pytest.raises(FormatError, match=r"no profile at .*: write one with `channelscope profile"):
        load(tmp_path / "none.profile")
    with pytest.raises(FormatError, match="no profile at"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="damaged or not a profile"):
        load(file)


def test_other_files(tmp_path):
    (tmp_path / "text").write_text("not a profile, but long enough to be one")
    with pytest.raises(FormatError, match="damaged or not a profile"):
        load(tmp_path / "text")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(FormatError, match="safetensors file but not a profile"):
        load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("version", [1, 99, None])
def test_another_version_of_the_format(file, version):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header["format"] = version
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    with pytest.raises(FormatError, match=f"format {version}, this version reads {store.FORMAT}: collect it again"):
        load(file)


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(profile, file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(profile + collected(1), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["net.profile"]


def test_the_clock_is_due_once_an_interval():
    assert CheckpointTimer(0.0).due()
    clock = CheckpointTimer(3600)
    assert not clock.due()
    clock.last -= 3601
    assert clock.due()
    assert not clock.due()


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 1.0])
def test_one_changed_bit_is_noticed(file, place):
    """Also where the file is still a profile, whose numbers would be others."""
    whole = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start + int(place * (len(whole) - start - 1))] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(FormatError, match=r"is damaged: its checksum is [0-9a-f]{8}, that of its contents [0-9a-f]{8}; collect it again"):
        load(file)


@pytest.mark.parametrize("change", [{"images": "many"}, {"sites": 3}, {"tally": None}, {"sites": [{"name": "x"}]}])
def test_a_changed_header_is_refused(file, change):
    """By the checksum; without one, where it makes no profile."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"]) | change
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    with pytest.raises(FormatError, match="its checksum is"):
        load(file)
    if "images" not in change:
        del header["checksum"]
        save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
        with pytest.raises(FormatError, match="is damaged or not a profile"):
            load(file)
