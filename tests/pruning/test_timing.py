"""Times of passes: in turns, with one clock; runtimes that do not work are named, and none that computes something else is timed."""

import importlib.util

import pytest
import torch
from torch import nn

from channelscope.errors import InputError
from channelscope.pruning import timing
from channelscope.pruning.timing import RUNTIMES, SPEED_COLUMNS, compare_runtimes, interleaved

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def test_passes_take_turns_and_short_ones_are_repeated(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing, "clock", lambda device: lambda: now[0])

    def taking(name, seconds):
        def run(images):
            calls.append(name)
            now[0] += seconds

        return run

    taken = interleaved({"long": taking("long", 0.25), "short": taking("short", 0.001953125)}, torch.zeros(1), runs=3)
    assert taken == {"long": [0.25] * 3, "short": [0.001953125] * 3}
    assert calls == ["long", "short", *["long", "short", "short"] * 3]


@pytest.mark.filterwarnings("ignore")
def test_every_runtime_runs_both_networks():
    model, small = net(16).train(), net(4)
    frame = compare_runtimes(small, model, (3, 8, 8), batches=(5,), runs=3)
    assert list(frame) == list(SPEED_COLUMNS)
    assert frame["runtime"].tolist() == list(RUNTIMES)
    assert frame["batch"].tolist() == [5] * len(RUNTIMES)
    assert model.training
    for row in frame.itertuples():
        if row.runtime == "onnxruntime" and not ONNX:
            assert "channelscope[onnx]" in row.note
        elif row.runtime == "eager" or not row.note:  # torch.compile needs a C++ compiler
            assert row.ratio == pytest.approx(row.smaller / row.original)
            assert row.ratio_low <= row.ratio <= row.ratio_high
            assert row.runs == 3


def test_what_cannot_be_timed_is_refused():
    for batches, runs in (((), 3), ((1, 2, 4, 8, 16), 3), ((0,), 3), ((1,), 0)):
        with pytest.raises(InputError, match="expected one to 4 numbers of images of at least 1, and at least one run"):
            compare_runtimes(net(4), net(4), (3, 8, 8), batches=batches, runs=runs)
    with pytest.raises(InputError, match=r"no runtime is called onnxruntim; near matches: onnxruntime; there are: eager, torch\.compile"):
        compare_runtimes(net(4), net(4), (3, 8, 8), runtimes=("onnxruntim",))


def test_what_does_not_work_or_computes_something_else_is_named(monkeypatch):
    def missing(model, image_shape):
        raise InputError("it is not installed: pip install it")

    def breaks(model, image_shape):
        def run(images):
            raise RuntimeError("no C++ compiler\nwas found")

        return run

    def wrong(model, image_shape):
        return lambda images: model(images) + 1

    monkeypatch.setattr(timing, "RUNTIMES", {"eager": RUNTIMES["eager"], "missing": missing, "breaks": breaks, "wrong": wrong})
    frame = compare_runtimes(net(4), net(8), (3, 8, 8), batches=(1,), runs=2, runtimes=tuple(timing.RUNTIMES)).set_index("runtime")
    assert frame.loc["eager", "note"] == ""
    assert frame.loc["missing", "note"] == "it is not installed: pip install it"
    assert frame.loc["breaks", "note"].startswith("it does not work on these networks (no C++ compiler")
    assert "outputs of the smaller network are" in frame.loc["wrong", "note"]
    assert frame["ratio"].isna().tolist() == [False, True, True, True]
    assert frame["runs"].tolist() == [2, 0, 0, 0]
