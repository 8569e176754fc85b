"""Every score of a profile side by side, one row per channel."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.intervals import jackknife
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.scores.registry import Score, lookup
from channelscope.stats.profile import Profile
from channelscope.types import Tensor

DEFAULT_SCORES = ("rayleigh", "capture", "overlap", "support", "relevance", "excess", "unique", "redundancy")


def table(profile: Profile, names: Iterable[str] = DEFAULT_SCORES, errors: bool = False, **options) -> pd.DataFrame:
    """Scores of every channel: columns site, channel, kind, depth, one per score, and note for what is nan or inf.

    `frame.attrs["units"]` has the unit of each column, `attrs["keeps"]` which end is kept, `attrs["assumption"]` what was
    assumed. With `errors`, each score also gets a column NAME_se, its jackknife standard error over image shards. A score
    that a layer has too few images for is nan there, with the reason in `attrs["refused"]` and in the note.

    References
    ----------
    The scores' own; standard errors as in Efron & Tibshirani 1993, chapter 11.
    """
    wanted = lookup(names)
    convention = ScoreOptions.of(options)
    refused: dict[str, str] = {}
    frames = []
    for site in profile.sites:
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            columns, notes = _score_descriptions(layer, wanted, refused)
            if errors:
                columns |= standard_errors(layer, wanted)
        frame = pd.DataFrame({"site": site.name, "depth": site.depth, "channel": range(site.channels), "kind": site.kind, **columns})
        frame["note"] = [notes.get(channel, "") for channel in range(site.channels)]
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    whole.attrs |= {
        "name": "channels",
        "units": {one.name: one.unit for one in wanted} | {f"{one.name}_se": one.unit for one in wanted if errors},
        "keeps": {one.name: one.keeps for one in wanted},
        "assumption": assumption(profile, convention),
        "refused": refused,
    }
    return whole


def _score_descriptions(
    layer: LayerStatistics, wanted: list[Score], refused: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    columns, notes = {}, {}
    for one in wanted:
        try:
            columns[one.name], why = one.layer_values(layer)
        except SampleError as error:
            columns[one.name], why = np.full(layer.channels, np.nan), {}
            refused[f"{one.name} at {layer.site.name}"] = str(error)
        for channel, reason in why.items():
            notes.setdefault(channel, f"{one.name}: {reason}")
    return columns, notes


def standard_errors(layer: LayerStatistics, wanted: list[Score]) -> dict[str, np.ndarray]:
    """Jackknife standard error over image shards of each score of one layer, in columns NAME_se.

    Raises
    ------
    SampleError
        If the profile has no shards.

    References
    ----------
    Efron & Tibshirani 1993, chapter 11; Kott 2001.
    """
    replicates = [
        LayerStatistics(layer.profile, layer.site, record, layer.convention) for record in layer.profile.jackknife_records(layer.site)
    ]
    columns = {}
    for one in wanted:
        try:
            values: list[Tensor] = [one.formula(each) for each in (layer, *replicates)]
        except SampleError:
            columns[f"{one.name}_se"] = np.full(layer.channels, np.nan)
            continue
        spread = [each.masked_fill(each.isinf(), float("nan")).double() for each in values]
        columns[f"{one.name}_se"] = jackknife(spread[0], torch.stack(spread[1:])).standard_error.numpy()
    return columns


def assumption(profile: Profile, convention: ScoreOptions) -> str:
    """What the numbers of a table rest on, in one line.

    References
    ----------
    None needed: a description.
    """
    site = profile.sites[0]
    law = LayerStatistics(profile, site, profile.record(site), convention).gaussian
    readout = "pooled" if convention.target == "label" else convention.target_readout
    repeated = "" if readout == "pooled" else "; target repeated at each position (pseudo-replicated)"
    noise = "median variance of the layer" if convention.noise == "median" else f"{convention.noise:g}"
    return (
        f"{law.describe().rsplit(', n=', 1)[0]}, n = {profile.images:,} images; local readout {profile.readout}; "
        f"target {convention.target}, {readout}{repeated}; noise {noise}; preset {convention.preset}"
    )
