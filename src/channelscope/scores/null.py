"""What target scores look like when the target says nothing: the permutation null, from the profile alone."""

from dataclasses import dataclass

import numpy as np
import torch

from channelscope.errors import InputError, at
from channelscope.formulas.gaussian import EXACT
from channelscope.scores.layer import Convention, Layer
from channelscope.scores.score import Score, named
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class Null:
    """Permutation null of a target score at one site."""

    p: Float[np.ndarray, "channels"]
    """(1 + permutations that reach the value) / (1 + permutations)"""
    mean: Float[np.ndarray, "channels"]
    """mean of the score under the null, to be subtracted from it"""
    permutations: int
    """number of permutations"""


def null(profile: Profile, name: str, permutations: int = 200, seed: int = 0, **options) -> dict[str, Null]:
    """Permutation null of a target-axis score at every site: targets shuffled over images.

    Over all shuffles, the correlations of a target with the channels have mean zero and covariance R/(n − 1), exactly;
    the shuffles are drawn from the normal law with these moments, so the images are not needed again.

    Raises   InputError for the label target or a score that is not on the target axis.
    Source   Hoeffding 1951 (permutation moments and limit); p values after Phipson & Smyth 2010
    """
    (found,) = named(name)
    convention, own = Convention.split(options, found.options)
    if found.axis != "target" or convention.target == "label":
        raise InputError(f"a permutation null is there for target scores of a continuous target, not for {name} with {convention.target}")
    results = {}
    for site in profile.sites:
        with at(site.name):
            layer = Layer(profile, site, profile.record(site), convention)
            results[site.name] = _null(found, layer, permutations, seed, own)
    return results


def _null(found: Score, layer: Layer, permutations: int, seed: int, own: dict) -> Null:
    value = found.formula(layer, **own)
    factor = _root(layer.peer_rho) / (layer.images - 1) ** 0.5
    draws = torch.randn(permutations, factor.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ factor.T
    shuffled = []
    for draw in draws:
        blank = Layer(layer.profile, layer.site, layer.record, layer.convention)
        blank.__dict__ |= {"peer_rho": layer.peer_rho, "target_rho": draw.clamp(-1, 1)}
        shuffled.append(found.formula(blank, **own))
    values = torch.stack(shuffled)
    hits = (values >= value).sum(0)
    p = ((1 + hits) / (1 + permutations)).masked_fill(value.isnan(), torch.nan)
    return Null(p.numpy(), values.mean(0).numpy(), permutations)


def _root(rho: Tensor) -> Tensor:
    """A matrix B with BB' = R; rows of silent channels are nan."""
    alive = ~rho.diagonal().isnan()
    values, vectors = torch.linalg.eigh(rho[alive][:, alive])
    root = torch.full((len(rho), int(alive.sum())), torch.nan, dtype=torch.float64)
    root[alive] = vectors * values.clamp(min=0).masked_fill(values < EXACT, 0).sqrt()
    return root
