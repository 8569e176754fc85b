"""Permutation null of target scores, computed from the profile without the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from channelscope.errors import InputError, at
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, Gaussian, oas
from channelscope.formulas.significance import permutation_p
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.scores.registry import Score, lookup
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class PermutationNull:
    """Permutation null of a target score at one site."""

    p: Float[np.ndarray, "channels"]
    """(1 + permutations that reach the value) / (1 + permutations)"""
    mean: Float[np.ndarray, "channels"]
    """mean of the score under the null; subtract it from the score for an unbiased value"""
    permutations: int
    """number of permutations"""


def permutation_null(profile: Profile, name: str, permutations: int = 200, seed: int = 0, **options) -> dict[str, PermutationNull]:
    """Permutation null of a target score at every site: the targets are shuffled over the images.

    Over all shuffles, the correlations of a target with the channels have mean zero and covariance R/(n − 1), exactly, R being
    the unshrunk correlation matrix of the channels; the shuffles are drawn from the normal law with these moments, so the
    images are not needed again, and are shrunk as the data are. With targets repeated at each position, only the part of R that
    lies between images takes part: what the mean of an image's positions keeps of it, in expectation over the drawn positions.

    Parameters
    ----------
    profile
        The profile of a network, collected with labels (or with target="top_margin").
    name
        A score of the target family.
    permutations
        Number of shuffles.
    seed
        Seed of the shuffles.
    **options
        Fields of `ScoreOptions`, and the formula's own keyword arguments.

    Returns
    -------
    dict
        Site → `PermutationNull`.

    Raises
    ------
    InputError
        For the label target or a score that is not on the target axis.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> null = permutation_null(collect(toy.model, toy.batches), "relevance")["conv"]
    >>> null.p.round(3).tolist()
    [0.005, 1.0, 0.005]

    References
    ----------
    Hoeffding 1951 (permutation moments and limit); p values after Phipson & Smyth 2010.
    """
    (score,) = lookup(name)
    convention, arguments = ScoreOptions.split(options, score.options)
    if score.family != "target" or convention.target == "label":
        raise InputError(f"a permutation null is there for target scores of a continuous target, not for {name} with {convention.target}")
    results = {}
    for site in profile.sites:
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            results[site.name] = _null_values(score, layer, permutations, seed, arguments)
    return results


def _null_values(score: Score, layer: LayerStatistics, permutations: int, seed: int, arguments: dict) -> PermutationNull:
    value = score.formula(layer, **arguments)
    values = torch.stack([score.formula(shuffled, **arguments) for shuffled in _shuffled(layer, permutations, seed)])
    return PermutationNull(permutation_p(value, values).numpy(), values.mean(0).numpy(), permutations)


def _shuffled(layer: LayerStatistics, permutations: int, seed: int) -> Iterator[LayerStatistics]:
    """The layer with target correlations as shuffled images would give them."""
    rho = Gaussian.fit(layer.joint_moments).correlation[:-1, :-1]
    factor = _root(_between(layer)) / (layer.images - 1) ** 0.5
    draws = torch.randn(permutations, factor.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ factor.T
    known, shrinkage = ~rho.diagonal().isnan(), layer.convention.shrinkage
    squares = float(rho[known][:, known].square().sum()) + 1
    for draw in draws.clamp(-1, 1):
        shuffled = LayerStatistics(layer.profile, layer.site, layer.record, layer.convention)
        if shrinkage == "oas":
            square = squares + 2 * float(draw[known].square().sum())
            strength = oas(square, int(known.sum()) + 1, layer.images)
            shuffled.__dict__["target_readout_correlation"] = (rho * (1 - strength)).diagonal_scatter(rho.diagonal())
        else:
            strength = shrinkage or 0.0
            shuffled.__dict__["target_readout_correlation"] = layer.target_readout_correlation
        shuffled.__dict__["target_correlation"] = draw * (1 - strength)
        yield shuffled


def _between(layer: LayerStatistics) -> Tensor:
    """Covariance over images of each image's mean sample, in units of the samples' standard deviations; nan for silent channels."""
    total = Gaussian.fit(layer.joint_moments)[: layer.channels]
    scale = total.variance.sqrt().masked_fill(total.silent, torch.nan)
    moments = layer.record.stored_preactivation
    if moments is None or layer.convention.target_readout == "pooled":
        return total.covariance / torch.outer(scale, scale)
    images = layer.record.pooled[: layer.channels].covariance
    each, positions = moments.count / layer.images, layer.site.positions
    spread = (total.covariance - images) * ((positions - each) / (each * (positions - 1)))
    return (images + spread) / torch.outer(scale, scale)


def _root(rho: Tensor) -> Tensor:
    """A matrix B with BB' = R; rows of silent channels are nan."""
    alive = ~rho.diagonal().isnan()
    values, vectors = torch.linalg.eigh(rho[alive][:, alive])
    root = torch.full((len(rho), int(alive.sum())), torch.nan, dtype=torch.float64)
    root[alive] = vectors * values.clamp(min=0).masked_fill(values < FLOAT32_RESOLUTION, 0).sqrt()
    return root
