"""Repair without training and without labels: each layer re-fitted in forward order, peers, re-estimated normalization."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from channelscope.display import Facts, Shown
from channelscope.errors import FAILURES, InputError, MismatchError, SampleError, check_choice, no_lack_of_memory
from channelscope.network.edits import known_groups
from channelscope.network.graph import ActivationCache, Graph, trace
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import layer_of
from channelscope.network.patches import input_patches, patch_rows, patch_width, patches_are_exact
from channelscope.network.removal.comparison import kept_ids
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.tracing.recording import same
from channelscope.progress import advancing, track
from channelscope.pruning.blocks import graph_without, left_out, resolved
from channelscope.pruning.calibration import DrawnPositions, rechunked, return_freed_memory, zero_input
from channelscope.pruning.normalization import (
    LayerContext,
    batchnorm_scale_shift,
    call_counts,
    layer_contexts,
    reestimate_batchnorms,
    write_linear_map,
)
from channelscope.pruning.peers import PEER_RIDGE, compensate_with_peers, peer_weights
from channelscope.stats.moments import NormalEquations, cross_validated_error
from channelscope.stats.profile import Profile
from channelscope.subset import Subset
from channelscope.types import Bool, Float

Method = Literal["least_squares", "peers", "batchnorm", "none"]

FROM_PROFILE = "; or, for peers, the original's profile"


@dataclass(frozen=True, repr=False)
class RepairReport(Shown):
    """What a repair did to each layer.

    Examples
    --------
    >>> RepairReport("least_squares", 100, {"conv1": (0.5, 0.25), "conv2": (0.7, 0.35)}, {"conv3": "grouped"})
    RepairReport(least_squares, 100 images, 2 layers re-fitted, median relative error 0.6 → 0.3, 1 skipped)
    """

    method: str
    """the method, and whether normalizations were re-estimated after it"""
    images: int
    """calibration images used"""
    relative_errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """layer → mean squared error of its (normalized) output before the fit, and cross-validated after it, as fractions of the
    target's variance; nan where that is zero"""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """layer → why it was not changed"""
    notes: Mapping[str, str] = field(default_factory=dict)
    """layer → what of the method did not apply to it, though it was changed"""

    def facts(self) -> Facts:
        """The method and how many layers it changed; each layer's error before and after."""
        parts = [self.method]
        if self.images:
            parts.append(f"{self.images:,} images")
        if self.relative_errors:
            before, after = (median(column) for column in zip(*self.relative_errors.values(), strict=True))
            parts.append(f"{len(self.relative_errors)} layers re-fitted, median relative error {before:.2g} → {after:.2g}")
        parts += [f"{len(each)} {name}" for name, each in (("skipped", self.skipped), ("with notes", self.notes)) if each]
        layers = ((name, f"{before:.2g} → {after:.2g}") for name, (before, after) in self.relative_errors.items())
        return f"RepairReport({', '.join(parts)})", [*layers, *self.skipped.items()]

    def __repr__(self) -> str:
        """The method and how many layers it changed."""
        return self.facts()[0]


def repair(
    small: nn.Module,
    model: nn.Module | Groups,
    kept: Subset,
    calibration: Iterable | Profile | None = None,
    *,
    method: Method = "least_squares",
    ridge: float | None = None,
    positions: int = 64,
    progress: bool | Callable[[], None] = True,
) -> RepairReport:
    """Report of a repair that changes the weights of `small`, in place, so that it computes nearly what the original computes.

    ==============  ================================================================================================
    method          what it does
    ==============  ================================================================================================
    least_squares   re-fits every layer, in forward order, to the output of the original layer, from the inputs that the
                    repaired network gives it. A layer that is added to a residual sum also corrects the error of the other
                    term. Ridge regression toward the weights that `peers` gives, rescaled to the target's variance
    peers           predicts removed channels linearly from kept ones and folds the prediction into the weights; with images,
                    BatchNorm statistics are re-estimated afterwards
    batchnorm       re-estimates BatchNorm statistics only
    none            changes nothing
    ==============  ================================================================================================

    The activations of all images at the current layer, of both networks, are held in memory.

    Parameters
    ----------
    small
        The smaller network: `shrink(model, kept)`.
    model
        The original network, or its `groups`.
    kept
        The channels that `small` was made of.
    calibration
        Batches of (images, …), labels are not used; or, for peers, the original's profile alone.
    method
        least_squares, peers, batchnorm or none.
    ridge
        Penalty λ as a fraction of the mean variance of what a layer reads. None: for least_squares the one of 0.005, 0.05, 0.5
        and 5 with the smallest cross-validated error of each layer, for peers 0.01.
    positions
        Positions that an image contributes to each regression, drawn by its index.
    progress
        Whether a bar is drawn; or what is called after each layer of a repair by least squares.

    Returns
    -------
    RepairReport
        The relative error of each layer, and the layers that were skipped, with the reason.

    Raises
    ------
    MismatchError
        If `small`, `model`, `kept` and the profile do not belong together.
    InputError
        For an unknown method, one that lacks its calibration images, or a penalty that is not positive.
    SampleError
        For batches without images, or a single image for least squares.

    Examples
    --------
    >>> from channelscope.pruning.cut import shrink
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> images = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> found = groups(model, images[:1])
    >>> kept = found.to_subset([True, True, False, True])
    >>> small = shrink(model, kept)
    >>> before = float((small(images) - model(images)).detach().abs().max())
    >>> repair(small, model, kept, [images], ridge=1e-6).images  # a linear network of three inputs needs three channels
    20
    >>> float((small(images) - model(images)).detach().abs().max()) < before / 100
    True

    References
    ----------
    He, Zhang, Sun 2017 (least squares).
    """
    check_choice("method of repair", method, get_args(Method))
    if ridge is not None and not ridge > 0:
        raise InputError(f"ridge: expected a share above 0, received {ridge:g}")
    if method == "none":
        return RepairReport("none", 0)
    found = model if isinstance(model, Groups) else known_groups(model, kept) or groups(model, zero_input(model, kept))
    keep = _check_same_network(small, found, kept)
    if isinstance(calibration, Profile) and method == "peers":
        skipped = compensate_with_peers(small, found, keep, calibration, ridge=PEER_RIDGE if ridge is None else ridge)
        return RepairReport("peers", calibration.images, skipped=skipped)
    if calibration is None or isinstance(calibration, Profile):
        raise InputError(f"repair: {method} needs calibration images, batches of (images, …){FROM_PROFILE if method == 'peers' else ''}")
    batches = rechunked(calibration, found)
    return_freed_memory()
    with torch.no_grad(), eval_mode(small), eval_mode(found.graph.model):
        original = ActivationCache(found.graph, batches)
        draws = DrawnPositions(original.images, positions, device=batches[0][0].device)
        skipped = (
            compensate_with_peers(small, found, keep, original, ridge=PEER_RIDGE if ridge is None else ridge, draws=draws)
            if method == "peers"
            else {}
        )
        activations = ActivationCache(_steps_of(small, found, tuple(part[:1] for part in batches[0])), batches)
        if method == "least_squares":
            fit = LayerwiseLeastSquares(activations, found, keep, original, draws=draws, ridge=ridge)
            errors = {name: (before, after) for name, before, after in fit.run(progress)}
            return RepairReport("least_squares", activations.images, errors, fit.skipped, fit.notes)
        skipped |= reestimate_batchnorms(activations)
    return RepairReport("peers + batchnorm" if method == "peers" else "batchnorm", activations.images, skipped=skipped)


def _steps_of(small: nn.Module, found: Groups, image: tuple[Tensor, ...]) -> Graph:
    """The steps of the smaller network; where blocks were left out, those of the original without them if they give the same."""
    replaced = left_out(small)
    if replaced:
        graph = graph_without(found, replaced, small)
        try:
            if same(graph.run(*image, out_of_place=True), small(*image)):
                return graph
        except FAILURES as error:  # sizes are written out in the steps
            no_lack_of_memory(error)
    return trace(small, image)


def _check_same_network(small: nn.Module, found: Groups, kept: Subset) -> Tensor:
    """`kept_ids`, after refusing a smaller network that was not made of these channels."""
    keep = kept_ids(found, kept)
    modules = dict(small.named_modules())
    blocks = tuple(f"{found.labeled.owner[step]}." for step in left_out(small))
    for layer in found.layers:
        if blocks and layer.name not in modules and layer.name.startswith(blocks):
            continue
        weight: Any = modules[layer.name].weight if layer.name in modules else None
        expected = int(keep[layer.outputs].sum())
        if weight is not None and layer.taps and weight.shape[0] != expected and layer.name in found.first_id:
            raise MismatchError(
                f"repair: {layer.name} has {weight.shape[0]} outputs, the subset keeps {expected}: small = shrink(model, kept)"
            )
        if layer.name not in modules:
            raise MismatchError(f"repair: the smaller network has no layer {layer.name}: it was not cut from this one")
    return keep


RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Penalties that are tried on one half of the images, as fractions of the mean variance of what a layer reads; half as large on all."""

MAX_RESCALE = 4.0
"""Largest factor by which a layer's prior is rescaled; outputs that hardly vary give unreliable factors."""

MAX_FAN_IN = 8192
"""Inputs times kernel size beyond which the normal equations (512 MiB) are not formed."""


def _steps(contexts: list[LayerContext]) -> set[str]:
    """The steps whose values the fits of these layers need."""
    return {step for context in contexts for step in (context.input_node, context.layer.node)}


class LayerwiseLeastSquares:
    """The ridge regression of each layer of a smaller network to the output of the original layer.

    Parameters
    ----------
    small
        Activations of the smaller network, whose weights are changed in place.
    found
        The original's `groups`.
    keep
        Which channel numbers are kept, as `kept_ids` gives them.
    original
        Activations of the original over the same images.
    draws
        Positions that each image contributes.
    ridge
        Penalty as a fraction of the mean variance of what a layer reads; None to choose it for each layer by cross-validation.

    Raises
    ------
    SampleError
        With a single image.
    """

    def __init__(
        self,
        small: ActivationCache,
        found: Groups,
        keep: Bool[Tensor, "channels"],
        original: ActivationCache,
        *,
        draws: DrawnPositions,
        ridge: float | None = None,
    ):
        if small.images < 2:
            raise SampleError("repair: least_squares needs at least two images, for one half judges the fit to the other")
        self.found, self.keep, self.small, self.original = found, keep, small, original
        self.draws, self.ridge = draws, ridge
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def run(self, progress: bool | Callable[[], None] = False) -> Iterator[tuple[str, float, float]]:
        """Name and relative errors of each layer that is re-fitted, in forward order.

        Parameters
        ----------
        progress
            Whether a bar is drawn; or what is called after each layer.

        Returns
        -------
        iterator of tuple
            Layer, relative error before the fit, and cross-validated relative error after it.
        """
        contexts = list(layer_contexts(self.found.graph, self.found.layers))
        passed: set[str] = set()
        present = {str(node.target) for node in self.small.graph.steps.nodes}
        steps = advancing(contexts, progress) if callable(progress) else track(contexts, "repair, layers", shown=progress)
        for place, context in enumerate(steps):
            if context.layer.name not in present and left_out(self.small.graph.model):
                self.skipped[context.layer.name] = "it was left out with its block"
                continue
            for step in passed - _steps(contexts[place:]):
                self.original.unpin(step)
                passed.discard(step)
            module = self.small.graph.modules[context.layer.name]
            reason = self._why_skipped(context, module)
            if reason:
                self.skipped[context.layer.name] = reason
                continue
            inherited = self._weights(context, module)
            reason = peer_weights(self.small.graph.model, self.found, self.keep, self.original, context, draws=self.draws)
            if reason:
                self.notes[context.layer.name] = f"re-fitted toward its inherited weights, not those of peers: {reason}"
            in_sum = self._is_summed(context)
            target_node = str(context.sum_node) if in_sum else context.layer.node
            here = self.original.place[target_node]
            passed |= _steps([each for each in contexts[place + 1 :] if self.original.place[each.layer.node] <= here])
            for step in passed | {target_node}:
                self.original.pin(step)
            targets = self.original(target_node)
            halves = self._normal_equations(context, module, in_sum, targets)
            self.original.unpin(target_node)
            yield context.layer.name, *self._solve(context, module, inherited, halves)

    def _node(self, context: LayerContext) -> str:
        """The layer's step in the smaller network, whose other steps may have been rewritten; empty where there is none."""
        steps = self.small.graph.steps.nodes
        return next((node.name for node in steps if node.op == "call_module" and node.target == context.layer.name), "")

    def _input_node(self, context: LayerContext) -> str:
        return self.small.graph.nodes[self._node(context)].all_input_nodes[0].name

    def _is_summed(self, context: LayerContext) -> bool:
        """Whether the layer makes up for the error of the other term of a sum, which comes before it in both networks."""
        replaced = left_out(self.small.graph.model)
        steps = [node.name for node in self.small.graph.steps.nodes]
        expected = graph_without(self.found, replaced, self.found.graph.body).steps if replaced else self.original.graph.steps
        if steps != [node.name for node in expected.nodes] or context.sum_node is None:
            return False
        return self.small.place[self._other_term(context)] < self.small.place[context.layer.node]

    def _other_term(self, context: LayerContext) -> str:
        """The step of the other term of a sum in the smaller network."""
        return resolved(str(context.other_term), left_out(self.small.graph.model))

    def _why_skipped(self, context: LayerContext, module: Any) -> str:
        layer = layer_of(module)
        if layer is None:
            what = "it is written out as its steps" if isinstance(module, fx.GraphModule) else f"a {type(module).__name__} is no layer"
            return f"{what}: weights stay as inherited"
        if layer.transposed:
            return "transposed convolution: weights stay as inherited"
        if self.found.graph.nodes[context.layer.node] not in self.found.graph.of_images:
            return "its values are the same for every image: weights stay as inherited"
        if not self._node(context):
            return "it is part of a rewritten step: weights stay as inherited"
        if "weight" not in module._parameters or call_counts(self.small.graph, context.layer.name) > 1:
            return "its weights are used in several places or computed: they stay as inherited"
        if patch_width(module) > MAX_FAN_IN:
            return f"it reads {patch_width(module):,} values at once, more than {MAX_FAN_IN:,}: weights stay as inherited"
        if sum(map(len, self.small(self._input_node(context)))) % self.small.images:
            return "the rows of its input do not belong to one image each: weights stay as inherited"
        if not patches_are_exact(module, self.small(self._input_node(context))[0][:1]):
            return "its input cannot be read as patches: weights stay as inherited"
        return ""

    def _normal_equations(
        self, context: LayerContext, module: Any, in_sum: bool, targets: list[Tensor]
    ) -> tuple[NormalEquations, NormalEquations]:
        """Normal equations of every other image, and of the others."""
        outputs = self.keep[context.layer.outputs].nonzero().flatten()
        layer = layer_of(module)
        assert layer is not None
        axis = -1 if layer.tokens else 1
        norm = batchnorm_scale_shift(self.original.graph.modules[context.batchnorm]) if context.batchnorm and not in_sum else None
        added = module.bias if context.bias_stays and not context.batchnorm else None
        halves: list[NormalEquations | None] = [None, None]
        start = 0
        sources = self.small(self._input_node(context))
        rests = self.small(self._other_term(context)) if in_sum else sources
        windows = max(sum(map(len, sources)) // self.small.images, 1)
        for source, rest, target in zip(sources, rests, targets, strict=True):
            target = target.index_select(axis, outputs.to(target.device))
            if norm is not None:
                factor, shift = (part[outputs].to(target).view(1, -1, *[1] * (target.dim() - 2)) for part in norm)
                target = target * factor + shift
            target = target - rest if in_sum else target
            if added is not None:
                target = target - added.view([-1 if place == axis % target.dim() else 1 for place in range(target.dim())])
            drawn = self.draws.of(target[0].numel() // target.shape[axis]) if windows == 1 else None
            for half in range(min(len(source) // windows, 2)):
                where = None if drawn is None else drawn[start + half : start + len(source) : 2]
                inputs, outs = (part.unflatten(0, (-1, windows))[half::2].flatten(0, 1) for part in (source, target))
                taken = input_patches(module, inputs, tuple(target.shape[1:]), where)
                part = NormalEquations.of(taken, patch_rows(layer, outs, where))
                before = halves[half]
                halves[half] = part if before is None else before + part
            start += len(source)
        first, second = halves
        assert first is not None
        assert second is not None
        return first, second

    def _weights(self, context: LayerContext, module: Any) -> Float[Tensor, "groups outputs inputs"]:
        """A layer's weights as it has them now, with the factor of its normalization."""
        weights = module.weight.detach().double().flatten(1)
        if context.batchnorm is not None:
            weights = weights * batchnorm_scale_shift(self.small.graph.modules[context.batchnorm])[0][:, None]
        layer = layer_of(module)
        assert layer is not None
        return weights.view(layer.groups, -1, weights.shape[1])

    def _solve(
        self, context: LayerContext, module: Any, inherited: Tensor, halves: tuple[NormalEquations, NormalEquations]
    ) -> tuple[float, float]:
        norm: Any = self.small.graph.modules[context.batchnorm] if context.batchnorm else None
        inherits_bias = module.bias is None or context.bias_stays
        if norm is None and inherits_bias:
            halves = halves[0].about_zero(), halves[1].about_zero()
        total = halves[0] + halves[1]
        prior = total.match_target_variance(self._weights(context, module), MAX_RESCALE)
        shares = RIDGES if self.ridge is None else (2 * self.ridge,)
        errors = cross_validated_error(halves, prior, shares)
        best = int(errors.argmin())
        (fitted,) = total.ridge(prior, (shares[best] / 2,))  # twice the images of a half, against the same penalty
        mean, variance = total.output_moments(fitted)
        constant: Any = module.bias if norm is None and context.bias_stays else total.intercept(fitted).flatten()
        write_linear_map(module, norm, fitted.flatten(0, 1), constant, mean.flatten(), variance.flatten())
        scale = (total.tt / total.count).mean()  # where the target never varies, the fractions are nan
        return float(total.error(inherited).mean() / scale), float(errors[best] / scale)
