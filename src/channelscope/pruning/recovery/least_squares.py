"""Every layer of the smaller network re-fitted, in forward order, to the output of the original."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from channelscope.errors import SampleError
from channelscope.network.partial_forward import ActivationCache
from channelscope.network.patches import input_patches, patch_rows, patch_width, patches_are_exact
from channelscope.network.removal.groups import Groups
from channelscope.pruning.recovery.calibration import DrawnPositions
from channelscope.pruning.recovery.layer_context import LayerContext, call_counts, layer_contexts
from channelscope.pruning.recovery.normalization import batchnorm_scale_shift, write_linear_map
from channelscope.pruning.recovery.peers import PEER_RIDGE, peer_weights
from channelscope.stats.normal_equations import NormalEquations, cross_validated_error
from channelscope.types import Bool, Float, Tensor

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties that are tried, as shares of the mean variance of what a layer reads."""

MAX_RESCALE = 4.0
"""The most by which a layer's prior is scaled up: what hardly varies tells little of its scale."""

MAX_FAN_IN = 8192
"""Inputs times kernel size beyond which the normal equations (512 MiB) are not formed."""


class LayerwiseLeastSquares:
    """Both networks over the same images, and the regression of each layer of the smaller one in turn."""

    def __init__(
        self,
        found: Groups,
        alive: Bool[Tensor, "channels"],
        small: ActivationCache,
        original: ActivationCache,
        draws: DrawnPositions,
        ridge: float | None,
    ):
        if small.images < 2:
            raise SampleError("repair: least_squares needs at least two images, for one half judges the fit to the other")
        self.found, self.alive, self.small, self.original = found, alive, small, original
        self.draws, self.ridge = draws, ridge
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def run(self) -> Iterator[tuple[str, float, float]]:
        """Re-fit layer after layer; gives name, error before and after, on images the fit has not seen."""
        for place in layer_contexts(self.found.graph, self.found.layers):
            module = self.small.graph.modules[place.layer.name]
            reason = self._unfit(place, module)
            if reason:
                self.skipped[place.layer.name] = reason
                continue
            inherited = self._weights(place, module)
            reason = peer_weights(self.small.graph.model, place, self.found, self.alive, self.original, PEER_RIDGE, self.draws)
            if reason:
                self.notes[place.layer.name] = f"re-fitted toward its inherited weights, not those of peers: {reason}"
            summed = self._is_summed(place)
            goal = str(place.total) if summed else place.layer.node
            self.original.pin(goal)
            targets = self.original(goal)
            halves = self._halves(place, module, summed, targets)
            self.original.unpin(goal)
            yield place.layer.name, *self._solve(place, module, inherited, halves)

    def _node(self, place: LayerContext) -> str:
        """The layer's step in the smaller network, whose other steps may have been rewritten; empty where there is none."""
        return next((n.name for n in self.small.graph.steps.nodes if n.op == "call_module" and n.target == place.layer.name), "")

    def _source(self, place: LayerContext) -> str:
        return self.small.graph.nodes[self._node(place)].all_input_nodes[0].name

    def _is_summed(self, place: LayerContext) -> bool:
        """Whether the layer makes up for the error of the other term of a sum, which comes before it in both networks."""
        steps = [node.name for node in self.small.graph.steps.nodes]
        same = self.found.labeled is None or steps == [node.name for node in self.original.graph.steps.nodes]
        return same and place.total is not None and self.small.place[str(place.rest)] < self.small.place[place.layer.node]

    def _unfit(self, place: LayerContext, module: nn.Module) -> str:
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            return "transposed convolution: weights stay as inherited"
        if not self._node(place):
            return "it is part of a rewritten step: weights stay as inherited"
        if "weight" not in module._parameters or call_counts(self.small.graph, place.layer.name) > 1:
            return "its weights are used in several places or computed: they stay as inherited"
        if patch_width(module) > MAX_FAN_IN:
            return f"it reads {patch_width(module):,} values at once, more than {MAX_FAN_IN:,}: weights stay as inherited"
        if not patches_are_exact(module, self.small(self._source(place))[0][:1]):
            return "its input cannot be read as patches: weights stay as inherited"
        return ""

    def _halves(self, place: LayerContext, module: Any, summed: bool, targets: list[Tensor]) -> tuple[NormalEquations, NormalEquations]:
        """Normal equations of every other image, and of the others."""
        outputs = self.alive[place.layer.outputs].nonzero().flatten()
        axis = -1 if place.layer.linear else 1
        groups = 1 if place.layer.linear else module.groups
        norm = batchnorm_scale_shift(self.original.graph.modules[place.norm]) if place.norm and not summed else None
        halves: list[NormalEquations | None] = [None, None]
        start = 0
        sources = self.small(self._source(place))
        rests = self.small(str(place.rest)) if summed else sources
        for source, rest, target in zip(sources, rests, targets, strict=True):
            target = target.index_select(axis, outputs.to(target.device))
            if norm is not None:
                factor, shift = (part[outputs].to(target).view(1, -1, *[1] * (target.dim() - 2)) for part in norm)
                target = target * factor + shift
            target = target - rest if summed else target
            drawn = self.draws.of(target[0].numel() // target.shape[axis])
            for half in range(min(len(source), 2)):
                where = None if drawn is None else drawn[start + half : start + len(source) : 2]
                taken = input_patches(module, source[half::2], tuple(target.shape[1:]), where)
                part = NormalEquations.of(taken, patch_rows(target[half::2], groups, place.layer.linear, where))
                before = halves[half]
                halves[half] = part if before is None else before + part
            start += len(source)
        first, second = halves
        assert first is not None
        assert second is not None
        return first, second

    def _weights(self, place: LayerContext, module: Any) -> Float[Tensor, "groups outputs inputs"]:
        """A layer's weights as it has them now, with the factor of its normalization."""
        weights = module.weight.detach().double().flatten(1)
        if place.norm is not None:
            weights = weights * batchnorm_scale_shift(self.small.graph.modules[place.norm])[0][:, None]
        groups = 1 if place.layer.linear else module.groups
        return weights.view(groups, -1, weights.shape[1])

    def _solve(
        self, place: LayerContext, module: Any, inherited: Tensor, halves: tuple[NormalEquations, NormalEquations]
    ) -> tuple[float, float]:
        norm: Any = self.small.graph.modules[place.norm] if place.norm else None
        if norm is None and module.bias is None:
            halves = halves[0].about_zero(), halves[1].about_zero()
        total = halves[0] + halves[1]
        prior = total.match_target_variance(self._weights(place, module), MAX_RESCALE)
        shares = RIDGES if self.ridge is None else (2 * self.ridge,)
        errors = cross_validated_error(halves, prior, shares)
        best = int(errors.argmin())
        (fitted,) = total.ridge(prior, (shares[best] / 2,))  # twice the images of a half, against the same penalty
        mean, variance = total.output_moments(fitted)
        write_linear_map(module, norm, fitted.flatten(0, 1), total.intercept(fitted).flatten(), mean.flatten(), variance.flatten())
        scale = (total.tt / total.count).mean()  # where the target never varies, the fractions are nan
        return float(total.error(inherited).mean() / scale), float(errors[best] / scale)
