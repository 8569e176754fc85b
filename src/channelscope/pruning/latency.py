"""Latency: the measured times of a network's steps at a grid of widths, and what they become when channels go."""

import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from channelscope.display import Facts, Shown
from channelscope.errors import FAILURES, FormatError, MismatchError, NumericError, no_lack_of_memory
from channelscope.network import nest
from channelscope.network.graph import Graph
from channelscope.network.module_state import device_of, eval_mode
from channelscope.network.removal.comparison import kept_ids
from channelscope.network.removal.groups import Groups
from channelscope.network.removal.labels import channels_in, compact
from channelscope.network.removal.narrowing import narrow_pair
from channelscope.progress import track
from channelscope.pruning.cut import groups_by_layers
from channelscope.pruning.timing import RUNS, clock, latency_samples, repeats_of, standard_error
from channelscope.storage import atomic_file

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Fractions of the channels at which every step is timed."""

MOST_EXTENSIONS = 6
"""Times that the measurements are made before a device counts as too noisy."""

MAX_NOISE = 0.05
"""Largest standard error of a median time, as a fraction of it, with which widths can be ranked."""

FREE_ROUNDING = 0.03
"""Share of the time that rounding widths up may cost where it counts as free."""

MULTIPLES = (16, 8, 4, 2)
"""Multiples that widths may be rounded to, from the coarsest."""


@dataclass(frozen=True, repr=False)
class LatencyTable(Shown):
    """Measured times of a network's steps at a grid of widths on one device."""

    network: str
    """fingerprint of the network's steps and shapes; its weights do not matter"""
    device: str
    """name of the device"""
    threads: int
    """threads of PyTorch"""
    batch: int
    """images of one pass"""
    precision: str
    """type of the parameters"""
    total: float
    """median seconds of a pass of the whole network"""
    noise: float
    """standard error of the median pass as a fraction of it, the largest of all widths"""
    multiple: int
    """largest multiple to which rounding widths up costs no time here"""
    seconds: Mapping[str, tuple[tuple[float, float], ...]]
    """step → (fraction of its channels, median seconds), from narrow to wide; the sums at full width are `total`"""

    def facts(self) -> Facts:
        """The device and the whole pass; the steps that take longest."""
        longest = sorted(self.seconds.items(), key=lambda pair: -pair[1][-1][1])
        heading = (
            f"LatencyTable({1000 * self.total:.3g} ms for {self.batch} images on {self.device}, {self.threads} threads, {self.precision}, "
            f"± {self.noise:.1%}; widths in multiples of {self.multiple})"
        )
        return heading, ((name, f"{points[-1][1] / self.total:.1%}") for name, points in longest)

    def save(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all.

        Parameters
        ----------
        path
            File to write.
        """
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """The table that a file holds.

        Parameters
        ----------
        path
            File that `save` wrote.

        Raises
        ------
        FormatError
            If it is damaged.
        """
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            seconds = {
                name: tuple((float(width), float(taken)) for width, taken in points) for name, points in plain.pop("seconds").items()
            }
            return cls(**plain, seconds=seconds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path} is no table of latencies ({type(error).__name__}: {error}): delete it, and it is measured anew"
            ) from error


def latency_path(folder: Path, found: Groups, batch: int) -> Path:
    """File for the table of a network on this device in a folder, named by everything that its times depend on.

    Parameters
    ----------
    folder
        Folder of the runs.
    found
        The network's `groups`.
    batch
        Images of one pass.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> latency_path(Path("runs"), found, 32).name.endswith("-b32-float32.json")
    True
    """
    network, device, threads, precision = _circumstances(found)
    plain = "".join(each if each.isalnum() else "-" for each in device)
    return folder / f"latency-{network[:8]}-{plain}-{threads}t-b{batch}-{precision}.json"


def _circumstances(found: Groups) -> tuple[str, str, int, str]:
    """Fingerprint of the steps, name of the device, threads, type of the parameters."""
    place, graph = device_of(found.graph.model), found.labeled.executor
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    shapes = [(node.name, str(node.target), [tuple(part.shape) for part in _tensors(found, node)]) for node in graph.steps.nodes]
    parameters = [(name, tuple(part.shape)) for name, part in found.graph.model.named_parameters()]
    network = hashlib.sha256(repr((shapes, parameters)).encode()).hexdigest()
    return network, device, torch.get_num_threads(), str(next(found.graph.model.parameters()).dtype).removeprefix("torch.")


def _tensors(found: Groups, node: fx.Node) -> list[Tensor]:
    return nest.tensors(found.labeled.values.get(node.name))


def measure_latency(
    found: Groups, *, batch: int = 1, widths: Sequence[float] = WIDTHS, runs: int = RUNS, max_noise: float = MAX_NOISE
) -> LatencyTable:
    """The table of a network's step times on the device where it is.

    The network is narrowed to each width, the same fraction of every layer, and its steps are timed in place, one after the other, in
    turns of all widths. With one thread on a CPU, times are processor time, which other programs lengthen little.

    Parameters
    ----------
    found
        The network's `groups`.
    batch
        Images of one pass.
    widths
        Fractions of the channels.
    runs
        Measurements of each width, after one that is not counted; passes of less than 5 ms are repeated in each. Where they are too
        noisy, up to five times as many follow.
    max_noise
        Largest standard error of a median pass, as a fraction of it.

    Returns
    -------
    LatencyTable
        Times of every step, and the multiple to which widths are best rounded.

    Raises
    ------
    NumericError
        If the times are too noisy to rank widths by, with how noisy they are.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> table = measure_latency(found, runs=3, max_noise=float("inf"))
    >>> table.batch, list(table.seconds), [len(points) for points in table.seconds.values()]
    (1, ['_0', '_1', '_2'], [4, 4, 1])
    """
    inputs = _inputs(found, batch)
    patterns = [_uniform(found, width) for width in sorted({1.0, *widths}, reverse=True)]
    narrowed = [(kept, network) for kept in patterns if (network := _narrowed(found, kept)) is not None]
    steps: list[dict[str, list[float]]] = [{} for _ in narrowed]
    network, device, threads, precision = _circumstances(found)
    noise, done = float("inf"), 0
    while not done or (noise > max_noise and done < MOST_EXTENSIONS * runs):
        done += runs
        for taken, more in zip(steps, _step_times([each for _, each in narrowed], inputs, runs), strict=True):
            taken |= {name: taken.get(name, []) + seconds for name, seconds in more.items()}
        noise = max(standard_error(np.sum(list(taken.values()), axis=0)) for taken in steps)
    if noise > max_noise:
        raise NumericError(
            f"latency: times on {device} are too noisy to rank widths by: the median of {done} passes has a standard error of {noise:.0%}, "
            f"and at most {max_noise:.0%} is needed; end other programs, or time larger batches"
        )
    points: dict[str, dict[float, float]] = defaultdict(dict)
    for (kept, _), taken in zip(narrowed, steps, strict=True):
        counter = StepWidths(found, kept)
        for name, seconds in taken.items():
            points[name][round(counter.width(name), 9)] = float(np.median(seconds))
    shape = tuple(found.example[0].shape[1:])
    total = float(np.median(latency_samples({"whole": found.graph.model}, shape, runs, batch)["whole"]))
    scale = total / sum(by[max(by)] for by in points.values())
    table = {name: _nondecreasing({width: scale * seconds for width, seconds in by.items()}) for name, by in points.items()}
    made = LatencyTable(network, device, threads, batch, precision, total, noise, 1, table)
    return replace(made, multiple=_free_multiple(found, made, inputs, runs))


def _inputs(found: Groups, batch: int) -> tuple[Tensor, ...]:
    """So many copies of the example."""
    return tuple(part[:1].expand(batch, *part.shape[1:]).contiguous() for part in found.example)


def _uniform(found: Groups, width: float) -> np.ndarray:
    """The same fraction of the groups of every kind; at least one of each."""
    kept = np.zeros(len(found), dtype=bool)
    for family in groups_by_layers(found):
        count = max(1, round(width * len(family)))
        kept[family[np.linspace(0, len(family) - 1, count).round().astype(int)]] = True
    return kept


def _narrowed(found: Groups, kept: np.ndarray) -> Graph | None:
    """The steps on a copy with these groups; None where the steps do not run on fewer channels as they are."""
    graph = found.labeled.executor
    if kept.all():
        return graph
    try:
        small, _ = narrow_pair(found.labeled, ~kept_ids(found, found.to_subset(kept))[:-1], checked=False)
        narrow = graph.of_copy(small)
        with torch.no_grad(), eval_mode(small):
            narrow.run(*found.example)
    except FAILURES as error:
        no_lack_of_memory(error)
        return None
    return narrow


@torch.no_grad()
def _step_times(graphs: Sequence[Graph], inputs: tuple[Tensor, ...], runs: int) -> list[dict[str, list[float]]]:
    """Seconds of every step of every graph, one for each of some passes in turns, after one that is not counted."""
    taken: list[dict[str, list[float]]] = [defaultdict(list) for _ in graphs]
    now = clock(inputs[0].device)
    names = [node.name for node in graphs[0].steps.nodes if node.op.startswith("call_")]
    repeats, longest = 1, 0.0
    for turn in track(range(runs + 1), "times of the network's steps on this device, passes"):
        for graph, times in zip(graphs, taken, strict=True):
            spent = dict.fromkeys(names, 0.0)
            last = [0.0]

            def stamp(_value: Any, name: str, spent: dict[str, float] = spent, last: list[float] = last) -> None:
                seconds = now()
                spent[name] += seconds - last[0]
                last[0] = seconds

            hooks = {name: partial(stamp, name=name) for name in names}
            with eval_mode(graph.model):
                for _ in range(repeats):
                    last[0] = now()
                    graph.run(*inputs, hooks=hooks)
            longest = max(longest, sum(spent.values()))
            if turn:
                for name in names:
                    times[name].append(spent[name] / repeats)
        repeats = repeats if turn else repeats_of(longest)
    return taken


def _nondecreasing(by: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    """Points from narrow to wide; what takes longer though it is narrower is noise, and takes as long."""
    widths = sorted(by)
    lows = np.minimum.accumulate([by[width] for width in reversed(widths)])[::-1]
    return tuple((width, float(seconds)) for width, seconds in zip(widths, lows, strict=True))


def _free_multiple(found: Groups, table: LatencyTable, inputs: tuple[Tensor, ...], runs: int) -> int:
    """The largest multiple to which the channels that take longest can be rounded up at no cost in time, measured around three quarters."""
    families = [family for family in groups_by_layers(found) if len(family) >= 2 * MULTIPLES[0]]
    if not families:
        return 1
    counter = TimeCounter(found, table)
    family = max(families, key=lambda family: sum(counter.now[name] for name in counter.steps_of(int(family[0]))))
    base = round(0.75 * len(family) / MULTIPLES[0]) * MULTIPLES[0]
    counts = list(range(base - MULTIPLES[1], base + 1))
    patterns = []
    for count in counts:
        kept = np.ones(len(found), dtype=bool)
        kept[family[count:]] = False
        patterns.append(_narrowed(found, kept))
    graphs = [each for each in patterns if each is not None]
    if len(graphs) < len(counts):
        return 1
    touched = counter.steps_of(int(family[0]))
    taken = [sum(float(np.median(each[name])) for name in touched) for each in _step_times(graphs, inputs, runs)]
    by_count = dict(zip(counts, taken, strict=True))
    for multiple in MULTIPLES:
        rounded = [by_count[min(-(-count // multiple) * multiple, base)] for count in counts]
        if sum(rounded) <= (1 + FREE_ROUNDING) * sum(taken):
            return multiple
    return 1


class StepWidths:
    """Which fraction of its channels each step has left, while groups are removed and put back.

    The fraction is the geometric mean of those of what a step reads and of what it gives, so that what grows with their product, such
    as a convolution, takes the same time at the same fraction whichever of the two is narrower.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> widths = StepWidths(found, np.array([True, False, False, False]))
    >>> [widths.width(name) for name in ("_0", "_1", "_2")]
    [0.5, 0.5, 1.0]
    """

    def __init__(self, found: Groups, kept: np.ndarray | None = None):
        self.touched: list[list[tuple[str, int, int]]] = [[] for _ in range(len(found))]
        self.left: dict[str, list[int]] = {}
        self.full: dict[str, tuple[int, int]] = {}
        labeled = found.labeled
        for node in labeled.steps.nodes:
            if not node.op.startswith("call_"):
                continue
            before = next((parent for parent in node.all_input_nodes if parent in labeled.dynamic), node)
            full = [0, 0]
            for side, step in enumerate((before, node)):
                parts = [compact(part).flatten() for part in nest.tensors(labeled.labels[step])]
                numbers = torch.cat([torch.zeros(0, dtype=torch.long), *parts])
                numbers = numbers[channels_in(numbers)].numpy()
                owners = found.group_of[numbers]
                full[side] = max(len(numbers), 1)
                for group, count in zip(*np.unique(owners[owners >= 0], return_counts=True), strict=True):
                    self.touched[group].append((node.name, side, int(count)))
            self.full[node.name] = (full[0], full[1])
            self.left[node.name] = full
        for group in [] if kept is None else np.flatnonzero(~kept):
            self.move(int(group), -1)

    def width(self, name: str) -> float:
        """Fraction of the channels of a step that are left."""
        (inputs, outputs), (all_inputs, all_outputs) = self.left[name], self.full[name]
        return (inputs / all_inputs * outputs / all_outputs) ** 0.5

    def move(self, group: int, sign: int) -> None:
        """Take a group out (−1) or put it back (+1)."""
        for name, side, count in self.touched[group]:
            self.left[name][side] += sign * count

    def steps_of(self, group: int) -> list[str]:
        """The steps that read or give a group's channels."""
        return list(dict.fromkeys(name for name, _, _ in self.touched[group]))


class TimeCounter:
    """Predicted seconds of a pass while groups are removed and put back; nothing is rebuilt.

    Parameters
    ----------
    found
        The network's `groups`.
    table
        Its table of latencies.

    Raises
    ------
    MismatchError
        If the table is of another network.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> times = {"_0": ((0.5, 0.2), (1.0, 0.6)), "_1": ((0.5, 0.1), (1.0, 0.3)), "_2": ((1.0, 0.1),)}
    >>> counter = TimeCounter(found, LatencyTable("", "cpu", 1, 1, "float32", 1.0, 0.0, 1, times))
    >>> [round(counter.remove(group), 3) for group in range(3)], round(counter.total, 3)
    ([0.161, 0.191, 0.249], 0.4)
    """

    def __init__(self, found: Groups, table: LatencyTable):
        self.widths = StepWidths(found)
        missing = [name for name in self.widths.full if name not in table.seconds]
        if missing or (table.network and table.network != _circumstances(found)[0]):
            raise MismatchError("the table of latencies is of another network: measure_latency(found) measures this one's")
        self.points = {name: tuple(zip(*points, strict=True)) for name, points in table.seconds.items()}
        self.now = {name: self._seconds(name) for name in self.widths.full}
        self.total = sum(self.now.values())

    def _seconds(self, name: str) -> float:
        """Interpolated time of a step at the width it has."""
        widths, seconds = self.points[name]
        width = self.widths.width(name)
        if len(widths) == 1 or width >= widths[-1]:
            return seconds[-1]
        place = max(bisect_right(widths, width), 1)  # below the narrowest, the line through the first two points
        share = (width - widths[place - 1]) / (widths[place] - widths[place - 1])
        return max(seconds[place - 1] + share * (seconds[place] - seconds[place - 1]), 0.0)

    def _move(self, group: int, sign: int) -> float:
        self.widths.move(group, sign)
        before = self.total
        for name in self.steps_of(group):
            seconds = self._seconds(name)
            self.total += seconds - self.now[name]
            self.now[name] = seconds
        return self.total - before

    def remove(self, group: int) -> float:
        """Take a group out; seconds saved."""
        return -self._move(group, -1)

    def add(self, group: int) -> float:
        """Put a group back; seconds added."""
        return self._move(group, 1)

    def steps_of(self, group: int) -> list[str]:
        """The steps whose time a group changes."""
        return self.widths.steps_of(group)

    @property
    def names(self) -> list[str]:
        """The steps."""
        return list(self.now)

    def shares(self) -> dict[str, float]:
        """What each step takes of the total as it is now; longest first."""
        return {name: seconds / self.total for name, seconds in sorted(self.now.items(), key=lambda pair: -pair[1]) if seconds}
