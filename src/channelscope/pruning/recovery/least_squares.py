"""Every layer of the smaller network re-fitted, in forward order, so that its output matches the original network's."""

from collections.abc import Iterator
from typing import Any

from channelscope.errors import SampleError
from channelscope.network.graph import ActivationCache
from channelscope.network.operations import layer_of
from channelscope.network.patches import input_patches, patch_rows, patch_width, patches_are_exact
from channelscope.network.removal.groups import Groups
from channelscope.pruning.recovery.calibration import DrawnPositions
from channelscope.pruning.recovery.normalization import LayerContext, batchnorm_scale_shift, call_counts, layer_contexts, write_linear_map
from channelscope.pruning.recovery.peers import peer_weights
from channelscope.stats.normal_equations import NormalEquations, cross_validated_error
from channelscope.types import Bool, Float, Tensor

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

    def run(self) -> Iterator[tuple[str, float, float]]:
        """Name and relative errors of each layer that is re-fitted, in forward order.

        Returns
        -------
        iterator of tuple
            Layer, relative error before the fit, and cross-validated relative error after it.
        """
        contexts = list(layer_contexts(self.found.graph, self.found.layers))
        passed: set[str] = set()
        for place, context in enumerate(contexts):
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
        steps = [node.name for node in self.small.graph.steps.nodes]
        same = steps == [node.name for node in self.original.graph.steps.nodes]
        return same and context.sum_node is not None and self.small.place[str(context.other_term)] < self.small.place[context.layer.node]

    def _why_skipped(self, context: LayerContext, module: Any) -> str:
        layer = layer_of(module)
        if layer is None:
            return f"a {type(module).__name__} is no convolution or linear layer: weights stay as inherited"
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
        halves: list[NormalEquations | None] = [None, None]
        start = 0
        sources = self.small(self._input_node(context))
        rests = self.small(str(context.other_term)) if in_sum else sources
        windows = max(sum(map(len, sources)) // self.small.images, 1)
        for source, rest, target in zip(sources, rests, targets, strict=True):
            target = target.index_select(axis, outputs.to(target.device))
            if norm is not None:
                factor, shift = (part[outputs].to(target).view(1, -1, *[1] * (target.dim() - 2)) for part in norm)
                target = target * factor + shift
            target = target - rest if in_sum else target
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
        if norm is None and module.bias is None:
            halves = halves[0].about_zero(), halves[1].about_zero()
        total = halves[0] + halves[1]
        prior = total.match_target_variance(self._weights(context, module), MAX_RESCALE)
        shares = RIDGES if self.ridge is None else (2 * self.ridge,)
        errors = cross_validated_error(halves, prior, shares)
        best = int(errors.argmin())
        (fitted,) = total.ridge(prior, (shares[best] / 2,))  # twice the images of a half, against the same penalty
        mean, variance = total.output_moments(fitted)
        write_linear_map(module, norm, fitted.flatten(0, 1), total.intercept(fitted).flatten(), mean.flatten(), variance.flatten())
        scale = (total.tt / total.count).mean()  # where the target never varies, the fractions are nan
        return float(total.error(inherited).mean() / scale), float(errors[best] / scale)
