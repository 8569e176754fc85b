"""Every score of a profile side by side, one row per channel."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.intervals import jackknife
from channelscope.progress import track
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.scores.registry import Score, lookup
from channelscope.stats.profile import Profile
from channelscope.types import Tensor

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
            layer = LayerStatistics(profile, site, profile.record(site), convention)
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
    gaussian = LayerStatistics(profile, site, profile.record(site), convention).gaussian
    readout = "pooled" if convention.target == "label" else convention.target_readout
    repeated = "" if readout == "pooled" else "; target repeated at each position (pseudo-replicated)"
    noise = "median variance of the layer" if convention.noise == "median" else f"{convention.noise:g}"
    return (
        f"{gaussian.describe().rsplit(', n=', 1)[0]}, n = {profile.images:,} images; local readout {profile.readout}; "
        f"target {convention.target}, {readout}{repeated}; noise {noise}; preset {convention.preset}"
    )
