"""Peers: the kept channels of a layer supply what the removed ones supplied, by linear prediction."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from channelscope.errors import MismatchError
from channelscope.formulas.regression import peers_matrix
from channelscope.net.coupling import POOLING, POOLS
from channelscope.net.find import CHANNELWISE
from channelscope.net.groups import Groups
from channelscope.net.identity import weights_hash
from channelscope.net.readout import channels_last, draw
from channelscope.repair.carried import Carried
from channelscope.repair.layers import Place, places
from channelscope.repair.normal import Normal
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.types import Bool, Float, Tensor

BETWEEN = POOLS | {"flatten", "dropout", "contiguous", "mean"}
"""Functions and methods between a cut point and a consumer that leave channels apart; pooling is taken as if it were not there."""
WIDEST = 8192
"""Inputs of a consumer beyond which their covariance (512 MiB) is not formed."""
RIDGE = 0.01
"""λ as a share of the mean variance of the kept channels."""


@dataclass(frozen=True)
class Supply:
    """The linear prediction of what a consumer no longer reads from what it still reads."""

    matrix: Float[Tensor, "dropped kept"]
    """A = Σ_DK (Σ_KK + λI)⁻¹"""
    constant: Float[Tensor, "dropped"]
    """μ_D − A μ_K"""
    kept: Bool[Tensor, "inputs"]
    """which inputs stay"""


@torch.no_grad()
def peers(
    small: nn.Module, found: Groups, keep: Bool[Tensor, "channels"], source: Profile | Carried, ridge: float, positions: int
) -> dict[str, str]:
    """Change the consumers of pruned channels in place, and nothing else.

        W_next[:, K] += W_next[:, D] A   at every tap        A = Σ_DK (Σ_KK + λI)⁻¹

    λ is `ridge` times the kept channels' mean variance. The constant W_next[:, D] (μ_D − A μ_K), summed over the taps, goes
    into the consumer's bias or out of its normalization's running mean; at zero-padded borders fewer taps contribute than that.

    keep     `survivors`
    source   the original's activations: Σ is then the covariance of what each consumer reads. Or its profile: Σ is that of
             the cut points before the consumer, and pooling in between is taken as if it were not there.

    Returns  layer → why it was left as it was. Grouped layers go with their group; of what several sites were added into, a
             profile has no covariance.
    Raises   MismatchError if the profile is of other weights.
    Source   docs/how-to/pruning.md (the protocol of comparison)
    """
    if isinstance(source, Profile) and source.weights_hash != weights_hash(found.graph.model):
        raise MismatchError("repair: the profile was measured on other weights than the original network's; collect it again")
    reasons = {place.layer.name: supply(small, place, found, keep, source, ridge, positions) for place in places(found.graph, found.layers)}
    return {name: reason for name, reason in reasons.items() if reason}


def supply(
    small: nn.Module, place: Place, found: Groups, keep: Bool[Tensor, "channels"], source: Profile | Carried, ridge: float, positions: int
) -> str:
    """The same for one consumer; returns why it was left as it was, or nothing."""
    layer = place.layer
    if bool(keep[layer.inputs].all()):
        return ""
    if layer.groups > 1:
        return "grouped: it goes with its group"
    made = _recorded(place, found, keep, source, ridge) if isinstance(source, Profile) else _seen(place, keep, source, ridge, positions)
    if isinstance(made, str):
        return made
    _write(small, place, found, keep[layer.outputs].nonzero().flatten(), made)
    return ""


def _seen(place: Place, keep: Tensor, original: Carried, ridge: float, positions: int) -> Supply | str:
    """From the original's activations in front of the consumer."""
    kept = keep[place.layer.inputs]
    if len(kept) > WIDEST:
        return f"it reads {len(kept):,} channels, more than {WIDEST:,}: their covariance is not formed"
    total: Normal | None = None
    start = 0
    for values in original(place.source):
        flat = channels_last(values, values.dim() - 2 if place.layer.linear else 0)
        if flat.shape[1] > positions:
            where = draw(torch.arange(start, start + len(flat)), flat.shape[1], positions, seed=0).to(flat.device)
            flat = flat.gather(1, where[:, :, None].expand(-1, -1, flat.shape[2]))
        start += len(flat)
        part = Normal.of(flat.reshape(1, -1, flat.shape[2]), flat.new_zeros(1, flat.shape[0] * flat.shape[1], 0))
        total = part if total is None else total + part
    assert total is not None
    return _predicted(total.xx[0].cpu() / total.count, total.x_mean[0].cpu(), kept, ridge)


def _recorded(place: Place, found: Groups, keep: Tensor, profile: Profile, ridge: float) -> Supply | str:
    """From the covariances of the cut points in front of the consumer."""
    feeding = _feeding(found.graph.nodes[place.source], found)
    if feeding is None:
        return "it reads a sum or product of several sites, whose covariance no profile has"
    moments = [profile.record(site.name).cut for site in feeding]
    kept = torch.cat([keep[found.offsets[site.name] : found.offsets[site.name] + site.channels] for site in feeding])
    covariance = torch.block_diag(*(part.covariance for part in moments))
    return _predicted(covariance, torch.cat([part.mean for part in moments]), kept, ridge)


def _predicted(covariance: Tensor, mean: Tensor, kept: Tensor, ridge: float) -> Supply:
    inside, outside = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    matrix = peers_matrix(covariance, outside, inside, ridge)
    return Supply(matrix, mean[outside] - matrix @ mean[inside], kept)


def _feeding(node: fx.Node, found: Groups) -> list[Site] | None:
    """The sites whose cut points, one after the other, are what a consumer reads; None where channels have met."""
    sites = {site.cut: site for site in found.sites}
    if node.name in sites:
        return [sites[node.name]]
    parents = node.all_input_nodes
    if node.op == "call_module" and isinstance(found.graph.modules[str(node.target)], (*CHANNELWISE, *POOLING, nn.Flatten)):
        return _feeding(parents[0], found)
    if node.op in ("call_function", "call_method"):
        name = node.target if node.op == "call_method" else node.target.__name__  # type: ignore[union-attr]
        if name in ("cat", "concat"):
            parts = [_feeding(parent, found) for parent in parents]
            return None if any(part is None for part in parts) else [site for part in parts for site in part or []]
        if name in BETWEEN:
            return _feeding(parents[0], found)
    return None


def _write(small: nn.Module, place: Place, found: Groups, outputs: Tensor, supply: Supply) -> None:
    name = place.layer.name
    module: Any = small.get_submodule(name)
    original: Any = found.graph.modules[name]
    weights = original.weight.detach().double().cpu()[outputs]
    if weights.shape[1] % len(supply.kept):
        raise MismatchError(f"repair: {name} reads {weights.shape[1]} inputs, the sites before it have {len(supply.kept)} channels")
    taps = weights.reshape(len(outputs), len(supply.kept), -1)  # a flattening lays positions side by side: they are taps too
    lost = taps[:, ~supply.kept]
    fresh = taps[:, supply.kept] + torch.einsum("odt,dk->okt", lost, supply.matrix)
    constant = lost.sum(2) @ supply.constant
    module.weight.copy_(fresh.reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.add_(constant.to(module.bias))
    elif place.norm:
        norm: Any = small.get_submodule(place.norm)
        norm.running_mean.sub_(constant.to(norm.running_mean))
