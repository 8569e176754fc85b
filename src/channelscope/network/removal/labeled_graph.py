"""LabeledGraph: which channel every element of every value and of every parameter of a network belongs to.

Each layer's output channels get numbers. The recorded pass is walked once with a tensor of numbers in the place of each
value; what a step does with the numbers is said by its entry in the table of operations.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from channelscope.errors import FAILURES, no_lack_of_memory
from channelscope.network import nest
from channelscope.network.graph import Graph
from channelscope.network.nest import tensors
from channelscope.network.operations.elementwise import met
from channelscope.network.operations.mixing import Mix
from channelscope.network.operations.operation import Operation, of_module, of_step
from channelscope.network.operations.step import Operand, Step, computed, kept_whole
from channelscope.network.removal.labels import (
    ADOPTED,
    FIXED,
    FREE,
    PARAMETERS,
    Sources,
    Union,
    agree,
    channels_in,
    compact,
    fixed,
    full,
    numbers_in,
)
from channelscope.network.tracing.recorder import Recording

Heads = Literal["whole", "widths"]
"""What attention can be narrowed by: whole heads, or the widths of queries, keys and values in every head."""
ROUNDS = 16
"""Most rounds in which removal is made to be of whole slices; each only unites channels, so few are needed."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One use of weights that mix channels: which channels it reads and which it writes."""

    name: str
    """path of the module, or of the parameter where a function uses it"""
    node: str
    """the step"""
    inputs: Tensor
    """int64 (inputs,): channel numbers, FIXED where nothing can be removed"""
    outputs: Tensor
    """int64 (outputs,)"""
    taps: int
    """multiply-adds for one pair of an input and an output channel at one position"""
    positions: int
    """positions per image"""
    groups: int = 1
    axis: int = 1
    """axis of the value along which its channels lie"""
    linear: bool = False
    """whether it is a linear layer, whose channels are on the last axis"""


class LabeledGraph:
    """The labels of a recorded pass and what follows from them.

    Parameters
    ----------
    recording
        A recorded pass over one image.
    model
        The network.
    heads
        What attention can be narrowed by.

    Attributes
    ----------
    labels
        Step → labels of its value.
    sources
        Parameters, buffers and computed weights, with the channels that their elements go with.
    layers
        Uses of weights, in execution order.
    sites
        Layer name → (number of its first channel, number of channels).
    union
        Channels that go together, and why some stay.
    opaque
        Place → why a step was not followed.
    parts
        Channels that a part of a value consists of → the step that takes it.
    counted
        Step → how many channels a mean was taken over; a smaller network has to go on dividing by that.
    scaled
        Step → width of the queries that attention divides by the root of.
    reads
        Step of a norm over groups → the channels that it reads.
    factors
        Step of a norm whose value only scales channels → numbers of the places of its value: each goes with the channels it scales.
    """

    def __init__(self, recording: Recording, model: nn.Module, heads: Heads = "whole"):
        self.model, self.heads = model, heads
        self.steps, self.values, self.owner = recording.steps, recording.values, recording.owner
        self.constants = recording.constants
        self.executor = Graph(model, recording.steps, {}, recording.constants, recording.output)
        self.modules = dict(model.named_modules())
        self.union, self.sources = Union(), Sources()
        self.sites: dict[str, tuple[int, int]] = {}
        self.keys: dict[str, str] = {}
        self.layers: list[Layer] = []
        self.opaque: dict[str, str] = {}
        self.counted: dict[fx.Node, int] = {}
        self.scaled: dict[fx.Node, int] = {}
        self.reads: dict[str, Tensor] = {}
        self.factors: dict[fx.Node, Tensor] = {}
        self.parameters = {path for path, _ in model.named_parameters(remove_duplicate=False)}
        self.grids: list[Tensor] = []
        self.parts: dict[tuple[int, ...], str] = {}
        self.labels: dict[Any, Any] = {}
        self.adopted: dict[int, int] = {}
        self.canonical: dict[int, str] = {}
        self.named: dict[str, Tensor] = {}
        for kind in (model.named_parameters, model.named_buffers):
            for path, tensor in kind(remove_duplicate=False):
                self.canonical.setdefault(id(tensor), path)
                self.named[path] = tensor
        self.dynamic = self._dynamic()
        for node in self.steps.nodes:
            self.labels[node] = self._label(node)
        self._settle()

    def _dynamic(self) -> set[fx.Node]:
        """Steps whose value depends on the image, and not merely on its shape."""
        found: set[fx.Node] = set()
        for node in self.steps.nodes:
            parents = [parent for parent in node.all_input_nodes if tensors(self.values.get(parent.name))]
            if node.op == "placeholder" or (node.op != "get_attr" and any(parent in found for parent in parents)):
                found.add(node)
        return found

    @cached_property
    def readers(self) -> dict[str, list[Layer]]:
        """Step → the layers whose weights it uses."""
        found: dict[str, list[Layer]] = defaultdict(list)
        for layer in self.layers:
            found[layer.node].append(layer)
        return dict(found)

    @property
    def images(self) -> tuple[Tensor, ...]:
        """The recorded inputs in float64."""
        parts = (self.values[name] for name in self.executor.inputs)
        return tuple(part.double() if part.is_floating_point() else part for part in parts)

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """Names of the steps that compute the same floating-point values for every image, from parameters or constants."""
        return tuple(
            node.name
            for node in self.steps.nodes
            if node.op not in ("placeholder", "get_attr", "output")
            and node not in self.dynamic
            and any(part.is_floating_point() for part in tensors(self.values.get(node.name)))
        )

    def entry(self, node: fx.Node) -> Operation:
        """The entry of a step in the table."""
        return of_step(node, self.modules)

    def step(self, node: fx.Node) -> Step:
        """A step as its entry sees it."""
        return Step(node, self.entry(node), self.modules, self)

    def entry_of(self, path: str) -> Operation | None:
        """The entry of the module at a path."""
        return of_module(self.modules[path]) if path in self.modules else None

    def _label(self, node: fx.Node) -> Any:
        value = self.values.get(node.name)
        if node.op == "placeholder":
            return fixed(value)
        if node.op == "get_attr":
            return self._attribute(node, value)
        if node.op == "output":
            for parent in node.all_input_nodes:
                self.hold(numbers_in(self.labels[parent]), "its values are outputs of the network")
            return None
        if isinstance(value, torch.Size) or not tensors(value):
            return value
        step = self.step(node)
        try:
            labels = self._by_entry(step)
        except FAILURES as error:  # an entry that does not know this form of the call
            no_lack_of_memory(error)
            labels = kept_whole(step)
        if step.entry.moves and not step.static:
            self._note_parts(step, labels)
        return labels

    def _by_entry(self, step: Step) -> Any:
        traced = step.entry.traces or not step.static or not any(bool((compact(part) >= PARAMETERS).any()) for part in step.inputs())
        labels = step.entry.labels(step) if traced else computed(step)
        if self.factors and step.entry.arithmetic == "product" and len(self.dynamic.intersection(step.node.all_input_nodes)) > 1:
            labels = self._scaled(step, labels)
        return self._regular(labels)

    def _scaled(self, step: Step, labels: Tensor) -> Tensor:
        """Labels of a product: where a factor meets a channel, the channel's, which the product is silent with."""
        labels = compact(labels)
        for part in map(compact, step.inputs()):
            factor = self._are_factors(labels)
            channel = channels_in(part) & ~self._are_factors(part)
            labels = torch.where(factor & channel, part, labels)
        self.hold_factors(labels, f"{step.place} scales something else than channels with them")
        return torch.where(self._are_factors(labels), FIXED, labels).expand(step.value.shape)

    def _are_factors(self, labels: Tensor) -> Tensor:
        return torch.isin(labels, torch.cat(list(self.factors.values())))

    def _note_parts(self, step: Step, labels: Any) -> None:
        """Remember which channels a part of a value consists of: one of them has to stay."""
        for part in tensors(labels):
            numbers = compact(part).unique()
            if len(numbers) and bool(channels_in(numbers).all()):
                self.parts.setdefault(tuple(numbers.tolist()), step.place)

    def _attribute(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.numel() == 1:
            return full(tuple(value.shape), FREE)
        if node.target not in self.named or not (value.is_floating_point() or value.is_complex()):
            return full(tuple(value.shape))
        return self.source(str(node.target)).numbers()

    def source(self, path: str) -> Any:
        """The source of a parameter or buffer, under the first of its names."""
        tensor = self.named[path]
        return self.sources.add(self.canonical[id(tensor)], tensor)

    def _regular(self, labels: Any) -> Any:
        """Shorten what repeats, and remember labels that vary along several axes: removal has to be of whole slices there."""

        def regular(part: Tensor) -> Tensor:
            short = compact(part)
            if sum(size > 1 for size in short.shape) > 1 and bool(channels_in(short).any()):
                self.grids.append(short)
            return short.expand(part.shape)

        return nest.replaced(labels, regular)

    @cached_property
    def groups(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Channels that can be removed, in groups that go together: (layer, channel) of each member, in execution order."""
        members: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, (start, count) in self.sites.items():
            for channel in range(count):
                root = self.union.root(start + channel)
                if root not in self.union.held:
                    members[root].append((name, channel))
        return tuple(tuple(group) for group in members.values())

    @cached_property
    def whole(self) -> dict[str, str]:
        """Layer → how many of its channels cannot be removed, and why the first of them cannot."""
        found: dict[str, str] = {}
        for name, (start, count) in self.sites.items():
            reasons = [reason for reason in (self.union.reason(number) for number in range(start, start + count)) if reason]
            if reasons:
                found[name] = f"{len(reasons)} of {count} channels: {reasons[0]}"
        return found

    @cached_property
    def macs(self) -> dict[str, int]:
        """Step → its multiply-adds on the recorded image; steps without any are left out."""
        found = {}
        for node in self.steps.nodes:
            if node.op in ("call_module", "call_function", "call_method") and tensors(self.values.get(node.name)):
                count = self.entry(node).macs(self.step(node))
                if count:
                    found[node.name] = count
        return found

    def gone(self, groups: Iterable[int]) -> Tensor:
        """Marks of the channels in these groups, bool (all channels,)."""
        marks = torch.zeros(len(self.union.parent), dtype=torch.bool)
        for index in groups:
            for name, channel in self.groups[index]:
                marks[self.sites[name][0] + channel] = True
        roots = self.union.roots(torch.arange(len(marks)))
        return torch.isin(roots, roots[marks])

    # what entries ask for

    def hold(self, labels: Tensor, reason: str) -> None:
        """Keep these channels, and all that go with them."""
        self.union.hold(labels, reason)

    def factors_of(self, node: fx.Node, count: int) -> Tensor:
        """Numbers of the places of a value that only scales channels."""
        self.factors[node] = self.union.add(count)
        return self.factors[node]

    def hold_factors(self, labels: Tensor, reason: str) -> None:
        """Keep those of the labels that are places of a value which was to scale channels alone."""
        if self.factors:
            self.hold(labels[self._are_factors(labels)], reason)

    def removable(self, labels: Tensor) -> bool:
        """Whether some channel among the labels can still be removed."""
        return any(not self.union.reason(number) for number in numbers_in(labels).tolist())

    def forget_values(self) -> None:
        """Keep of the values that depend on the image only form and integers, once all multiply-adds are counted."""
        assert self.macs is not None
        for node in self.dynamic:
            if node.op != "placeholder" and node.name in self.values:
                self.values[node.name] = nest.replaced(
                    self.values[node.name], lambda part: part.to("meta") if part.is_floating_point() else part
                )

    def keep(self, labels: Tensor, reason: str) -> None:
        """Keep these channels whole after the walk, and all that follows from that."""
        self.hold(labels, reason)
        self.settle()

    def settle(self) -> None:
        """Keep also what follows from the channels that are kept."""
        for name in ("groups", "whole"):
            self.__dict__.pop(name, None)
        self._settle()

    def channels(self, key: str, name: str, count: int) -> Tensor:
        """Numbers of the output channels of a layer; the same ones whenever its weights are used again."""
        if key not in self.keys:
            while name in self.sites:
                name = f"{name}'"
            self.keys[key] = name
            self.sites[name] = (len(self.union.parent), count)
            return self.union.add(count)
        start, known = self.sites[self.keys[key]]
        if known != count:
            self.hold(torch.arange(start, start + known), f"the weights of {name} are used with several widths")
            return torch.full((count,), FIXED)
        return torch.arange(start, start + count)

    def follow(self, operand: Operand, axis: int, numbers: Tensor, use: str) -> None:
        """Slices of a parameter along an axis go with one channel each."""
        labels = None if operand.path is not None else self.labels[operand.node]
        if operand.path is not None:
            source = self.source(operand.path)
            operand = Operand(operand.value, source.name, operand.node)
        self.sources.follow(operand, labels, axis, numbers, use)

    def compute(self, node: fx.Node) -> None:
        """Give the elements of a computed weight numbers of their own."""
        self.labels[node] = self.sources.add(node.name, self.values[node.name], node).numbers()

    def add_layer(self, step: Step, name: str, inputs: Tensor, outputs: Tensor, how: Mix) -> None:
        """Note one use of weights that mix channels."""
        self.layers.append(Layer(name, step.node.name, inputs, outputs, how.taps, how.positions, how.groups, how.axis, how.linear))

    def along(self, labels: Tensor, axis: int, why: str) -> Tensor:
        """One number for each place along an axis; channels that share a place are united, and stay where something FIXED is."""
        short = compact(labels).movedim(axis, 0)
        rows = short.expand(labels.shape[axis], *short.shape[1:]).reshape(labels.shape[axis], -1)
        high = rows.amax(1)
        low = torch.where(rows == FREE, high[:, None], rows).amin(1)
        for row in rows[high != low]:
            self.union.unite_all(row, why)
            self.adopt(row, why)
        mixed = (high != low) & ~channels_in(high)
        for place in mixed.nonzero().flatten().tolist():
            channels = rows[place][channels_in(rows[place])]
            high[place] = channels[0] if len(channels) else FIXED
        return torch.where(high == FREE, FIXED, high)

    def adopt(self, row: Tensor, why: str) -> None:
        """Elements of parameters that lie in one slice with channels go with the first of them."""
        channels = row[channels_in(row)]
        if not len(channels):
            return
        fresh = []
        for element in row[row >= PARAMETERS].unique().tolist():
            if element in self.adopted:
                self.union.unite(self.adopted[element], int(channels[0]), why)
            else:
                self.adopted[element] = int(channels[0])
                fresh.append(element)
        if fresh:
            self.sources.tie(torch.tensor(fresh), channels[:1].expand(len(fresh)), ADOPTED)

    def together(self, labels: Tensor, axes: list[int], why: str) -> None:
        """All channels that lie along these axes beside one another go together."""
        short = compact(labels)
        axes = [axis % labels.dim() for axis in axes]
        if all(short.shape[axis] == 1 for axis in axes):
            return
        rest = [axis for axis in range(short.dim()) if axis not in axes]
        rows = short.permute(*rest, *axes).flatten(len(rest)) if rest else short.flatten()
        for row in rows.reshape(-1, rows.shape[-1]).unique(dim=0):
            self.union.unite_all(row, why)
            self.adopt(row, why)

    def meet(self, a: Tensor, b: Tensor, step: Step) -> Tensor:
        """Labels of two tensors combined element by element."""
        return met(self, a, b, step)

    # after the walk

    def _settle(self) -> None:
        for _ in range(ROUNDS):
            before = self._state()
            for source in list(self.sources.found.values()):
                agree(source, self.sources, self.union)
            for grid in self.grids:
                self._slices(grid)
            if self._state() == before:
                break
        members: dict[int, int] = defaultdict(int)
        for name, (start, count) in self.sites.items():
            members.clear()
            for number in range(start, start + count):
                members[self.union.root(number)] += 1
            if len(members) == 1:
                (root,) = members
                self.hold([root], self.union.why.get(root, f"{name} has no other channels"))  # type: ignore[arg-type]

        for numbers, place in self.parts.items():
            if len({self.union.root(number) for number in numbers}) == 1:
                self.hold(torch.tensor(numbers[:1]), f"{place} takes nothing else")

    def _state(self) -> tuple[int, int, int]:
        roots = sum(number == parent for number, parent in enumerate(self.union.parent))
        return roots, len(self.union.held), sum(len(source.uses) for source in self.sources.found.values())

    def _slices(self, grid: Tensor) -> None:
        """Make removal take whole slices of a value whose labels vary along several axes, along the axis with most parts."""
        labels = self.union.roots(grid)
        axes = [axis for axis, size in enumerate(compact(labels).shape) if size > 1]
        best: list[Tensor] = []
        most = -1
        for axis in axes:
            rows = labels.movedim(axis, 0).flatten(1)
            rows = list(rows.unbind())
            parts = _parts(rows)
            if parts > most:
                best, most = rows, parts
        for row in best:
            if not bool((row == row[0]).all()):
                self.union.unite_all(row, "it shares a slice of a reshaped tensor with something that cannot be removed")
                self.adopt(row, "it shares a slice of a reshaped tensor")


def _parts(rows: list[Tensor]) -> int:
    """How many sets of slices have no channel in common."""
    union = Union()
    union.add(len(rows))
    seen: dict[int, int] = {}
    for index, row in enumerate(rows):
        for number in row.unique().tolist():
            if 0 <= number < PARAMETERS:
                union.unite(index, seen.setdefault(number, index))
    return len({union.root(index) for index in range(len(rows))})
