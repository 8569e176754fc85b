"""Kept parts: whole or absent, and never of another run."""

import pytest
import torch

from channelscope.discarding.cid import MapCache, fingerprint
from channelscope.errors import FormatError, MismatchError

VALUES = {"sigma": torch.rand(2, 3), "spent": torch.tensor([1.0, 2.0], dtype=torch.float64)}


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_what_was_written_comes_back(place, tmp_path):
    kept = MapCache(tmp_path if place == "disk" else None, {"rule": 1})
    assert kept.read("layer1/0000", "a") is None
    kept.write("layer1/0000", "a", VALUES)
    found = kept.read("layer1/0000", "a")
    assert all(torch.equal(found[name], VALUES[name]) for name in VALUES)
    assert kept.read("layer1/0001", "a") is None
    assert not list(tmp_path.rglob("*.partial"))


def test_another_run_is_refused_and_what_differs_is_said(tmp_path):
    MapCache(tmp_path, {"rule": {"kappa": 0.1}, "seed": 0}).write("a", "x", VALUES)
    with pytest.raises(MismatchError, match="another run: they differ in rule; give another --out"):
        MapCache(tmp_path, {"rule": {"kappa": 0.2}, "seed": 0}).read("a", "x")
    with pytest.raises(MismatchError, match="differ in images"):
        MapCache(tmp_path, {"rule": {"kappa": 0.1}, "seed": 0}).read("a", "y")


def test_damaged_files_are_refused(tmp_path):
    kept = MapCache(tmp_path, {})
    kept.write("a", "x", VALUES)
    whole = (tmp_path / "a.safetensors").read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"no tensors"):
        (tmp_path / "a.safetensors").write_bytes(bad)
        with pytest.raises(FormatError, match="damaged or not a map"):
            kept.read("a", "x")


def test_digests_see_every_byte():
    a = torch.rand(2, 3)
    assert fingerprint(a) == fingerprint(a.clone())
    assert fingerprint(a) != fingerprint(a + 1e-6)
    assert fingerprint(a, torch.tensor([])) == fingerprint(a)
