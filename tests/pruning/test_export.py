"""Exports compute what the network computes, for any number of images, or are not written."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from channelscope.errors import InputError, MismatchError
from channelscope.pruning.folder import export, onnx_session
from networks import built

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@torch.no_grad()
def test_a_pytorch_export_runs_without_the_library(tmp_path):
    assert export(SMALL, tmp_path / "net.pt2", (3, 8, 8)) < 1e-4
    again = torch.export.load(tmp_path / "net.pt2").module()
    for images in (torch.randn(1, 3, 8, 8), torch.randn(7, 3, 8, 8)):
        torch.testing.assert_close(again(images), SMALL(images))
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.skipif(not ONNX, reason="needs the extra onnx")
def test_onnx(tmp_path):
    assert export(SMALL, tmp_path / "net.onnx", (3, 8, 8)) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"needs onnx.*channelscope\[onnx\]"):
        export(SMALL, tmp_path / "net.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())


class Two(nn.Module):
    """A network with two heads, in a dictionary."""

    def __init__(self):
        super().__init__()
        self.a, self.f, self.g = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x)).mean((2, 3))
        return {"kind": self.f(h), "place": self.g(h)}


@torch.no_grad()
def test_every_output_is_compared(tmp_path, monkeypatch):
    model = Two().eval()
    assert export(model, tmp_path / "net.pt2", (3, 8, 8)) < 1e-4
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(torch.ones(2, 3, 8, 8)), model(torch.ones(2, 3, 8, 8)))
    other = Two().eval()
    other.load_state_dict(model.state_dict())
    other.g.bias.add_(1)
    monkeypatch.setitem(export.__globals__, "_pt2", lambda *_: other)
    with pytest.raises(MismatchError, match="away from the model's"):
        export(model, tmp_path / "other.pt2", (3, 8, 8))


def test_another_ending(tmp_path):
    with pytest.raises(InputError, match=r"\.onnx or \.pt2, not '\.pth'"):
        export(SMALL, tmp_path / "net.pth", (3, 8, 8))


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    other = nn.Sequential(*SMALL, nn.Tanh())
    monkeypatch.setattr("torch.export.load", lambda path: type("Program", (), {"module": lambda self: other})())
    with pytest.raises(MismatchError, match="away from the model's"):
        export(SMALL, tmp_path / "net.pt2", (3, 8, 8))
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """A forward pass that depends on the values of its images, which no export can record."""

    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.skipif(not ONNX, reason="needs the extra onnx"))])
def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path, ending):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Branching()).eval()
    with pytest.raises(InputError, match=rf"net\.{ending}: the network cannot be exported \(") as caught:
        export(model, tmp_path / f"net.{ending}", (3, 8, 8))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not ONNX, reason="needs the extra onnx")
def test_a_file_that_onnxruntime_cannot_run_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"onnxruntime cannot run net\.onnx \("):
        onnx_session(tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_real_architectures(name, tmp_path):
    model, shape = built(name)
    assert export(model, tmp_path / "net.pt2", shape) < 1e-4
