"""Tables of scores with their standard errors, and the distribution of scores under shuffles of the target."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from channelscope.display import Facts, Shown, spread
from channelscope.errors import InputError, SampleError, at
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, Gaussian, oas
from channelscope.formulas.intervals import jackknife, permutation_p
from channelscope.progress import track
from channelscope.scores.score import LayerStatistics, Score, ScoreOptions, lookup
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor

DEFAULT_SCORES = ("rayleigh", "capture", "overlap", "support", "relevance", "excess", "unique", "redundancy")


def table(profile: Profile, names: Iterable[str] = DEFAULT_SCORES, errors: bool = False, **options) -> pd.DataFrame:
    """Table of scores: one row per channel with site, depth, channel, kind, one column per score, and a note on what is nan or inf.

    `attrs["units"]` has the unit of each column, `attrs["keeps"]` which values pruning keeps, `attrs["assumption"]` the
    options. With `errors`, each score also gets a column NAME_se, its jackknife standard error over image shards. A score
    that a layer has too few images for is nan there, with the reason in `attrs["refused"]` and in the note.

    Parameters
    ----------
    profile
        The profile of a network.
    names
        Names of scores.
    errors
        Whether to add standard errors.
    **options
        Fields of `ScoreOptions`.

    Returns
    -------
    DataFrame
        One row per channel, site by site.

    Raises
    ------
    InputError
        For an unknown score or option.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> frame = table(collect(toy.model, toy.batches), ["overlap", "relevance"])
    >>> print(frame[["site", "channel", "overlap", "relevance"]].round(3).to_string(index=False))
    site  channel  overlap  relevance
    conv        0    0.173      0.253
    conv        1    0.173     -0.002
    conv        2    0.000      0.110

    References
    ----------
    The scores' own; standard errors as in Efron & Tibshirani 1993, chapter 11.
    """
    wanted = lookup(names)
    convention = ScoreOptions.of(options)
    refused: dict[str, str] = {}
    frames = []
    for site in track(profile.sites, "scores"):
        with at(site.name):
            layer = LayerStatistics.of_all(profile, site, convention)
            columns, notes = _score_descriptions(layer, wanted, refused)
            if errors:
                columns |= standard_errors(layer, wanted)
        frame = pd.DataFrame({"site": site.name, "depth": site.depth, "channel": range(site.channels), "kind": site.kind, **columns})
        frame["note"] = [notes.get(channel, "") for channel in range(site.channels)]
        frames.append(frame)
    channels = pd.concat(frames, ignore_index=True)
    channels.attrs |= {
        "name": "channels",
        "units": {score.name: score.unit for score in wanted} | {f"{score.name}_se": score.unit for score in wanted if errors},
        "keeps": {score.name: score.keeps for score in wanted},
        "assumption": assumption(profile, convention),
        "refused": refused,
    }
    return channels


def _score_descriptions(
    layer: LayerStatistics, wanted: list[Score], refused: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    columns, notes = {}, {}
    for score in wanted:
        try:
            columns[score.name], reasons = score.layer_values(layer)
        except SampleError as error:
            columns[score.name], reasons = np.full(layer.channels, np.nan), {}
            refused[f"{score.name} at {layer.site.name}"] = str(error)
        for channel, reason in reasons.items():
            notes.setdefault(channel, f"{score.name}: {reason}")
    return columns, notes


def standard_errors(layer: LayerStatistics, wanted: list[Score]) -> dict[str, np.ndarray]:
    """Jackknife standard error over image shards of each score of one layer.

    Parameters
    ----------
    layer
        Statistics of the layer.
    wanted
        Scores, with their default arguments.

    Returns
    -------
    dict
        NAME_se → (channels,) standard errors in the unit of the score; nan for a score with too few images.

    Raises
    ------
    SampleError
        If the profile has no shards.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> profile = collect(toy.model, toy.batches)
    >>> layer = LayerStatistics(profile, profile.site("conv"), profile.record("conv"), ScoreOptions())
    >>> standard_errors(layer, lookup("relevance"))["relevance_se"].round(2).tolist()
    [0.03, 0.0, 0.03]

    References
    ----------
    Efron & Tibshirani 1993, chapter 11; Kott 2001.
    """
    replicates = [
        LayerStatistics(layer.profile, layer.site, record, layer.convention) for record in layer.profile.jackknife_records(layer.site)
    ]
    columns = {}
    for score in wanted:
        try:
            values: list[Tensor] = [score.formula(each) for each in (layer, *replicates)]
        except SampleError:
            columns[f"{score.name}_se"] = np.full(layer.channels, np.nan)
            continue
        spread = [each.masked_fill(each.isinf(), float("nan")).double() for each in values]
        columns[f"{score.name}_se"] = jackknife(spread[0], torch.stack(spread[1:])).standard_error.numpy()
    return columns


def assumption(profile: Profile, convention: ScoreOptions) -> str:
    """The assumption and options behind a table's numbers, in one line.

    Parameters
    ----------
    profile
        The profile of a network.
    convention
        Choices that all scores share.

    Returns
    -------
    str
        The fitted law, number of images, readout, target, noise and preset.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> assumption(collect(toy.model, toy.batches), ScoreOptions()).split("; ")[-2:]
    ['noise median variance of the layer', 'preset default']

    References
    ----------
    None: a description.
    """
    site = profile.sites[0]
    gaussian = LayerStatistics.of_all(profile, site, convention).gaussian
    readout = "pooled" if convention.target == "label" else convention.target_readout
    repeated = "" if readout == "pooled" else "; target repeated at each position (pseudo-replicated)"
    noise = "median variance of the layer" if convention.noise == "median" else f"{convention.noise:g}"
    return (
        f"{gaussian.describe().rsplit(', n=', 1)[0]}, n = {profile.images:,} images; local readout {profile.readout}; "
        f"target {convention.target}, {readout}{repeated}; noise {noise}; preset {convention.preset}"
    )


@dataclass(frozen=True, repr=False)
class PermutationNull(Shown):
    """Permutation null of a target score at one site."""

    p: Float[np.ndarray, "channels"]
    """(1 + permutations that reach the value) / (1 + permutations)"""
    mean: Float[np.ndarray, "channels"]
    """mean of the score under the null; subtract it from the score for an unbiased value"""
    permutations: int
    """number of permutations"""

    def facts(self) -> Facts:
        """Number of permutations, and the ranges of p and of the mean."""
        told = f"{len(self.p):,} channels, {self.permutations:,} permutations"
        return f"PermutationNull({told})", [("p", spread(self.p)), ("mean under the null", spread(self.mean))]


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
            layer = LayerStatistics.of_all(profile, site, convention)
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
