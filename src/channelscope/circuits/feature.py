"""Feature: a channel, a unit, a direction over the channels of a layer, or a logit; LocatedFeature: it in a traced network."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import fx, nn
from torch.func import functional_call

from channelscope.data.batches import images_of
from channelscope.display import Facts, Shown
from channelscope.errors import InputError, SampleError, ShapeError, SiteError, no_such
from channelscope.network.channel_graph import ChannelGraph, KernelMask
from channelscope.network.channel_tracing import channel_graph
from channelscope.network.edits import zero_kernels
from channelscope.network.graph import Graph, trace
from channelscope.network.module_state import eval_mode, gradient_overruns
from channelscope.network.operations import layer_of, layers_called
from channelscope.network.sites import sites_of
from channelscope.subset import Subset
from channelscope.types import Float, Int, Tensor

PositionRule = Literal["all", "max", "center"]

LOGIT = "logit"
"""the layer name that stands for the network's own output"""

EXAMPLES = "layer3.1.conv1:7, layer3.1.conv1:7@max, layer3.1.conv1:7@4,5, layer3.1.conv1:direction.npy or logit:3"


@dataclass(frozen=True)
class Feature:
    """One number per position of a layer's output: a channel of it, or its projection on a vector.

    Written as text it is `layer:channel`, `layer:file` (a vector in .npy or .safetensors) or `logit:class`, followed by
    `@max`, `@center` or `@row,column` where not all positions count; `layer3.1.conv1:7@4,5` is one unit.
    """

    layer: str
    """module path of a convolution or linear layer (or any other module that is a step of the pass), or 'logit'"""
    weights: tuple[tuple[int, float], ...]
    """the vector over the layer's channels as (channel, weight) pairs, zeros left out"""
    length: int | None = None
    """length of the vector; None for a single channel"""
    positions: PositionRule | tuple[tuple[int, ...], ...] = "all"
    """which positions count: all, that of the maximum in each image, the center, or the given ones"""

    def __post_init__(self) -> None:
        """Refuse a vector of zeros."""
        if not self.weights:
            raise InputError(f"feature at {self.layer}: expected a direction with a nonzero entry, received zeros only")

    @classmethod
    def channel(cls, layer: str, channel: int, positions: "PositionRule | Sequence[Sequence[int]]" = "all") -> "Feature":
        """One channel; at given positions, one unit or several."""
        return cls(layer, ((int(channel), 1.0),), None, _rule(positions))

    @classmethod
    def direction(
        cls, layer: str, vector: Float[Tensor, "channels"], positions: "PositionRule | Sequence[Sequence[int]]" = "all"
    ) -> "Feature":
        """The projection of a layer's channels on `vector`; a one-hot vector is the channel."""
        values = torch.as_tensor(vector).detach().double().flatten().tolist()
        if not all(np.isfinite(values)):
            raise InputError(f"feature at {layer}: expected a direction of finite numbers")
        return cls(layer, tuple((place, value) for place, value in enumerate(values) if value), len(values), _rule(positions))

    @classmethod
    def parse(cls, text: "str | Feature") -> "Feature":
        """Read the text form; a vector's file is read as well.

        Raises
        ------
        InputError
            If the text is not a feature or the file is not one vector.
        """
        if isinstance(text, Feature):
            return text
        match = re.fullmatch(r"([^:@]+):(.+?)(?:@([\w,;]*))?", text)
        if not match:
            raise InputError(f"feature: expected {EXAMPLES}; received '{text}'")
        layer, what, place = match.groups()
        positions = _places(place)
        if re.fullmatch(r"\d+", what):
            return cls.channel(layer, int(what), positions)
        return cls.direction(layer, _vector(Path(what).expanduser(), text), positions)

    def __str__(self) -> str:
        """The text form; a direction shows its length in place of its file."""
        what = str(self.weights[0][0]) if self.length is None else f"direction[{self.length}]"
        if self.positions == "all":
            return f"{self.layer}:{what}"
        spots = self.positions if isinstance(self.positions, str) else ";".join(",".join(map(str, spot)) for spot in self.positions)
        return f"{self.layer}:{what}@{spots}"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that take part."""
        return tuple(channel for channel, _ in self.weights)

    def map(self, maps: Tensor, axis: int) -> Float[Tensor, "images positions"]:
        """The feature at every position, row by row; `axis` holds the channels, counted without the batch axis."""
        size = maps.shape[axis + 1]
        if self.length not in (None, size):
            raise ShapeError(f"feature at {self.layer}: expected a direction of {size} numbers, received {self.length}")
        if max(self.channels) >= size:
            raise InputError(f"feature {self}: {self.layer} has channels 0 to {size - 1}")
        picked = maps.movedim(axis + 1, -1)[..., list(self.channels)]
        if self.length is None:
            return picked[..., 0].reshape(len(maps), -1)
        return (picked @ picked.new_tensor([weight for _, weight in self.weights])).reshape(len(maps), -1)

    def select_positions(self, values: Float[Tensor, "images positions"], spatial: tuple[int, ...]) -> Int[Tensor, "images chosen"]:
        """Flat index of the positions that count, for each image; ties of the maximum go to the first.

        Parameters
        ----------
        spatial
            Sizes of the position axes; () for a layer without any.
        """
        count = values.shape[1]
        if self.positions == "max":
            return values.argmax(1, keepdim=True)
        if self.positions == "all":
            chosen = torch.arange(count)
        elif self.positions == "center":
            chosen = torch.tensor([int(np.ravel_multi_index([size // 2 for size in spatial], spatial))] if spatial else [0])
        else:
            chosen = torch.tensor([self._flat(spot, spatial) for spot in self.positions])
        return chosen.to(values.device).expand(len(values), -1)

    def _flat(self, spot: tuple[int, ...], spatial: tuple[int, ...]) -> int:
        if len(spot) != len(spatial) or not all(0 <= at < size for at, size in zip(spot, spatial, strict=True)):
            shown = "×".join(map(str, spatial)) or "no"
            raise InputError(f"feature {self}: {self.layer} has {shown} positions, and {','.join(map(str, spot))} is none of them")
        return int(np.ravel_multi_index(spot, spatial))

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        spots = self.positions if isinstance(self.positions, str) else [list(spot) for spot in self.positions]
        return {"layer": self.layer, "weights": [list(pair) for pair in self.weights], "length": self.length, "positions": spots}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Feature":
        """Inverse of `as_dict`."""
        weights = tuple((int(channel), float(weight)) for channel, weight in data["weights"])
        return cls(data["layer"], weights, data["length"], _rule(data["positions"]))


def _rule(positions: "PositionRule | Sequence[Sequence[int]]") -> "PositionRule | tuple[tuple[int, ...], ...]":
    if isinstance(positions, str):
        rules: dict[str, PositionRule] = {"all": "all", "max": "max", "center": "center", "centre": "center"}
        if positions not in rules:
            raise InputError(f"positions: expected all, max, center or row,column; received '{positions}'")
        return rules[positions]
    spots = tuple(tuple(int(at) for at in spot) for spot in positions)
    if not spots or len(set(spots)) < len(spots):
        raise InputError("positions: expected at least one position, and each only once")
    return spots


def _places(text: str | None) -> "PositionRule | tuple[tuple[int, ...], ...]":
    if text is None:
        return "all"
    if re.fullmatch(r"\d+(,\d+)*(;\d+(,\d+)*)*", text):
        return _rule([[int(at) for at in spot.split(",")] for spot in text.split(";")])
    return _rule(text)  # type: ignore[arg-type]


def _vector(path: Path, text: str) -> Tensor:
    if path.suffix not in (".npy", ".safetensors"):
        raise InputError(f"feature: expected {EXAMPLES}; received '{text}'")
    if not path.is_file():
        raise InputError(f"feature '{text}': there is no file {path}")
    if path.suffix == ".npy":
        found = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    else:
        tensors = load_file(path)
        if len(tensors) != 1:
            raise InputError(f"feature '{text}': expected one tensor in {path.name}, found {len(tensors)}")
        found = next(iter(tensors.values()))
    if found.dim() != 1:
        raise ShapeError(f"feature '{text}': expected a vector in {path.name}, found shape {tuple(found.shape)}")
    return found


MAX_BATCH = 32
"""Most images run at once: contributions and gradients of every layer are kept meanwhile."""

IMAGE = ("channels", "rows", "columns")

PIXELS = 2**19
"""Most pixels run at once; the maps of more do not stay in the processor's cache."""


def _overruns(module: nn.Module) -> bool:
    """Whether a layer's weight gradients with channels last damage memory on some CPUs."""
    layer = layer_of(module)
    if layer is None or not layer.kernel or layer.transposed:
        return False
    return gradient_overruns(layer.kernel, layer.stride, layer.in_channels // layer.groups)


@dataclass(frozen=True, eq=False, repr=False)
class LocatedFeature(Shown):
    """A feature located in a network: where it is read, and which kernels can reach it."""

    graph: Graph
    """the traced network; shares the model's parameters"""
    feature: Feature
    """what is looked at"""
    step: str
    """the step whose value holds the feature"""
    axis: int
    """which axis of that value holds the channels, counted without the batch"""
    channel_graph: ChannelGraph = field(repr=False)
    """channels and kernels upstream of the step"""
    relevant: KernelMask = field(repr=False)
    """layer → bool (outputs, inputs): kernels on a path from the images to the feature"""

    def facts(self) -> Facts:
        """The step that is read, and the number of kernels that can reach it, of each layer."""
        kernels = ((name, f"{int(marks.sum()):,} of {marks.numel():,} kernels") for name, marks in self.relevant.items())
        heading = f"LocatedFeature({self.feature}, {self.relevant_count:,} kernels of {len(self.relevant)} layers)"
        return heading, [("read at step", self.step), *kernels]

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.graph.model

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers with relevant kernels, in execution order."""
        return tuple(self.relevant)

    @property
    def relevant_count(self) -> int:
        """Number of relevant kernels."""
        return sum(int(marks.sum()) for marks in self.relevant.values())

    @property
    def feature_nodes(self) -> np.ndarray:
        """Nodes of the channel graph that make the feature."""
        return self.channel_graph.output_nodes[list(self.feature.channels)]

    @cached_property
    def shortest_path(self) -> int:
        """Number of kernels on the shortest path from the images to the feature."""
        return int(self.channel_graph.distances()[self.feature_nodes].min())

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images: channels last, in which pooling and convolutions are faster, unless a view or a layer forbids it."""
        shape = self.graph.shapes[self.graph.inputs[0]][1:]
        if len(shape) != len(IMAGE) or (self.device.type == "cpu" and any(map(_overruns, self.graph.body.modules()))):
            return torch.contiguous_format
        trial = torch.zeros(2, *shape).to(next(self.model.parameters())).contiguous(memory_format=torch.channels_last)
        try:
            with eval_mode(self.model), torch.no_grad():
                self.graph.run(trial, outputs=(self.step,), out_of_place=True)
        except RuntimeError:  # a view that takes rows and columns for one axis
            return torch.contiguous_format
        return torch.channels_last

    @cached_property
    def slope_error(self) -> float:
        """How far the traced pass's gradient of the feature to the images is from the network's own, on noise; relative, 0 if they agree.

        A hook that changes the gradient of a tensor is no step of the recorded pass, whose gradient is then another.
        """
        shape = self.graph.shapes[self.graph.inputs[0]][1:]
        noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(next(self.model.parameters()))
        body = self.graph.body
        module = body if self.feature.layer == LOGIT else body.get_submodule(self.feature.layer)
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _, __, value: seen.append(value.clone()))  # before anything changes it in place
        try:
            with eval_mode(self.model), torch.enable_grad(), layers_called(body):
                own = noise.clone().requires_grad_()
                body(own)
                followed = noise.clone().requires_grad_()
                values = seen[0], self.graph.run(followed, outputs=(self.step,), out_of_place=True)[0]
                slopes = [
                    torch.autograd.grad(self.feature.map(value, self.axis).sum(), images, allow_unused=True, materialize_grads=True)[0]
                    for value, images in zip(values, (own, followed), strict=True)
                ]
        finally:
            handle.remove()
        size = max(float(each.abs().max()) for each in slopes)
        return float((slopes[0] - slopes[1]).abs().max()) / size if size else 0.0

    def image_batches(self, images: Tensor | Iterable) -> Iterator[Float[Tensor, "images C H W"]]:
        """Batches of images on the network's device, of bounded size, in its `memory_format`.

        Raises
        ------
        SampleError
            If there are none.
        """
        for batch in image_batches(images, self.device):
            for part in batch.split(max(1, min(MAX_BATCH, PIXELS // max(1, batch[0, 0].numel())))):
                yield part.contiguous(memory_format=self.memory_format)

    def full_mask(self) -> dict[str, Tensor]:
        """Marks of all kernels of the relevant layers."""
        return {layer: torch.ones_like(marks) for layer, marks in self.relevant.items()}

    def original_weights(self) -> dict[str, Tensor]:
        """The relevant layers' weights, detached; they stay as they are when the network is masked."""
        return {layer: self.graph.modules[layer].weight.detach() for layer in self.relevant}  # type: ignore[union-attr,operator]

    def run(self, images: Tensor, want: tuple[str, ...], weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Values of some steps, with other `weights` in the place of some layers' own if they are given."""
        if weights is None:
            return self.graph.run(images, outputs=want, out_of_place=True)
        named = {f"model.{layer}.weight": weight for layer, weight in weights.items()}
        return functional_call(_TracedModule(self.graph), named, (images, want))

    def feature_map(
        self, images: Float[Tensor, "images C H W"], weights: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "images positions"]:
        """The feature at every position, of the network as it is now or with other weights."""
        return self.feature.map(self.run(images, (self.step,), weights)[0], self.axis)

    def positions_of(self, values: Float[Tensor, "images positions"]) -> Int[Tensor, "images chosen"]:
        """The positions that count, by the feature's rule, as flat indices."""
        return self.feature.select_positions(values, self.spatial_shape)

    def selected_positions(self, images: Tensor) -> Int[Tensor, "images chosen"]:
        """The positions that count in some images; only the maximum needs a pass."""
        if self.feature.positions == "max":
            return self.positions_of(self.feature_map(images))
        return self.positions_of(torch.empty(len(images), math.prod(self.spatial_shape), device=images.device))

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Sizes of the position axes."""
        shape = list(self.graph.shapes[self.step][1:])
        del shape[self.axis]
        return tuple(shape)

    @contextmanager
    def ablated(self, marks: KernelMask) -> Iterator[None]:
        """While inside, the network is in evaluation mode and the marked kernels are zero."""
        with eval_mode(self.model), zero_kernels(self.graph, Subset(dict(marks))):
            yield


class _TracedModule(nn.Module):
    """The network as a module whose forward pass is the traced graph, so that its weights can be exchanged for a call."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.model = graph.body
        self.graph = graph

    def forward(self, images: Tensor, want: tuple[str, ...]) -> tuple[Tensor, ...]:
        return self.graph.run(images, outputs=want, out_of_place=True)


def locate_feature(model: nn.Module | Graph, feature: Feature | str, example: Tensor | None = None) -> LocatedFeature:
    """A feature in a network, with the kernels that it depends on.

    Parameters
    ----------
    model
        The network, or its graph.
    feature
        A feature, or its text such as `layer3.1.conv1:7` or `logit:3`.
    example
        A batch of at least one image (images, C, H, W), to trace the network with; not needed for a `Graph`.

    Returns
    -------
    LocatedFeature
        It shares the network's parameters.

    Raises
    ------
    SiteError
        With near matches, if there is no such layer.
    InputError
        If the layer has no such channel or position.
    ShapeError
        If its values have no axis of channels.
    TracingError
        If the forward pass cannot be followed.

    Examples
    --------
    Channel 2 of the first layer depends on one row of five kernels.

    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> feature.relevant_count, feature.relevant["conv"].any(1).tolist()
    (5, [False, False, True, False, False])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (relevant kernels).
    """
    feature = Feature.parse(feature)
    if not isinstance(model, Graph):
        if example is None:
            raise InputError("locate: expected an example batch to trace the network with, received none")
        model = trace(model, example)
    node = _feature_step(model, feature)
    shape = model.shapes.get(node.name, ())[1:]
    if not shape:
        raise ShapeError(f"feature {feature}: expected a tensor of channels at {feature.layer}, found shape {shape}")
    kernel_graph = channel_graph(model, node.name)
    axis = kernel_graph.axis
    blank = torch.zeros(1, *shape)
    feature.select_positions(feature.map(blank, axis), tuple(size for place, size in enumerate(shape) if place != axis))
    marks = kernel_graph.on_paths_to(kernel_graph.full_mask(), kernel_graph.output_nodes[list(feature.channels)])
    relevant = {layer: kernels for layer, kernels in marks.items() if bool(kernels.any())}
    if not relevant:
        raise InputError(f"feature {feature}: no kernel leads from the images to it; it is made of constants")
    return LocatedFeature(model, feature, node.name, axis, kernel_graph, relevant)


def _feature_step(graph: Graph, feature: Feature) -> fx.Node:
    if feature.layer == LOGIT:
        made = next(node for node in graph.steps.nodes if node.op == "output").args[0]
        if not isinstance(made, fx.Node) or made.name not in graph.shapes:
            raise SiteError("the network's output is not one tensor: name the layer that makes the logit instead")
        return made
    found = [node for node in graph.steps.nodes if node.op == "call_module" and node.target == feature.layer]
    if len(found) > 1:
        raise SiteError(f"{feature.layer} is called {len(found)} times in one pass: its channels are not one place")
    if found:
        return found[0]
    names = [str(node.target) for node in graph.steps.nodes if node.op == "call_module"]
    raise SiteError(no_such("layer", feature.layer, [LOGIT, *names]))


def image_batches(images: Tensor | Iterable, device: torch.device | str = "cpu") -> Iterator[Float[Tensor, "images C H W"]]:
    """Batches of images on a device, from a tensor of all images or from any batches that data/batches.py reads.

    Parameters
    ----------
    images
        Images (images, C, H, W), split into batches of 32; or batches, which stay as they are.
    device
        Where the batches are moved to.

    Yields
    ------
    Tensor
        Images (images, C, H, W).

    Raises
    ------
    SampleError
        If there are none.
    DataError
        For a batch that cannot be read.

    Examples
    --------
    >>> [len(batch) for batch in image_batches(torch.zeros(40, 3, 2, 2))]
    [32, 8]

    References
    ----------
    The library's convention for batches.
    """
    count = 0
    for batch in images.split(MAX_BATCH) if isinstance(images, Tensor) else images:
        batch = images_of(batch)
        count += len(batch)
        yield batch.to(device)
    if not count:
        raise SampleError("expected at least one image, received none")


@torch.no_grad()
def activation_range(feature: LocatedFeature, images: Tensor | Iterable) -> tuple[float, float]:
    """Smallest and largest value of the feature over some images, where its consumers read it (after its own activation).

    Parameters
    ----------
    feature
        The feature and its network.
    images
        Images (images, C, H, W), or batches of them.

    Returns
    -------
    tuple[float, float]
        In the units of the activation.

    Raises
    ------
    SampleError
        If the feature is constant: it never activates on these images.

    Examples
    --------
    The ReLU cuts the channel at 0.

    >>> layer = nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 2.0)
    >>> model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    >>> image = torch.tensor([[[[-1.0, 3.0]]]])
    >>> activation_range(locate_feature(model, "0:0", image), image)
    (0.0, 6.0)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; cut points as in docs/how-it-works.md.
    """
    return value_range(feature, [seen for *_, seen in feature_values(feature, images)])


def value_range(feature: LocatedFeature, values: list[Tensor]) -> tuple[float, float]:
    """Smallest and largest of the feature's values.

    Parameters
    ----------
    feature
        The feature, for the message of the error.
    values
        Batches of values.

    Returns
    -------
    tuple[float, float]
        In the units of the values.

    Raises
    ------
    SampleError
        If they are all the same.

    Examples
    --------
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> value_range(locate_feature(toy.model, "conv:2", toy.batches[0][0]), [torch.tensor([1.0, 4.0]), torch.tensor([-2.0])])
    (-2.0, 4.0)

    References
    ----------
    Definition.
    """
    low, high = min(float(each.min()) for each in values), max(float(each.max()) for each in values)
    if not low < high:
        raise SampleError(f"feature {feature.feature} never activates on these images: it is {low:.4g} everywhere; pass other images")
    return low, high


@torch.no_grad()
def feature_values(feature: LocatedFeature, images: Tensor | Iterable) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches of images with the feature's values, from one pass.

    Parameters
    ----------
    feature
        The feature and its network.
    images
        Images (images, C, H, W), or batches of them.

    Yields
    ------
    tuple[Tensor, Tensor, Tensor, Tensor]
        Images; flat positions that count (images, chosen); the feature there; the feature there after its own activation.

    Raises
    ------
    SampleError
        Without images.

    Examples
    --------
    >>> layer = nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 2.0)
    >>> model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    >>> image = torch.tensor([[[[-1.0, 3.0]]]])
    >>> [[part.tolist() for part in parts[1:]] for parts in feature_values(locate_feature(model, "0:0", image), image)]
    [[[[0, 1]], [[-2.0, 6.0]], [[0.0, 6.0]]]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (rule for positions).
    """
    site = next((site for site in sites_of(feature.graph, none=True) if site.name == feature.feature.layer), None)
    with eval_mode(feature.model):
        for batch in feature.image_batches(images):
            read, cut = feature.graph.run(batch, outputs=(feature.step, site.activation if site else feature.step), out_of_place=True)
            maps = feature.feature.map(read, feature.axis)
            positions = feature.positions_of(maps)
            yield batch, positions, maps.gather(1, positions), feature.feature.map(cut, feature.axis).gather(1, positions)
