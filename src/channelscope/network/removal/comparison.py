"""A smaller network compared with the silenced one, in float64 and for any nested output."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.errors import FAILURES, MismatchError, first_line, no_lack_of_memory
from channelscope.network.edits import edit, silence
from channelscope.network.module_state import eval_mode, restored_attributes
from channelscope.network.operations import layers_called
from channelscope.network.removal.groups import Groups
from channelscope.network.removal.labeled_graph import Layer
from channelscope.network.tracing.recording import EXPONENT, coarsest, defined, distance
from channelscope.subset import Subset
from channelscope.types import Bool, Float, Tensor

FLOOR = 0.3
"""What is below eps**FLOOR of the largest layer's output may be nothing but rounding: 2e-5 in float64."""

SHAKEN = 16.0
"""Rounding may take so many times what random changes of all weights by one unit in the last place do at most."""

SHAKES = 4
"""Random changes of all weights: what a single one does to a few numbers can be small by chance."""

CEILING = 0.4
"""No rounding excuses more than eps**CEILING of the largest output, 5e-7 in float64; where it explains more, another trial has to tell."""

PUSH = 3.0
"""Offsets that wake silent channels, in root mean squares of what the layer gives out."""

REAL = 2
"""Real images that are compared on."""

Offsets = Mapping[str, Tensor]
"""site → what is added to each channel of its layer's output, (channels,)"""


def kept_ids(found: Groups, kept: Subset) -> Tensor:
    """Which channel numbers stay: bool (all channels + 1,), True at −1, the number of what cannot be removed.

    Raises
    ------
    InputError
        If a group is split or a channel cannot be removed.
    MismatchError
        If the subset is of another network.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 1)).eval()
    >>> found = groups(net, torch.ones(1, 1, 1, 1))
    >>> kept_ids(found, found.to_subset(np.array([False, True]))).tolist()
    [False, True, True, True]
    """
    alive = np.append(found.kept(kept), True)[found.group_of]
    return torch.from_numpy(np.append(alive, True))


def check_same(small: nn.Module, kept: Subset, found: Groups, images: tuple[Tensor, ...] | None = None) -> float:
    """Refuse a smaller network that computes something else than the silenced one.

    Both run in float64 on noise, on real images where they are given, and on noise with an offset added to every channel, so that
    channels that the noise leaves silent count too. Every layer's output and every tensor of the network's nested output is
    compared. Where the pass itself rounds to less than float64, or cannot run in it, so much is allowed as that rounding takes. Where
    a deep network amplifies rounding, a tensor may differ by 16 times what random changes of all weights by one unit in the last
    place do to it, and by 5e-7 of its largest value at most.

    Parameters
    ----------
    small
        The smaller network.
    kept
        The channels it was made of.
    found
        The `groups` of the original.
    images
        All inputs of the network for one or more real images; the first two are compared on.

    Returns
    -------
    float
        Difference that comes closest to what is allowed, relative to the largest value of its tensor.

    Raises
    ------
    MismatchError
        If the smaller network cannot run or an output differs by more than rounding.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 1)).eval()
    >>> found = groups(net, torch.ones(1, 1, 1, 1))
    >>> check_same(net, found.to_subset(np.array([True, True])), found)  # nothing is removed, so nothing differs
    0.0
    """
    with restored_attributes(small), restored_attributes(found.graph.body):
        try:
            error, where, allowed = _in_double(small, kept, found, images)
        except FAILURES as refusal:  # part of the pass asks for the network's own type
            no_lack_of_memory(refusal)
            try:
                error, where, allowed = _furthest(small, kept, found, images)
            except FAILURES as failure:
                no_lack_of_memory(failure)
                raise MismatchError(f"the smaller network cannot run: {first_line(failure)}; please report the network") from failure
    if not error <= allowed:
        raise MismatchError(
            f"the smaller network is {error:.2g} (relative) away from the silenced one at {where}: part of the pass is different with "
            "fewer channels; keep its channels, or please report the network"
        )
    return error


def _in_double(small: nn.Module, kept: Subset, found: Groups, images: tuple[Tensor, ...] | None) -> tuple[float, str, float]:
    """What `_furthest` gives in float64, or in the network's own type where its code rounds though its steps do not."""
    with _doubled(small, found):
        error, where, allowed = _furthest(small, kept, found, images)
        if error <= allowed or not _is_imprecise(found):
            return error, where, allowed
    return _furthest(small, kept, found, images)


@torch.no_grad()
def _is_imprecise(found: Groups) -> bool:
    """Whether the recorded steps compute in float64 what the code of the network computes in less."""
    model, noise = found.graph.body, _noise(found, 1, torch.Generator().manual_seed(0))
    watch = _Watch(model, found, torch.ones(len(found.group_of) + 1, dtype=torch.bool))
    with eval_mode(model), _Rounding(coarsest(model)) as rounding:
        code = watch(noise, {}), watch.seen
        with edit(found.graph, {}):
            steps = watch(noise, {}), watch.seen
    return not distance(steps, code)[0] <= rounding.eps**EXPONENT


@dataclass(frozen=True)
class Judgment:
    """How two networks differ at one place in one trial."""

    error: float
    """the difference, relative"""
    allowed: float
    """what rounding explains of it"""
    where: str
    """the place and the trial"""
    chaotic: bool
    """whether rounding explains more there than may be excused: the trial says nothing of the place"""


def telling(trials: list[Judgment]) -> list[Judgment]:
    """The trials that say something of a place; all of them where none does.

    Examples
    --------
    >>> calm, wild = Judgment(1e-15, 1e-9, "conv on noise", False), Judgment(6e-6, 5e-7, "conv on noise with offsets", True)
    >>> telling([calm, wild]) == [calm], telling([wild]) == [wild]
    (True, True)
    """
    return [each for each in trials if not each.chaotic] or trials


@torch.no_grad()
def _furthest(small: nn.Module, kept: Subset, found: Groups, images: tuple[Tensor, ...] | None) -> tuple[float, str, float]:
    """The difference that exceeds what rounding explains by most, over all trials, where it is, and what rounding explains there."""
    model, draws = found.graph.body, torch.Generator().manual_seed(0)
    keep = kept_ids(found, kept)
    ours, theirs = _Watch(small, found, keep), _Watch(model, found, torch.ones_like(keep), keep)
    noise = _noise(found, 2, draws)
    trials = [("noise", noise), ("noise with offsets", _noise(found, 1, draws))]
    if images is not None:
        trials.append(("real images", tuple(_real(part, like) for part, like in zip(images, noise, strict=True))))
    judged: dict[str, list[Judgment]] = defaultdict(list)
    finite = False
    with eval_mode(small), eval_mode(model), silence(found.graph, replace(~kept, groups=found)), _Rounding(coarsest(model)) as rounding:
        ceiling = rounding.eps**CEILING
        for kind, inputs in trials:
            offsets = theirs.offsets(draws) if kind == "noise with offsets" else {}
            offsets = {name: offset for name, offset in offsets.items() if name in ours.seen}  # a recorded pass may not call it
            expected, received = theirs(inputs, offsets), ours(inputs, offsets)
            finite |= defined(expected)
            floor = rounding.eps**FLOOR * max((size for size in theirs.scales.values() if size < float("inf")), default=0.0)
            seen = {name: value for name, value in theirs.seen.items() if name in ours.seen}
            pairs = _distances((ours.seen, received), (seen, expected), floor)
            explained = [rounding.eps**EXPONENT] * len(pairs)
            if rounding.eps == torch.finfo(torch.float64).eps and max(pairs)[0] > explained[0]:
                moved = [_distances(theirs.shaken(inputs, offsets, seed), (seen, expected), floor) for seed in range(SHAKES)]
                largest = [max(move for move, _ in shakes) for shakes in zip(*moved, strict=True)]
                explained = [max(explained[0], SHAKEN * move) for move in largest]
            for (error, where), most in zip(pairs, explained, strict=True):
                judged[where].append(Judgment(error, min(most, ceiling), f"{where} on {kind}", ceiling < error <= most))
    if not finite:
        return float("inf"), "the output, which is nowhere finite on noise", 0.0
    worst = max((each for trials in judged.values() for each in telling(trials)), key=lambda each: each.error / each.allowed)
    return worst.error, worst.where, worst.allowed


Outputs = tuple[Mapping[str, Tensor], Any]
"""layer → what it gave out, and the network's output"""


def _distances(received: Outputs, expected: Outputs, floor: float) -> list[tuple[float, str]]:
    """Difference of each of the expected layers and of the output, and where it is."""
    layers = [distance(received[0][name], value, name, floor) for name, value in expected[0].items()]
    return [*layers, distance(received[1], expected[1], floor=floor)]


class _Watch:
    """Runs a network, remembering what its layers gave out and adding offsets to the layers of sites."""

    def __init__(self, model: nn.Module, found: Groups, keep: Bool[Tensor, "channels"], compared: Bool[Tensor, "channels"] | None = None):
        """`keep` marks the channel numbers that the network has; of these, those of `compared` are looked at."""
        self.model, self.found, self.keep = model, found, keep
        self.compared = keep if compared is None else compared
        self.calls: dict[str, list[Tensor]] = {}
        self.seen: dict[str, Float[Tensor, "calls channels"]] = {}
        self.scales: dict[str, float] = {}

    def __call__(self, inputs: tuple[Tensor, ...], offsets: Offsets) -> Any:
        """Output of the network; `seen` then has, for each layer, a sum over positions with random weights, one a call."""
        self.calls = {layer.name: [] for layer in self.found.layers}
        with ExitStack() as stack:
            for layer in self.found.layers:
                hook = self._hook(layer, offsets.get(layer.name))
                stack.callback(self.model.get_submodule(layer.name).register_forward_hook(hook).remove)
            stack.enter_context(layers_called(self.model))
            output = self.model(*inputs)
        self.seen = {name: torch.stack(calls) for name, calls in self.calls.items() if calls}
        return output

    def shaken(self, inputs: tuple[Tensor, ...], offsets: Offsets, seed: int) -> Outputs:
        """`seen` and the output with every weight randomly changed by about one unit in the last place; afterwards as before."""
        draws = torch.Generator().manual_seed(seed)
        before = [(part, part.data) for part in self.model.parameters() if part.is_floating_point()]
        try:
            for part, data in before:
                noise = torch.randn(data.shape, generator=draws, dtype=torch.float64).to(data)
                part.data = data * (1 + torch.finfo(data.dtype).eps * noise)
            output = self(inputs, offsets)
            return self.seen, output
        finally:
            for part, data in before:
                part.data = data

    def _hook(self, layer: Layer, offset: Tensor | None) -> Callable[..., Tensor | None]:
        there = self.keep[layer.outputs]
        looked = self.compared[layer.outputs][there]

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            axis = output.dim() - 1 if layer.linear else 1
            flat = output.movedim(axis, 0).reshape(output.shape[axis], -1)
            draws = torch.Generator().manual_seed(len(self.calls[layer.name]))
            weights = torch.randn(flat.shape[1], generator=draws, dtype=torch.float64).to(flat)
            self.calls[layer.name].append((flat @ weights)[looked.to(flat.device)])
            self.scales[layer.name] = float(flat.square().mean().sqrt())
            if offset is None:
                return None
            shape = [1] * output.dim()
            shape[axis] = -1
            return output + offset[there].to(output).view(shape)

        return hook

    def offsets(self, draws: torch.Generator) -> Offsets:
        """A random offset for every channel of every site, in proportion to what its layer gave out."""
        result = {}
        for site in (site for site in self.found.sites if site.name in self.scales):
            scale = self.scales[site.name] if 0 < self.scales[site.name] < float("inf") else 1.0
            signs = torch.randint(0, 2, (site.channels,), generator=draws) * 2 - 1
            result[site.name] = signs * (0.5 + torch.rand(site.channels, generator=draws, dtype=torch.float64)) * PUSH * scale
        return result


def _noise(found: Groups, count: int, draws: torch.Generator) -> tuple[Tensor, ...]:
    """So many images of noise in the precision of the network's parameters; inputs that are no images as they are."""
    wide = coarsest(found.graph.body) == torch.finfo(torch.float64).eps
    inputs = []
    for part in found.example:
        like = part.double() if wide and part.is_floating_point() else part
        if part.dim() > 1:
            noise = torch.randn(count, *part.shape[1:], generator=draws)
            like = noise.to(like) if part.is_floating_point() else part[:1].repeat(count, *[1] * (part.dim() - 1))
        inputs.append(like)
    return tuple(inputs)


def _real(part: Tensor, like: Tensor) -> Tensor:
    part = part[:REAL] if part.dim() > 1 else part
    return part.to(like) if part.is_floating_point() else part.to(like.device)


class _Rounding(TorchDispatchMode):
    """Watches for steps that round further: `eps` is that of the coarsest type that a value of a finer type was turned into, or back."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for part in args for each in (part if isinstance(part, tuple | list) else [part])]
        kinds = [torch.finfo(each.dtype).eps for each in given if isinstance(each, Tensor) and each.is_floating_point()]
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor) and part.is_floating_point() and kinds:
                made = torch.finfo(part.dtype).eps
                if made != min(kinds) or made != max(kinds):
                    self.eps = max(self.eps, made, *kinds)
        return result


@contextmanager
def _doubled(small: nn.Module, found: Groups) -> Iterator[None]:
    """While inside, both networks' parameters, buffers and constants are float64; afterwards they are what they were, to the bit."""
    every: list[Tensor] = list(found.graph.constants.values())
    for model in (small, found.graph.body):
        every += [*model.parameters(), *model.buffers()]
        every += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    before = [(part, part.data) for part in {id(part): part for part in every}.values() if part.is_floating_point()]
    try:
        for part, data in before:
            part.data = data.double()
        yield
    finally:
        for part, data in before:
            part.data = data
