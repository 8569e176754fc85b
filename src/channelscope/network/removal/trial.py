"""Trial: the labeled graph of a network, and what only trying tells of it."""

import copy
from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from channelscope.network import nest
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.nest import tensors
from channelscope.network.operations import of_module
from channelscope.network.operations.opened import in_layers
from channelscope.network.removal.labeled_graph import Heads, LabeledGraph
from channelscope.network.removal.labels import numbers_in
from channelscope.network.removal.narrowing import NarrowedSteps, Removal, UnfitError, cut
from channelscope.network.tracing.recording import EXPONENT, coarsest, one_step, record

TRIALS = 16
"""Most runs for one half of the channels; each finds all steps that do not follow, so few are needed."""

CutPoints = Mapping[fx.Node, tuple[Tensor, int]]
"""step → numbers of the channels that are silenced in its value, and their axis"""


def single(module: nn.Module) -> bool:
    """Whether a module is one step of a recording: a layer of torch, or a type that has been registered.

    Examples
    --------
    >>> single(nn.ReLU()), single(nn.Sequential(nn.ReLU()))
    (True, False)
    """
    entry = of_module(module)
    return one_step(module) or (entry is not None and type(module) in entry.modules and not type(module).__module__.startswith("torch."))


def labeled_graph(model: nn.Module, example: Tensor | tuple[Tensor, ...], heads: Heads = "whole") -> LabeledGraph:
    """The channels of a network: which go together, which cannot be removed and why.

    What cannot be removed so that the smaller network computes what the silenced one computes is kept whole. That is
    tried: half of the groups are removed, then the others, and a step that does not follow keeps its channels.

    Parameters
    ----------
    model
        The network; it is neither changed nor needs gradients.
    example
        A batch of at least one image, or all inputs of the network.
    heads
        What attention can be narrowed by: whole heads, or one width in every head.

    Returns
    -------
    LabeledGraph
        Its `groups`, `whole`, `layers` and `macs`.

    Raises
    ------
    TracingError
        If the forward pass cannot be recorded.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1)).eval()
    >>> found = labeled_graph(net, torch.zeros(1, 3, 5, 5))
    >>> found.groups
    ((('0', 0),), (('0', 1),))
    >>> found.whole
    {'2': '4 of 4 channels: its values are outputs of the network'}
    """
    body = in_layers(model)
    graph = LabeledGraph(record(body, noise_like(example), whole=single), body, heads)
    try_out(graph)
    return graph


def noise_like(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One image of noise, and the other inputs of an example as they are.

    Examples
    --------
    >>> image, length = noise_like((torch.zeros(7, 3, 4, 4), torch.tensor([5])))
    >>> image.shape, length
    (torch.Size([1, 3, 4, 4]), tensor([5]))
    """
    source = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(1, *part.shape[1:], generator=source).to(part) if part.is_floating_point() and part.dim() > 1 else part[:1]
        for part in (example if isinstance(example, tuple) else (example,))
    )


def try_out(graph: LabeledGraph, cut_points: CutPoints | None = None, seen: Collection[fx.Node] = ()) -> list[fx.Node]:
    """Remove half of the groups, then the others; channels of steps that do not follow are kept whole.

    Every step of the smaller network is given what is left of the silenced network's values, so that each difference shows
    where it arises.

    Parameters
    ----------
    graph
        The labeled graph; more of its channels are kept afterwards.
    cut_points
        Where channels are silenced; channels without a cut point are not removed. None: all channels, wherever a value
        depends on them alone.
    seen
        Steps at which a channel can be silenced again that gets a value behind its cut point, as from the shift of a norm.

    Returns
    -------
    list of Node
        Those of `seen` where that is necessary.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> try_out(graph)  # every step follows
    []
    """
    coin = torch.rand(len(graph.union.parent), generator=torch.Generator().manual_seed(0)) < 0.5
    model = generic(graph.model)
    waking: set[fx.Node] = set()
    with torch.no_grad(), eval_mode(model):
        whole = graph.executor.of_copy(model)
        for side in (coin, ~coin):
            for _ in range(TRIALS):
                gone = half(graph, side, cut_points)
                if not bool(gone.any()):
                    break
                trial = _SideBySide(graph, whole, gone, cut_points, seen)
                waking |= trial.waking
                if not trial.found:
                    break
                for numbers, reason in trial.found:
                    graph.hold(numbers, reason)
                graph.settle()
    return [node for node in graph.steps.nodes if node in waking]


def half(graph: LabeledGraph, coin: Tensor, cut_points: CutPoints | None = None) -> Tensor:
    """Marks of the groups whose coin fell on one side; no layer loses all its inputs or outputs.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> half(graph, torch.tensor([True, False, False, True])).tolist()  # channel 3 is the network's output
    [True, False, False, False]
    """
    roots = graph.union.roots(torch.arange(len(coin)))
    removable = torch.tensor([root not in graph.union.held for root in roots.tolist()], dtype=torch.bool)
    if cut_points is not None:
        removable &= torch.isin(roots, torch.cat([roots[numbers] for numbers, _ in cut_points.values()] or [roots[:0]]))
    marks = coin[roots] & removable
    sets = [numbers for layer in graph.layers for numbers in (layer.inputs, layer.outputs) if bool((numbers >= 0).all())]
    sets += [torch.tensor(numbers) for numbers in graph.parts]
    while True:
        empty = [numbers for numbers in sets if bool(marks[numbers].all())]
        if not empty:
            return marks
        marks &= ~torch.isin(roots, torch.stack([roots[numbers[0]] for numbers in empty]))


class _SideBySide:
    """A run of the silenced and of the smaller network, step by step; `found` has the channels to keep, each with the reason."""

    def __init__(self, graph: LabeledGraph, whole: Graph, gone: Tensor, cut_points: CutPoints | None, seen: Collection[fx.Node]):
        self.graph, self.gone, self.cut_points = graph, gone, cut_points
        self.removal, self.allowed = Removal(graph, gone), coarsest(whole.model) ** EXPONENT
        small = cut(whole.model, graph, self.removal, shared=True)
        self.whole, self.steps = whole, NarrowedSteps(graph, self.removal, whole.of_copy(small), self.allowed)
        self.silent: dict[str, Any] = {}
        self.seen = set(seen) - _own_chains(graph, cut_points)
        self.waking: set[fx.Node] = set()
        self.found: list[tuple[Tensor, str]] = []
        for node in graph.steps.nodes:
            if node.op != "output":
                self._step(node)

    def _step(self, node: fx.Node) -> None:
        graph, labels = self.graph, self.graph.labels[node]
        value = graph.values[node.name] if node.op == "placeholder" else self.whole.step(node, self.silent, out_of_place=True)
        self.silent[node.name] = value = self._silenced(node, value, labels)
        dynamic = node in graph.dynamic and bool(tensors(value)) and not isinstance(value, torch.Size)
        left = _left(value, labels, self.removal) if dynamic else value
        reason = ""
        try:
            received = self.steps.value(node, value)
        except UnfitError as error:
            received, reason = left, str(error)
        else:
            if dynamic and not _close(received, left, self.allowed):
                reason = f"{graph.step(node).place} computes something else from fewer channels than from silenced ones"
        if reason:
            read = numbers_in([graph.labels[each] for each in node.all_input_nodes])
            self.found.append((read if bool(self.gone[read].any()) else numbers_in([graph.labels[node]]), reason))
        self.steps.set(node, left if dynamic else received)
        for parent in node.all_input_nodes:
            if not self.steps.waiting[parent]:
                self.silent.pop(parent.name, None)

    def _silenced(self, node: fx.Node, value: Any, labels: Any) -> Any:
        """A step's value with the channels that go at zero."""
        if self.cut_points is None:
            return self.removal.masked(value, labels)
        if node in self.cut_points:
            numbers, axis = self.cut_points[node]
            shape = [1] * value.dim()
            shape[axis] = -1
            return value.masked_fill(self.gone[numbers].to(value.device).view(shape), 0)
        if node in self.seen and isinstance(value, Tensor) and value.is_floating_point() and self.removal.is_awake(value, labels):
            self.waking.add(node)
            return self.removal.masked(value, labels)
        return value


def _own_chains(graph: LabeledGraph, cut_points: CutPoints | None) -> set[fx.Node]:
    """Steps from a layer to the cut point of its channels: what is applied there is silenced with the channel."""
    found: set[fx.Node] = set()
    for node in cut_points or ():
        while node not in found:
            found.add(node)
            parents = [parent for parent in node.all_input_nodes if parent in graph.dynamic]
            if node.name in graph.readers or not parents:
                break
            node = parents[0]
    return found


def _left(value: Any, labels: Any, removal: Removal) -> Any:
    """What is left of each tensor of a step's value."""
    marks = iter(tensors(labels))
    return nest.replaced(value, lambda part: removal.restricted(part, next(marks, None)))


def _close(received: Any, left: Any, allowed: float) -> bool:
    """Whether the floating-point tensors of two values differ by rounding alone."""
    for one, other in zip(tensors(received), tensors(left), strict=True):
        if not one.is_floating_point() or torch.equal(one, other):
            continue
        if one.shape != other.shape:
            return False
        gap, scale = float((one - other).abs().max()), float(other.abs().max())
        if not gap <= allowed * scale < float("inf") and not torch.allclose(
            one, other, rtol=0, atol=_scaled(other, allowed), equal_nan=True
        ):
            return False
    return True


def _scaled(value: Tensor, allowed: float) -> float:
    """So much of a value's largest finite element."""
    return allowed * float(value.abs().nan_to_num(nan=0, posinf=0).max())


def generic(model: nn.Module) -> nn.Module:
    """A copy of a network in which no shift is zero by chance: vectors of parameters and statistics are replaced by random ones.

    What silencing leaves of a channel then shows, whatever the weights of the network are.

    Parameters
    ----------
    model
        The network; it stays as it is.

    Returns
    -------
    nn.Module
        The copy.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    >>> shift = generic(net)[1].bias
    >>> bool((shift >= 0.5).all()), net[1].bias.tolist()
    (True, [0.0, 0.0])
    """
    source = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in [*model.named_parameters(), *model.named_buffers()]:
            if not part.is_floating_point() or not prod(part.shape):
                continue
            if name.endswith("running_var") or (part.dim() > 1 and bool((part != 0).all())):
                continue
            draws = (0.5 + torch.rand(part.shape, generator=source, dtype=torch.float64)).to(part)
            if name.endswith("running_mean"):
                part.copy_(-draws)
            else:
                part.copy_(draws if part.dim() <= 1 else torch.where(part == 0, draws, part))
    return model
