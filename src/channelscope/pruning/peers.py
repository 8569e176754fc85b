"""Removed channels predicted linearly from kept ones, and the prediction folded into the weights of their consumers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from channelscope.errors import MismatchError
from channelscope.formulas.regression import peer_regression
from channelscope.network.graph import ActivationCache
from channelscope.network.module_state import weights_hash
from channelscope.network.operations import call_of
from channelscope.network.removal.groups import Groups
from channelscope.pruning.calibration import DrawnPositions
from channelscope.pruning.normalization import LayerContext, layer_contexts
from channelscope.site import Site
from channelscope.stats.moments import NormalEquations
from channelscope.stats.profile import Profile
from channelscope.stats.readout import channels_last
from channelscope.types import Bool, Float, Tensor

MAX_FAN_IN = 8192
"""Inputs of a consumer beyond which their covariance (512 MiB) is not formed."""

PEER_RIDGE = 0.01
"""λ as a share of the mean variance of the kept channels."""


@dataclass(frozen=True)
class PeerPrediction:
    """Linear prediction of the inputs that a consumer loses from those that it keeps."""

    matrix: Float[Tensor, "dropped kept"]
    """A = Σ_DK (Σ_KK + λI)⁻¹"""
    constant: Float[Tensor, "dropped"]
    """μ_D − A μ_K"""
    kept: Bool[Tensor, "inputs"]
    """which inputs stay"""


@torch.no_grad()
def compensate_with_peers(
    small: nn.Module,
    found: Groups,
    keep: Bool[Tensor, "channels"],
    source: Profile | ActivationCache,
    *,
    ridge: float = PEER_RIDGE,
    draws: DrawnPositions | None = None,
) -> dict[str, str]:
    """The consumers that were skipped, after folding the prediction of removed channels into the weights of all others, in place.

        W_next[:, K] += W_next[:, D] A   at every tap        A = Σ_DK (Σ_KK + λI)⁻¹

    λ is `ridge` times the kept channels' mean variance. The constant W_next[:, D] (μ_D − A μ_K), summed over the taps, is added
    to the consumer's bias, or subtracted from the running mean of its BatchNorm; at zero-padded borders fewer taps contribute.
    A consumer that has neither is fitted without an intercept, with second moments for Σ.

    Parameters
    ----------
    small
        The smaller network, changed in place.
    found
        The original's `groups`.
    keep
        Which channel numbers are kept, as `kept_ids` gives them.
    source
        The original's activations: Σ is then the covariance of what each consumer reads. Or its profile: Σ is that of the
        cut points before the consumer, and pooling in between is ignored.
    ridge
        λ as a fraction of the mean variance of the kept channels.
    draws
        Positions that each image contributes; None for all. A profile has its own.

    Returns
    -------
    dict[str, str]
        Layer → why it was skipped. Grouped layers are removed with their group; a profile has no covariance of inputs that are
        sums of several sites.

    Raises
    ------
    MismatchError
        If the profile is of other weights.

    Examples
    --------
    >>> from channelscope.network.removal.comparison import kept_ids
    >>> from channelscope.network.removal.groups import groups
    >>> from channelscope.profiling.collect import collect
    >>> from channelscope.pruning.cut import shrink
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()  # channel 3 is twice channel 0
    >>> found = groups(toy.model, toy.batches[0][0][:1])
    >>> site, channel = found.sites[0].name, 3
    >>> kept = found.to_subset([(site, channel) not in group.members for group in found.members])
    >>> small = shrink(found, kept)
    >>> compensate_with_peers(small, found, kept_ids(found, kept), collect(toy.model, toy.batches), ridge=1e-9)
    {}
    >>> bool(torch.allclose(small(toy.batches[0][0]), toy.model(toy.batches[0][0]), atol=1e-3))
    True

    References
    ----------
    docs/how-to/pruning.md (the protocol of comparison).
    """
    if isinstance(source, Profile) and source.weights_hash != weights_hash(found.graph.model):
        raise MismatchError("repair: the profile was measured on other weights than the original network's; collect it again")
    modules = dict(small.named_modules())  # without those of blocks that were left out
    reasons = {
        context.layer.name: peer_weights(small, found, keep, source, context, ridge=ridge, draws=draws)
        for context in layer_contexts(found.graph, found.layers)
        if context.layer.name in modules
    }
    return {name: reason for name, reason in reasons.items() if reason}


def peer_weights(
    small: nn.Module,
    found: Groups,
    keep: Bool[Tensor, "channels"],
    source: Profile | ActivationCache,
    context: LayerContext,
    *,
    ridge: float = PEER_RIDGE,
    draws: DrawnPositions | None = None,
) -> str:
    """Why one consumer was skipped, or an empty text after its weights were changed as in `compensate_with_peers`.

    Parameters
    ----------
    small, found, keep, source, ridge, draws
        As in `compensate_with_peers`.
    context
        The consumer.

    Returns
    -------
    str
        The reason; empty if the weights were changed or nothing that it reads was removed.

    Examples
    --------
    >>> from channelscope.network.removal.comparison import kept_ids
    >>> from channelscope.network.removal.groups import groups
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> found = groups(model, images[:1])
    >>> keep = kept_ids(found, found.to_subset([True, False, True, True]))
    >>> _, grouped, _ = layer_contexts(found.graph, found.layers)
    >>> peer_weights(model, found, keep, ActivationCache(found.graph, [(images,)]), grouped)
    'grouped: it goes with its group'
    """
    layer = context.layer
    if bool(keep[layer.inputs].all()):
        return ""
    if layer.groups > 1:
        return "grouped: it goes with its group"
    moments = (
        _input_moments_from_profile(context, found, source)
        if isinstance(source, Profile)
        else _input_moments_measured(context, source, draws)
    )
    if isinstance(moments, str):
        return moments
    kept = moments.kept(context, found, keep)
    if not bool((moments.covariance.diagonal()[kept] > 0).any()):
        return "no channel that stays of its inputs varies"
    constant = _writes_bias(small.get_submodule(layer.name), context) or context.batchnorm is not None
    prediction = _prediction(moments if constant else moments.about_zero(), kept, ridge)
    _write(small, context, found, keep[layer.outputs].nonzero().flatten(), prediction)
    return ""


@dataclass(frozen=True)
class _Moments:
    """Covariance and mean of what a consumer reads."""

    covariance: Float[Tensor, "inputs inputs"]
    mean: Float[Tensor, "inputs"]
    sites: tuple[Site, ...] = ()
    """the sites whose channels these are, one after the other; empty for the consumer's own inputs"""

    def about_zero(self) -> "_Moments":
        return _Moments(self.covariance + torch.outer(self.mean, self.mean), torch.zeros_like(self.mean), self.sites)

    def kept(self, context: LayerContext, found: Groups, keep: Tensor) -> Tensor:
        """Which of them stay."""
        if not self.sites:
            return keep[context.layer.inputs]
        return torch.cat([keep[found.first_id[site.name] : found.first_id[site.name] + site.channels] for site in self.sites])


def _input_moments_measured(context: LayerContext, original: ActivationCache, draws: DrawnPositions | None) -> _Moments | str:
    """From the original's activations in front of the consumer."""
    width = len(context.layer.inputs)
    if width > MAX_FAN_IN:
        return f"it reads {width:,} channels, more than {MAX_FAN_IN:,}: their covariance is not formed"
    total: NormalEquations | None = None
    start = 0
    batches = original(context.input_node)
    windows = sum(map(len, batches)) != original.images  # rows are windows of images: all their positions are taken
    for values in batches:
        flat = channels_last(values, values.dim() - 2 if context.layer.linear else 0)
        drawn = None if draws is None or windows else draws.of(flat.shape[1])
        if drawn is not None:
            flat = flat.gather(1, drawn[start : start + len(flat), :, None].expand(-1, -1, flat.shape[2]))
        start += len(flat)
        part = NormalEquations.of(flat.reshape(1, -1, flat.shape[2]), flat.new_zeros(1, flat.shape[0] * flat.shape[1], 0))
        total = part if total is None else total + part
    assert total is not None
    return _Moments(total.covariance[0].cpu(), total.x_mean[0].cpu())


def _input_moments_from_profile(context: LayerContext, found: Groups, profile: Profile) -> _Moments | str:
    """From the covariances of the cut points in front of the consumer."""
    feeding = input_sites(found.graph.nodes[context.input_node], found)
    if isinstance(feeding, str):
        return feeding
    channels = torch.cat([torch.arange(site.channels) + found.first_id[site.name] for site in feeding])
    numbers = context.layer.inputs
    if len(numbers) % len(channels):
        return f"it reads {len(numbers):,} inputs, which are not the {len(channels):,} channels of the sites before it"
    aligned = channels.repeat_interleave(len(numbers) // len(channels))
    if not bool(((numbers < 0) | (numbers == aligned)).all()):
        return "it reads the channels before it in another order, which a profile's covariance does not know"
    records = [profile.record(site.name).activation for site in feeding]
    mean = torch.cat([part.mean for part in records])
    return _Moments(torch.block_diag(*(part.covariance for part in records)), mean, tuple(feeding))


def _prediction(moments: _Moments, kept: Tensor, ridge: float) -> PeerPrediction:
    inside, outside = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    if bool(moments.covariance.diagonal()[inside].any()):
        matrix = peer_regression(moments.covariance, outside, inside, ridge)
    else:  # kept channels that never vary predict nothing but the mean
        matrix = moments.covariance.new_zeros(len(outside), len(inside))
    return PeerPrediction(matrix, moments.mean[outside] - matrix @ moments.mean[inside], kept)


def input_sites(node: fx.Node, found: Groups) -> list[Site] | str:
    """The sites whose cut points, concatenated, are what a consumer reads.

    Parameters
    ----------
    node
        The step whose value the consumer reads.
    found
        The network's `groups`.

    Returns
    -------
    list of Site, or str
        The sites in the order of the channels; or why a profile has no covariance of the value.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = groups(toy.model, toy.batches[0][0][:1])
    >>> [[site.name for site in input_sites(found.graph.nodes[name], found)] for name in ("relu", "relu_1")]
    [['stem'], ['inner']]
    >>> input_sites(found.graph.nodes["add"], found)
    'it reads a sum or product of several sites, whose covariance no profile has'
    """
    sites = {site.activation: site for site in found.sites}
    if node.name in sites:
        return [sites[node.name]]
    parents, call = node.all_input_nodes, call_of(node, found.graph.modules)
    if call.entry.joins:
        parts = [input_sites(parent, found) for parent in parents]
        reasons = [part for part in parts if isinstance(part, str)]
        return reasons[0] if reasons else [site for part in parts for site in part if isinstance(site, Site)]
    if call.entry.identity or call.entry.copies or (call.entry.keeps == "apart" and not call.entry.local and not call.entry.normalizes):
        return input_sites(parents[0], found)
    if len([parent for parent in parents if parent.op != "get_attr"]) > 1:
        return "it reads a sum or product of several sites, whose covariance no profile has"
    name = str(node.target if node.op != "call_function" else node.target.__name__)  # type: ignore[union-attr]
    return f"it reads what {name} makes of a site, whose covariance no profile has"


def _writes_bias(module: Any, context: LayerContext) -> bool:
    return module.bias is not None and not context.bias_stays


def _write(small: nn.Module, context: LayerContext, found: Groups, outputs: Tensor, prediction: PeerPrediction) -> None:
    name = context.layer.name
    module: Any = small.get_submodule(name)
    original: Any = found.graph.modules[name]
    weights = original.weight.detach().double().cpu()[outputs]
    if weights.shape[1] % len(prediction.kept):
        raise MismatchError(f"repair: {name} reads {weights.shape[1]} inputs, the sites before it have {len(prediction.kept)} channels")
    taps = weights.reshape(len(outputs), len(prediction.kept), -1)  # after a flattening the positions of a channel are adjacent inputs
    removed = taps[:, ~prediction.kept]
    weights_of_kept = taps[:, prediction.kept] + torch.einsum("odt,dk->okt", removed, prediction.matrix)
    constant = removed.sum(2) @ prediction.constant
    module.weight.copy_(weights_of_kept.reshape(module.weight.shape))
    if _writes_bias(module, context):
        module.bias.add_(constant.to(module.bias))
    elif context.batchnorm:
        norm: Any = small.get_submodule(context.batchnorm)
        norm.running_mean.sub_(constant.to(norm.running_mean))
