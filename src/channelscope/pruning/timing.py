"""Times of a forward pass: one routine for all of them, and two networks compared in eager PyTorch, torch.compile and onnxruntime."""

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from channelscope.errors import ChannelscopeError, InputError, MismatchError, UserCode, check_choice, first_line
from channelscope.network import nest
from channelscope.network.module_state import device_of, eval_mode, zero_batch
from channelscope.network.tracing.recording import distance
from channelscope.progress import progress_bar
from channelscope.pruning.folder import EXPORT_TOLERANCE, export, onnx_session
from channelscope.tables.quantities import Column

RUNS = 15
"""Measurements of the latency of each network."""

SHORTEST, MOST_REPEATS = 0.005, 50
"""Seconds that a measurement takes at least, where so many passes suffice."""

Pass: TypeAlias = Callable[[Tensor], Any]


def repeats_of(seconds: float) -> int:
    """Passes of one measurement, so that it takes some milliseconds.

    Examples
    --------
    >>> repeats_of(0.001), repeats_of(2.0), repeats_of(0.0)
    (5, 1, 50)
    """
    return int(np.clip(SHORTEST / max(seconds, SHORTEST / MOST_REPEATS), 1, MOST_REPEATS))


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds now: of a CUDA device once it has finished, of one thread its processor time, else of the wall.

    Examples
    --------
    >>> now = clock(torch.device("cpu"))
    >>> now() <= now()
    True
    """
    if device.type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronized
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def standard_error(seconds: Sequence[float] | np.ndarray) -> float:
    """Standard error of a median as a fraction of it, from the quartiles of a normal law.

    Examples
    --------
    >>> round(standard_error([0.9, 1.0, 1.0, 1.1] * 25), 3), standard_error([0.0])
    (0.005, inf)
    """
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return float(0.93 * (high - low) / len(seconds) ** 0.5 / middle) if middle > 0 else np.inf


@torch.no_grad()
def interleaved(passes: Mapping[str, Pass], images: Tensor, runs: int = RUNS) -> dict[str, list[float]]:
    """Times of one batch's pass, measured several times, in turns of all passes.

    Parameters
    ----------
    passes
        Name → function of a batch.
    images
        The batch.
    runs
        Measurements of each pass, after one that is not counted; passes of less than 5 ms are repeated in each.

    Returns
    -------
    dict[str, list of float]
        Name → seconds of each run: on a CUDA device until the device has finished, on a CPU with one thread its processor time.

    Examples
    --------
    >>> [len(seconds) for seconds in interleaved({"a": torch.sin, "b": torch.cos}, torch.zeros(2), runs=4).values()]
    [4, 4]
    """
    now = clock(images.device)
    taken: dict[str, list[float]] = {name: [] for name in passes}
    repeats = dict.fromkeys(passes, 1)
    for turn in range(runs + 1):
        for name, run in passes.items():
            begun = now()
            for _ in range(repeats[name]):
                run(images)
            seconds = (now() - begun) / repeats[name]
            if turn:  # the first turn warms up
                taken[name].append(seconds)
            else:
                repeats[name] = repeats_of(seconds)
    return taken


def latency_samples(
    networks: Mapping[str, nn.Module], image_shape: tuple[int, ...], runs: int = RUNS, batch: int = 1
) -> dict[str, list[float]]:
    """Times of one batch's forward pass, measured several times, interleaved between the networks.

    Parameters
    ----------
    networks
        State → network, all on one device.
    image_shape
        Shape of one image (C, H, W).
    runs
        Measurements of each network, as in `interleaved`.
    batch
        Images of one pass.

    Returns
    -------
    dict[str, list of float]
        State → seconds of each run.

    Examples
    --------
    >>> [len(seconds) for seconds in latency_samples({"a": nn.Flatten(), "b": nn.ReLU()}, (3, 8, 8), runs=4).values()]
    [4, 4]
    """
    with eval_mode(*networks.values()):
        images = zero_batch(next(iter(networks.values())), image_shape).expand(batch, *image_shape).contiguous()
        return interleaved(networks, images, runs)


def latency_ratio(
    small: nn.Module, model: nn.Module, image_shape: tuple[int, ...], runs: int = RUNS, batch: int = 1
) -> tuple[float, float]:
    """Measured time of one network as a fraction of another's, and its standard error.

    Parameters
    ----------
    small, model
        The two networks.
    image_shape
        Shape of one image (C, H, W).
    runs
        Measurements of each, in turns.
    batch
        Images of one pass.

    Returns
    -------
    tuple of float
        Ratio of the medians, and its standard error from the quartiles of both.

    Examples
    --------
    >>> layer = nn.Conv2d(3, 4, 3)
    >>> ratio, error = latency_ratio(layer, layer, (3, 8, 8), runs=3)
    >>> ratio > 0, error >= 0
    (True, True)
    """
    taken = latency_samples({"small": small, "model": model}, image_shape, runs, batch)
    return _ratio(taken["small"], taken["model"])


def _ratio(small: Sequence[float], model: Sequence[float]) -> tuple[float, float]:
    """Ratio of the medians and its standard error."""
    ratio = float(np.median(small) / np.median(model))
    return ratio, ratio * float(np.hypot(standard_error(small), standard_error(model)))


def _eager(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    return model


def _compiled(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    torch.compiler.reset()  # what was compiled before counts against the variants of one forward pass, beyond which none is compiled
    return torch.compile(model, dynamic=False)


def _onnx(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    if device_of(model).type != "cpu":
        raise InputError(f"it is measured on the processor alone, and the network is on {device_of(model)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(model, path, image_shape)
        return onnx_session(path)


RUNTIMES: Mapping[str, Callable[[nn.Module, tuple[int, ...]], Pass]] = {
    "eager": _eager,
    "torch.compile": _compiled,
    "onnxruntime": _onnx,
}
"""How each makes a pass of a network in evaluation mode."""

BATCHES = (1, 32)
"""Images of the passes that are compared."""

MOST_BATCHES = 4
"""Numbers of images that can be compared: PyTorch compiles eight variants of one forward pass, and two networks may share it."""

SPEED_COLUMNS = {
    "runtime": Column.text("what runs the networks: eager PyTorch, torch.compile or onnxruntime"),
    "batch": Column.count("images of one pass", "images"),
    "original": Column("ms", 2, "median time of a pass of the original", low=0.0),
    "smaller": Column("ms", 2, "median time of a pass of the smaller network, in turns with the original", low=0.0),
    "ratio": Column("fraction", 3, "time of the smaller network as a fraction of the original's", low=0.0),
    "ratio_low": Column("fraction", 3, "lower end of the 95 % interval of the ratio, from the quartiles of both", low=0.0),
    "ratio_high": Column("fraction", 3, "upper end of the 95 % interval of the ratio", low=0.0),
    "runs": Column.count("measurements of each network", "runs"),
    "note": Column.text("why there is no time"),
}


def compare_runtimes(
    small: nn.Module,
    model: nn.Module,
    image_shape: tuple[int, ...],
    *,
    batches: Sequence[int] = BATCHES,
    runs: int = 25,
    runtimes: Sequence[str] = tuple(RUNTIMES),
) -> pd.DataFrame:
    """Measured time of a smaller network next to the original's in eager PyTorch, under torch.compile and in onnxruntime.

    The two run in turns, on noise, with as many threads as PyTorch has. A runtime that is not installed, fails on a network or gives
    other outputs than eager PyTorch has rows with the reason and without times.

    Parameters
    ----------
    small, model
        The two networks, which stay as they are.
    image_shape
        Shape of one image (C, H, W).
    batches
        Images of a pass; at most four numbers.
    runs
        Measurements of each network.
    runtimes
        eager, torch.compile and onnxruntime, or some of them.

    Returns
    -------
    pandas.DataFrame
        The columns of `SPEED_COLUMNS`, one row for each runtime and batch.

    Raises
    ------
    InputError
        For more or no numbers of images, no runs, or a runtime that does not exist.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> frame = compare_runtimes(model, model, (3, 2, 2), batches=(1, 4), runs=3, runtimes=("eager",))
    >>> frame[["runtime", "batch", "runs"]].values.tolist()
    [['eager', 1, 3], ['eager', 4, 3]]
    """
    if not 1 <= len(batches) <= MOST_BATCHES or min(batches) < 1 or runs < 1:
        raise InputError(
            f"expected one to {MOST_BATCHES} numbers of images of at least 1, and at least one run; received {list(batches)}, {runs} runs"
        )
    for runtime in runtimes:
        check_choice("runtime", runtime, RUNTIMES)
    networks, rows = {"smaller": small, "original": model}, []
    draws = torch.Generator().manual_seed(0)
    given = [torch.randn(batch, *image_shape, generator=draws).to(zero_batch(model, image_shape)) for batch in batches]
    with progress_bar("speed of the networks", len(runtimes) * len(batches)) as step, eval_mode(small, model):
        for runtime in runtimes:
            made: list[dict[str, Any]] = []
            try:
                with warnings.catch_warnings(), UserCode(InputError, "it does not work on these networks"):
                    warnings.simplefilter("ignore")  # of compilers and exporters, to their own programmers
                    passes = {name: RUNTIMES[runtime](network, image_shape) for name, network in networks.items()}
                    for images in given:
                        _check_outputs(passes, networks, images)
                        made.append(_row(interleaved(passes, images, runs)) | {"batch": len(images)})
                        step()
            except ChannelscopeError as error:
                step(len(batches) - len(made))
                made = [{"batch": batch, "runs": 0, "note": first_line(error)} for batch in batches]
            rows += [{"runtime": runtime, "note": "", **row} for row in made]
    return pd.DataFrame(rows, columns=list(SPEED_COLUMNS))


@torch.no_grad()
def _check_outputs(passes: Mapping[str, Pass], networks: Mapping[str, nn.Module], images: Tensor) -> None:
    """Compile what is still to be compiled, and refuse a runtime that computes something else."""
    for name, run in passes.items():
        received, expected = (nest.tensors(each(images)) for each in (run, networks[name]))
        difference, _ = distance(received, expected)
        if not difference <= EXPORT_TOLERANCE:
            raise MismatchError(f"its outputs of the {name} network are {difference:.2g} (relative) away from those of eager PyTorch")


def _row(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    ratio, error = _ratio(taken["smaller"], taken["original"])
    medians = {name: 1000 * float(np.median(seconds)) for name, seconds in taken.items()}
    ends = {"ratio_low": max(ratio - 1.96 * error, 0.0), "ratio_high": ratio + 1.96 * error}
    return {**medians, "ratio": ratio, **ends, "runs": len(taken["original"])}
