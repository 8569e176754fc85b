"""KernelScores: one number per kernel, summed over images, from one forward and one backward pass, and what a kernel contributes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.feature import LocatedFeature
from channelscope.display import Facts, Shown, spread
from channelscope.errors import MismatchError, NumericError, SiteError, TracingError, check_choice, no_such
from channelscope.network.module_state import eval_mode
from channelscope.network.patches import LayerKernels, Points
from channelscope.types import Float, Int, Tensor

Reduce = Literal["sum", "mean"]

Path = Literal["gates", "inputs"]

PATH_POINTS = 8
"""Points of a path over which gradients are averaged, at the middles of equal steps from 0 to 1."""

SHARES = tuple((point + 0.5) / PATH_POINTS for point in range(PATH_POINTS))

SLOPES = 1e-2
"""Relative difference of two gradients up to which they count as the same."""

KernelCriterion = Callable[[Points, Points, LayerKernels], "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False, repr=False)
class KernelScores(Shown):
    """One number per relevant kernel, at least 0; sums over images, so that scores of disjoint image sets add up."""

    feature: LocatedFeature
    """the feature and its network"""
    criterion: str
    """how it was measured"""
    values: Mapping[str, Float[Tensor, "outputs inputs"]]
    """layer → float64, 0 at kernels that are not relevant"""
    images: int
    """how many images were summed over"""
    signed_values: Mapping[str, Float[Tensor, "outputs inputs"]] | None = None
    """layer → summed effect with its sign: positive kernels drive the feature, negative ones hold it down"""
    inside: Circuit | None = None
    """circuit whose kernels alone were scored, and alone may be selected; None for all relevant ones"""

    def facts(self) -> Facts:
        """Feature, criterion, and the range of each layer's scores."""
        relevant = self.feature.relevant
        ranges = (
            (name, f"{int(relevant[name].sum()):,} kernels, {spread(values[relevant[name]])}") for name, values in self.values.items()
        )
        return f"KernelScores({self.criterion} of {self.feature.feature} on {self.images:,} images)", ranges

    def plot(self, layers: list[str] | None = None, title: str | None = None) -> Any:
        """Axes with the values of each layer's kernels and their median; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, layers=layers, title=title)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be ranked."""
        for layer, values in self.values.items():
            if not bool(values.isfinite().all()):
                raise NumericError(f"saliency ({self.criterion}) of {self.feature.feature} at {layer} is not finite: check the images")

    def __add__(self, other: "KernelScores") -> "KernelScores":
        """Scores over the union of two disjoint image sets."""
        if self.feature is not other.feature or self.criterion != other.criterion or self.inside != other.inside:
            raise MismatchError("cannot add saliencies of different features, networks or criteria")
        return replace(
            self,
            values={layer: values + other.values[layer] for layer, values in self.values.items()},
            images=self.images + other.images,
            signed_values=None
            if self.signed_values is None or other.signed_values is None
            else {n: v + other.signed_values[n] for n, v in self.signed_values.items()},
        )

    def __getitem__(self, layer: str) -> Float[Tensor, "outputs inputs"]:
        """Values of one layer.

        Raises
        ------
        SiteError
            For a name that is no layer's, with the nearest names.
        """
        if layer not in self.values:
            raise SiteError(no_such("layer", layer, self.values))
        return self.values[layer]

    @property
    def eligible(self) -> Mapping[str, Tensor]:
        """Layer → bool (outputs, inputs): the kernels that were scored."""
        return self.feature.relevant if self.inside is None else self.inside.masks

    @property
    def kernels(self) -> int:
        """Number of kernels that were scored."""
        return sum(int(marks.sum()) for marks in self.eligible.values())

    def ranked(self) -> Float[Tensor, "kernels"]:
        """As `flatten`, with −inf at kernels that were not scored, so that they come last in descending order."""
        values = [
            torch.where(self.eligible[layer], self.values[layer], -torch.inf)[marks] for layer, marks in self.feature.relevant.items()
        ]
        return torch.cat(values)

    def flatten(self) -> Float[Tensor, "kernels"]:
        """Values of the relevant kernels, layer by layer in execution order, then by output and input channel."""
        return torch.cat([self.values[layer][marks] for layer, marks in self.feature.relevant.items()])

    def normalized_by_layer(self, norm: Literal["none", "l1", "l2"] = "none") -> "KernelScores":
        """Values of each layer divided by their sum (l1) or Euclidean norm (l2); a layer of zeros stays as it is."""
        if norm == "none":
            return self
        check_choice("norm of a layer", norm, ("none", "l1", "l2"))
        sizes = {layer: float(values.norm(p=1 if norm == "l1" else 2)) for layer, values in self.values.items()}
        return replace(self, values={layer: values / sizes[layer] if sizes[layer] else values for layer, values in self.values.items()})


@dataclass(frozen=True)
class GradientOptions:
    """How the gradients behind kernel scores are measured."""

    reduce: Reduce = "sum"
    """how the feature's positions become one value per image"""
    path: Path | None = None
    """average over a path: A·G, the gradient to each kernel's gate, while all gates go from 0 to 1 (gates), so that signed effects add up
    to what the kernels add to the feature; or G alone while the images are scaled from 0 to 1 (inputs)"""
    inside: Circuit | None = None
    """the network in which kernels are scored has only these of the relevant ones, and the others score 0"""

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("way to reduce", self.reduce, ("sum", "mean"))
        if self.path is not None:
            check_choice("path", self.path, ("gates", "inputs"))


Batch = tuple[Tensor, Tensor]
"""Images, and the positions of the feature that count in each."""


@torch.no_grad()
def with_positions(feature: LocatedFeature, images) -> list[Batch]:
    """Batches with the positions that count in each image, by the unmasked network.

    Parameters
    ----------
    feature
        The feature and its network.
    images
        Batches of images (images, C, H, W) on the network's device.

    Returns
    -------
    list[Batch]
        Pairs of images and flat positions (images, chosen).

    Raises
    ------
    TracingError
        If the gradients of the traced pass differ from those of the network.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2@center", toy.batches[0][0])
    >>> ((images, positions),) = with_positions(feature, [toy.batches[0][0][:2]])
    >>> feature.spatial_shape, positions.tolist()
    ((4, 4), [[10], [10]])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (rule for positions).
    """
    if not feature.slope_error < SLOPES:
        raise TracingError(
            f"feature {feature.feature}: expected the network's own gradients from the traced pass, received others (relative difference "
            f"{feature.slope_error:.2g}): a hook on a tensor (register_hook) changes them. Write it as a torch.autograd.Function, "
            "or use criterion magnitude"
        )
    with eval_mode(feature.model):
        return [(pictures, feature.selected_positions(pictures)) for pictures in images]


def layer_gradients(
    feature: LocatedFeature,
    images: Tensor,
    positions: Int[Tensor, "images chosen"],
    weights: Mapping[str, Tensor] | None = None,
    reduce: Reduce = "sum",
) -> list[tuple[str, Tensor, Tensor]]:
    """Inputs X and output gradients G of every use of every relevant layer.

    Parameters
    ----------
    feature
        The feature and its network.
    images
        One batch (images, C, H, W).
    positions
        Flat positions that count, (images, chosen).
    weights
        Layer → weight, in the place of the layers' own; None for their own.
    reduce
        How positions become one value per image: `sum` or `mean`.

    Returns
    -------
    list[tuple[str, Tensor, Tensor]]
        Layer, X of the shape of its input, G of the shape of its output.

    Examples
    --------
    The gradient of a logit at its own layer is 1 for its class.

    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> ((images, positions),) = with_positions(feature, [toy.batches[0][0][:1]])
    >>> [(layer, g.flatten(1).sum(0).unique().tolist()) for layer, _, g in layer_gradients(feature, images, positions)][1]
    ('fc', [0.0, 1.0])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; G = dJ_b/dz.
    """
    calls = [call for call in feature.channel_graph.calls if call.layer in feature.relevant]
    ins = tuple(feature.graph.nodes[call.step].all_input_nodes[0].name for call in calls)
    outs = tuple(call.step for call in calls)
    with torch.enable_grad():
        values = feature.run(images.detach().requires_grad_(), (feature.step, *ins, *outs), weights)
        read, inputs, outputs = values[0], values[1 : 1 + len(calls)], values[1 + len(calls) :]
        chosen = feature.feature.map(read, feature.axis).gather(1, positions)
        value = chosen.sum() if reduce == "sum" else chosen.mean(1).sum()
        gradients = torch.autograd.grad(value, outputs, allow_unused=True, materialize_grads=True)
    return [(call.layer, x.detach(), g) for call, x, g in zip(calls, inputs, gradients, strict=True)]


def score_batches(
    feature: LocatedFeature,
    batches: list[Batch],
    criterion: str,
    rule: KernelCriterion,
    gradient: GradientOptions,
    marks: Mapping[str, Tensor] | None = None,
) -> KernelScores:
    """Scores of every relevant kernel by one criterion, summed over batches.

    Parameters
    ----------
    feature
        The feature and its network.
    batches
        Images with the positions that count, from `with_positions`.
    criterion
        Name of the criterion.
    rule
        Function of layer inputs, output gradients and geometry that returns scores, or scores and signed effects.
    gradient
        How gradients are measured.
    marks
        Kernels that the network has meanwhile; kernels that are masked are scored too, because an iterative criterion may restore them.

    Returns
    -------
    KernelScores
        With signed effects if `rule` returns them.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> batches = with_positions(feature, feature.image_batches(toy.batches))
    >>> scores = score_batches(feature, batches, "snip", snip, GradientOptions())
    >>> (scores["fc"][1] / scores.images).round(decimals=3).tolist()
    [16.0, 0.0, 48.0, 0.0, 16.0]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; along a path, Sundararajan, Taly, Yan 2017 (integrated gradients); checked by
    tests/pencil_circuits.py::integrated_gates.
    """
    own, allowed = feature.original_weights(), gradient.inside.masks if gradient.inside else feature.relevant
    if gradient.inside is not None:
        limits = {layer: gradient.inside[layer] | ~relevant for layer, relevant in feature.relevant.items()}
        marks = limits if marks is None else {layer: marks[layer] & limits[layer] for layer in limits}
    layers = {layer: LayerKernels.of(feature.graph.modules[layer]) for layer in feature.relevant}
    weights = None if marks is None else {layer: own[layer] * broadcast_mask(marks[layer], own[layer]) for layer in own}
    totals = {layer: torch.zeros(values.shape[:2], dtype=torch.float64, device=values.device) for layer, values in own.items()}
    signs = {layer: torch.zeros_like(values) for layer, values in totals.items()}
    has_sign = False
    with eval_mode(feature.model):
        for images, positions in _pieces(batches, gradient, criterion):
            for layer, x, g in _integrated_gradients(
                feature, images, positions, own if weights is None else weights, weights is None, gradient
            ):
                found = rule(x, g, layers[layer])
                if isinstance(found, tuple):
                    has_sign = True
                    signs[layer] += found[1]
                    found = found[0]
                totals[layer] += found
    count = sum(len(images) for images, _ in batches)
    return KernelScores(
        feature, criterion, masked_scores(allowed, totals), count, masked_scores(allowed, signs) if has_sign else None, gradient.inside
    )


def _integrated_gradients(
    feature: LocatedFeature, images: Tensor, positions: Tensor, weights: Mapping[str, Tensor], plain: bool, gradient: GradientOptions
) -> list[tuple[str, Points, Points]]:
    """Inputs and gradients of every layer: at every point of a path of gates; or with the mean gradient along a path of images."""
    if gradient.path == "gates":
        scaled = [{layer: weight * share for layer, weight in weights.items()} for share in SHARES]
        found = [layer_gradients(feature, images, positions, each, gradient.reduce) for each in scaled]
        return [(uses[0][0], tuple(x for _, x, _ in uses), tuple(g for *_, g in uses)) for uses in zip(*found, strict=True)]
    first = layer_gradients(feature, images, positions, None if plain else weights, gradient.reduce)
    if gradient.path is None:
        return list(first)
    mean = [torch.zeros_like(g) for _, _, g in first]
    for share in SHARES:
        for total, (_, _, g) in zip(mean, layer_gradients(feature, images * share, positions, weights, gradient.reduce), strict=True):
            total += g / PATH_POINTS
    return [(layer, x, g) for (layer, x, _), g in zip(first, mean, strict=True)]


def _pieces(batches: list[Batch], gradient: GradientOptions, criterion: str) -> list[Batch]:
    """Batches so small that all points of a path fit where one did; snip_batch sums each batch as it is given."""
    if gradient.path != "gates" or criterion == "snip_batch":
        return batches
    return [
        piece
        for images, positions in batches
        for step in [max(1, len(images) // PATH_POINTS)]
        for piece in zip(images.split(step), positions.split(step), strict=True)
    ]


def broadcast_mask(marks: Tensor, weight: Tensor) -> Tensor:
    """Marks of kernels as numbers 0 and 1 that multiply a weight.

    Parameters
    ----------
    marks
        Bool (outputs, inputs per group).
    weight
        Weight (outputs, inputs per group, ...).

    Returns
    -------
    Tensor
        (outputs, inputs per group, 1, ...) of the weight's type.

    Examples
    --------
    >>> (broadcast_mask(torch.tensor([[True, False]]), torch.ones(1, 2, 1, 3)) * torch.ones(1, 2, 1, 3)).flatten().tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]

    References
    ----------
    Definition.
    """
    return marks.to(weight).view(*marks.shape, *[1] * (weight.dim() - 2))


def masked_scores(allowed: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores on the CPU, 0 at kernels that are not allowed.

    Parameters
    ----------
    allowed
        Layer → bool (outputs, inputs per group).
    values
        Layer → number of each kernel.

    Returns
    -------
    dict[str, Tensor]
        For the layers of `allowed`.

    Examples
    --------
    >>> masked_scores({"conv": torch.tensor([[True, False]])}, {"conv": torch.tensor([[2.0, 3.0]])})["conv"].tolist()
    [[2.0, 0.0]]

    References
    ----------
    Definition.
    """
    return {layer: torch.where(marks, values[layer].cpu(), 0.0) for layer, marks in allowed.items()}


CHUNK_NUMBERS = 2**21
"""Numbers in one block of contribution maps; a block stays in the processor's cache."""


def gate_scores(inputs: Points, gradients: Points, layer: LayerKernels) -> tuple[Tensor, Tensor]:
    """Effect of scaling each kernel: |Σ_positions A·G| summed over images, and the same without the absolute value.

    Σ_positions A·G = Σ_taps w · dJ_b/dw, so one matrix product per image takes the place of the contribution maps.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.

    Returns
    -------
    tuple[Tensor, Tensor]
        Float64 (outputs, inputs per group), twice.

    Examples
    --------
    Two images whose effects, 2 · 1 and 2 · (−1), cancel in the signed sum.

    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> size, signed = gate_scores(torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1), LayerKernels.of(layer))
    >>> size.tolist(), signed.tolist()
    ([[4.0]], [[0.0]])

    References
    ----------
    This library; checked by tests/pencil_circuits.py::gate.
    """
    single = layer.taps == 1 and gradients[0].numel() == layer.weight.shape[0] and layer.groups == 1
    if isinstance(inputs, Tensor) and isinstance(gradients, Tensor) and single:
        x, g = inputs.reshape(len(inputs), -1), gradients.reshape(len(gradients), -1)  # one position: |A·G| is a product of sizes
        weight = layer.weight.flatten(1).double()
        return (g.abs().T @ x.abs()).double() * weight.abs(), (g.T @ x).double() * weight
    size, signed = _zeros(layer), _zeros(layer)
    for effect in _effects(inputs, gradients, layer):
        size += effect.abs().sum(0, dtype=torch.float64)
        signed += effect.sum(0, dtype=torch.float64)
    return size, signed


def _effects(inputs: Points, gradients: Points, layer: LayerKernels) -> Iterator[Float[Tensor, "images outputs inputs"]]:
    """Σ_positions A·G of every image and kernel."""
    for x, g in layer.split(inputs, gradients):
        if layer.taps == 1:
            yield (g @ x.squeeze(3).transpose(-1, -2)).flatten(1, 2) * layer.weight.flatten(1)
            continue
        slopes = g @ x.flatten(2, 3).transpose(-1, -2)
        slopes = slopes.reshape(len(x), *layer.rows.shape)
        yield slopes.mul_(layer.rows).sum(-1).flatten(1, 2)


def snip(inputs: Points, gradients: Points, layer: LayerKernels, per_batch: bool = False) -> Tensor:
    """SNIP: |w · dJ_b/dw| of each weight, mean over the kernel, summed over images.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.
    per_batch
        Take the absolute value after summing the batch, as the published scripts do; depends on the batch size.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> inputs, gradients = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    >>> [snip(inputs, gradients, LayerKernels.of(layer), per_batch).tolist() for per_batch in (False, True)]
    [[[4.0]], [[0.0]]]

    References
    ----------
    Lee, Ajanthan, Torr 2019; Hamblin, Konkle, Alvarez 2022; checked by tests/pencil_circuits.py::snip.
    """
    total, batch = _zeros(layer), torch.zeros_like(layer.rows)
    for x, g in layer.split(inputs, gradients):
        slopes = (g @ x.flatten(2, 3).transpose(-1, -2)).reshape(len(x), *layer.rows.shape).mul_(layer.rows)
        if per_batch:
            batch += slopes.sum(0)
        else:
            total += slopes.abs_().mean(-1).sum(0, dtype=torch.float64).flatten(0, 1)
    return batch.abs().mean(-1).double().flatten(0, 1) if per_batch else total


def actgrad(inputs: Points, gradients: Points, layer: LayerKernels) -> Tensor:
    """ActGrad: mean over positions of |A·G|, summed over images; at most one block of maps is in memory.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    One image with two positions: the mean of |2 · 1| and |2 · (−3)|.

    >>> layer = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> actgrad(torch.tensor([[[[1.0, -3.0]]]]), torch.ones(1, 1, 1, 2), LayerKernels.of(layer)).tolist()
    [[4.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; checked by tests/pencil_circuits.py::actgrad.
    """
    total, points = _zeros(layer), len(gradients) if isinstance(gradients, tuple) else 1
    for x, g in layer.split(inputs, gradients):
        positions = g.shape[-1] // points
        if layer.taps == 1 and points == 1:
            part = (g.abs() @ x.abs().squeeze(3).transpose(-1, -2)).flatten(1, 2) * layer.weight.flatten(1).abs()
            total += part.sum(0, dtype=torch.float64) / positions
            continue
        for image in range(len(x)):
            for group in range(layer.groups):
                block = slice(group * g.shape[2], (group + 1) * g.shape[2])
                total[block] += _positions(x[image, group], g[image, group], layer.rows[group], points) / positions
    return total


def _positions(x: Tensor, gradients: Tensor, weights: Tensor, points: int) -> Tensor:
    """Σ over positions of |A·G| of one image and group, A·G summed over the points of a path, a block of input channels at a time.

    x (inputs, taps, points · positions), gradients (outputs, points · positions), weights (outputs, inputs, taps)
    """
    step = max(1, CHUNK_NUMBERS // gradients.numel())
    parts = []
    for start in range(0, len(x), step):
        maps = torch.bmm(weights[:, start : start + step].transpose(0, 1), x[start : start + step])
        if points == 1:
            parts.append((maps.abs_().transpose(0, 1) @ gradients.abs()[:, :, None]).squeeze(-1))
        else:
            parts.append(maps.mul_(gradients).unflatten(-1, (points, -1)).sum(2).abs_().sum(2).T)
    return torch.cat(parts, dim=1)


def magnitude(layer: LayerKernels) -> Tensor:
    """Mean |w| over each kernel, the same for every feature.

    Parameters
    ----------
    layer
        Weight and geometry of the layer.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    >>> layer = torch.nn.Conv2d(1, 1, (1, 2), bias=False)
    >>> layer.weight.data = torch.tensor([[[[1.0, -3.0]]]])
    >>> magnitude(LayerKernels.of(layer)).tolist()
    [[2.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (control); checked by tests/pencil_circuits.py::magnitude.
    """
    return layer.weight.double().abs().flatten(2).mean(2) if layer.weight.dim() > 2 else layer.weight.double().abs()


def _zeros(layer: LayerKernels) -> Tensor:
    return torch.zeros(layer.weight.shape[:2], dtype=torch.float64, device=layer.weight.device)
