"""Tables of discarded information by image and by layer, with the reason where a CID has not converged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from channelscope import tables
from channelscope.discarding.cid import CIDOptions, CIDResult
from channelscope.errors import MismatchError
from channelscope.formulas.intervals import student_reach, t_interval
from channelscope.tables.quantities import OURS, Column

MA = "Ma et al. 2022"


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


def _nats(meaning: str, source: str = OURS, low: float | None = None) -> Column:
    return Column("nats/value", 3, meaning, source, low)


def _part(meaning: str) -> Column:
    return Column("fraction", 3, meaning, OURS, 0.0, 1.0)


COLUMNS: Mapping[str, Column] = {
    "network": _text("the network"),
    "other": _text("the network it is compared with"),
    "layer": _text("layer, by module path or step of the traced pass"),
    "other_layer": _text("layer of the other network"),
    "depth": Column("", 0, "position of the layer in execution order", OURS, 0.0),
    "image": Column("", 0, "index of the image in its data set", OURS, 0.0),
    "cid": _nats("information discarding: largest mean entropy of pixel noise (pixels of 0 to 1) that keeps the feature", MA),
    "cid_other": _nats("CID of the other network", MA),
    "difference": _nats("CID of the other network less CID of this one"),
    "gain": _nats("CID less the entropy of uniform noise under the same constraint and caps: how uneven the sensitivity is"),
    "gap": _nats("estimated distance from the largest entropy; up to 0.1 nat of it is included in the CID", low=0.0),
    "error": _nats("standard error of the CID, from the draws that set the noise level", low=0.0),
    "ratio": Column("ε", 3, "E|Δf|² on fresh noise over what is allowed", OURS, 0.0),
    "ratio_se": Column("ε", 3, "standard error of that ratio", OURS, 0.0),
    "capped": _part("cells whose noise is held by the data's standard deviation"),
    "unseen": _part("cells that do not reach the feature: outside its receptive field, or dead"),
    "reached": _text("whether the constraint can be reached at all"),
    "converged": _part("whether, or in what share of images, constraint, level and optimum are known within 2 % and 0.02 nats"),
    "unreached": Column("images", 0, "images whose constraint cannot be reached; left out of the means", OURS, 0.0),
    "note": _text("what keeps the CID from having converged"),
    "passes": Column("passes", 0, "passes forward and backward per image, the check included", OURS, 0.0),
    "seconds": Column("s", 3, "wall-clock time per image", OURS, 0.0),
    "concentration": _nats("mean H over the background less mean H over the object: positive where the object is kept better", MA),
    "rho": Column(
        "fraction", 3, "ρ = C₁ + (C₂ · concentration − C₃) / (2 (C₄ − H̄)), H̄ the mean of the map: not a measured mutual information", MA
    ),
    "c1": _part("C₁: share of the foreground"),
    "c2": _part("C₂: 2 n_f n_b / n²"),
    "c3": _nats("C₃: 2 (n_f / n) (C₄ − entropy of a foreground value)"),
    "c4": _nats("C₄: entropy of an input value, taken as normal with the data's standard deviation"),
    "points_on": Column("cells", 0, "cells on the object kept better than the background's mean by the margin", OURS, 0.0),
    "points_beside": Column("cells", 0, "cells beside the object kept as well", OURS, 0.0),
    "of": _text("edges (brightness gradient) or color (distance from gray)"),
    "method": _text("whose map: cid of a layer, another method, random, or center (a map that only knows that objects are in the middle)"),
    "baseline": _text("what replaces a cell: zero (the mean color) or its blurred self"),
    "area": Column(
        "probability", 3, "area under the class's probability over the share of pixels taken away; low is better", OURS, 0.0, 1.0
    ),
    "less_cid": Column("", 3, "the method's value less that of the first CID, paired over images", OURS),
    "iou": _part("mean intersection over union of the map's box with the object's"),
    "found": _part("images with an IoU of at least 0.5"),
    "level": _part("quantile at which maps are cut, chosen on the tuning images"),
    "tuned": Column("images", 0, "tuning images", OURS, 0.0),
    "decoder": _text("ridge, or trained: a residual network on top of it"),
    "ru": _nats("reconstruction uncertainty: mean over cells of ½ ln(2πe E(x̂ − x)²) under the noise the feature survives", MA),
    "ru_clean": _nats("the same without noise"),
    "variance": Column("pixel²", 4, "variance of the reconstruction over the noise", OURS, 0.0),
    "bias": Column("pixel²", 4, "squared distance of the expected reconstruction from the image; unbiased, so it can be below zero", OURS),
    "n": Column("images", 0, "images behind the row", OURS, 0.0),
}

MAX_RATIO_ERROR, MAX_NATS = 0.02, 0.02
"""a CID has converged if its constraint is met within 2 % and its level and distance from the optimum are below 0.02 nats"""


def image_table(results: Iterable[CIDResult], options: CIDOptions, network: str) -> pd.DataFrame:
    """One row per image and layer: CID with its interval, the constraint on fresh noise, the cost, and why it has not converged.

    Parameters
    ----------
    results
        Results of `discard`.
    options
        Their options, which the table names.
    network
        Name of the network.

    Returns
    -------
    DataFrame
        The table `discarded`, by depth and image.

    Examples
    --------
    >>> import torch
    >>> from channelscope.discarding.pixel_network import LayerOutput
    >>> numbers = {name: torch.zeros(1) for name in ("error", "gap", "uniform", "ratio_error", "capped", "unseen")}
    >>> numbers |= {"cid": torch.tensor([-2.0]), "ratio": torch.tensor([1.5])}
    >>> index, reached = torch.tensor([7]), torch.tensor([True])
    >>> result = CIDResult(LayerOutput("conv", "conv", 1), index, torch.ones(1, 4), numbers, reached, 20, 6, 0.1)
    >>> image_table([result], CIDOptions(), "net")[["image", "cid", "converged", "note"]].to_dict("records")
    [{'image': 7, 'cid': -2.0, 'converged': False, 'note': 'constraint at 1.500 ± 0.000'}]

    References
    ----------
    Ma et al. 2022 (convergence report); checked by tests/discarding/test_tables.py.
    """
    rows = [row for each in results for row in _rows(each, options, network)]
    rows.sort(key=lambda row: (row["depth"], row["image"]))
    return describe_discarding("discarded", rows, options)


def layer_table(images: pd.DataFrame) -> pd.DataFrame:
    """One row per network and layer: mean CID over the images with a t interval, and the fraction that converged.

    Parameters
    ----------
    images
        The table of `image_table`; images whose constraint cannot be reached are left out of the means.

    Returns
    -------
    DataFrame
        The table `discarded_layers`.

    Examples
    --------
    >>> row = dict.fromkeys(COLUMNS, 0.0) | {"network": "net", "layer": "conv", "depth": 1, "reached": True}
    >>> images = describe_discarding("discarded", [row | {"cid": -1.0}, row | {"cid": -3.0}], CIDOptions())
    >>> layer_table(images)[["layer", "n", "cid"]].to_dict("records")
    [{'layer': 'conv', 'n': 2, 'cid': -2.0}]

    References
    ----------
    Student 1908 (t intervals over images).
    """
    rows = []
    for (network, layer), own in images.groupby(["network", "layer"], sort=False):
        known = own[own.reached]
        cid, ratio = t_interval(known.cid), t_interval(known.ratio)
        rows.append(
            {"network": network, "layer": layer, "depth": own.depth.iloc[0], "n": len(known)}
            | dict(zip(("cid", "cid_low", "cid_high"), cid, strict=True))
            | {"gain": known.gain.mean()}
            | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
            | {"gap": known.gap.mean(), "error": np.sqrt((known.error**2).mean()), "capped": own.capped.mean(), "unseen": own.unseen.mean()}
            | {"converged": own.converged.mean(), "unreached": int((~own.reached).sum())}
            | {"passes": own.passes.mean(), "seconds": own.seconds.mean()}
        )
    return tables.describe(pd.DataFrame(rows), {**images.attrs, "name": "discarded_layers", "columns": COLUMNS})


def difference_table(images: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """CID of another network less CID of this one by layer, paired over images, with t intervals.

    Parameters
    ----------
    images
        The table of `image_table` of this network.
    other
        That of the other network; layers are paired in order of depth.

    Returns
    -------
    DataFrame
        The table `discarded_difference`.

    Raises
    ------
    MismatchError
        If the tables differ in normalizer, κ, caps, cells, images or number of layers.

    Examples
    --------
    >>> row = {"network": "net", "layer": "conv", "depth": 1, "reached": True}
    >>> images, other = (
    ...     describe_discarding("discarded", [row | {"image": image, "cid": cid - image} for image in (1, 2)], CIDOptions())
    ...     for cid in (-1.0, -0.5)
    ... )
    >>> difference_table(images, other)[["layer", "n", "difference"]].to_dict("records")
    [{'layer': 'conv', 'n': 2, 'difference': 0.5}]

    References
    ----------
    Ma et al. 2022 (comparability).
    """
    convention, other_convention = (frame.attrs["provenance"]["convention"] for frame in (images, other))
    differ = [
        f"{key} ({convention[key]} and {other_convention.get(key)})" for key in convention if convention[key] != other_convention.get(key)
    ]
    if differ:
        raise MismatchError(f"these CIDs are not on one scale: they differ in {', '.join(differ)}; run both with the same options")
    layers, other_layers = (list(dict.fromkeys(frame.layer)) for frame in (images, other))
    if len(layers) != len(other_layers):
        raise MismatchError(f"expected as many layers of both networks, received {len(layers)} and {len(other_layers)}: name them")
    rows = []
    for layer, other_layer in zip(layers, other_layers, strict=True):
        pair = images[images.layer == layer].merge(other[other.layer == other_layer], on="image", suffixes=("", "_other"))
        if not len(pair) == (images.layer == layer).sum() == (other.layer == other_layer).sum():
            raise MismatchError(f"at {layer}: the two tables are of different images; run both on the same ones")
        pair = pair[pair.reached & pair.reached_other]
        value, low, high = t_interval(pair.cid_other - pair.cid)
        rows.append(
            {"network": images.network.iloc[0], "other": other.network.iloc[0], "layer": layer, "other_layer": other_layer}
            | {"depth": pair.depth.iloc[0] if len(pair) else 0, "n": len(pair), "cid": pair.cid.mean(), "cid_other": pair.cid_other.mean()}
            | {"difference": value, "difference_low": low, "difference_high": high}
        )
    return tables.describe(pd.DataFrame(rows), {**images.attrs, "name": "discarded_difference", "columns": COLUMNS})


def describe_discarding(
    name: str,
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    options: CIDOptions,
    columns: Mapping[str, Column] | None = None,
    **facts: Any,
) -> pd.DataFrame:
    """A table with descriptions of its columns and the options of its CIDs.

    Parameters
    ----------
    name
        Name of the table.
    rows
        Rows of the table, or a frame.
    options
        Options of the CIDs: normalizer, κ, caps and cells become `convention` in the table's provenance.
    columns
        Descriptions of further columns.
    **facts
        Further entries of the provenance.

    Returns
    -------
    DataFrame
        The table, described.

    Examples
    --------
    >>> frame = describe_discarding("discarded", [{"layer": "conv", "cid": -2.0}], CIDOptions(side=8))
    >>> frame.attrs["provenance"]["convention"]["side"]
    8

    References
    ----------
    Ma et al. 2022 (comparability).
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    known = {"name": name, "columns": {**COLUMNS, **(columns or {})}, "convention": options.convention(), "mode": options.mode}
    return tables.describe(frame, known | facts)


def _rows(result: CIDResult, options: CIDOptions, network: str) -> Iterable[dict[str, Any]]:
    numbers = {name: values.double().tolist() for name, values in result.numbers.items()}
    reach = student_reach(1.0, result.degrees_of_freedom)
    for place, image in enumerate(result.index.tolist()):
        own = {name: values[place] for name, values in numbers.items()}
        reached = bool(result.constraint_reached[place])
        note = _convergence_note(own, reached, options)
        if not reached:
            own |= {"gap": float("nan"), "error": float("nan")}
        yield (
            {"network": network, "layer": result.layer.name, "depth": result.layer.depth, "image": image, "cid": own["cid"]}
            | {"cid_low": own["cid"] - reach * own["error"], "cid_high": own["cid"] + reach * own["error"]}
            | {"gain": own["cid"] - own["uniform"], "ratio": own["ratio"], "ratio_se": own["ratio_error"], "error": own["error"]}
            | {name: own[name] for name in ("gap", "capped", "unseen")}
            | {"reached": reached, "converged": not note, "note": note, "passes": result.passes, "seconds": result.seconds}
        )


def _convergence_note(own: Mapping[str, float], reached: bool, options: CIDOptions) -> str:
    """The reasons why a CID has not converged; empty where it has."""
    if not reached:
        return f"the feature changes by less than ε with all noise at its cap ({own['ratio']:.2f} of it): the CID is a bound"
    reasons = []
    if abs(own["ratio"] - 1) > MAX_RATIO_ERROR + 2 * own["ratio_error"]:
        reasons.append(f"constraint at {own['ratio']:.3f} ± {own['ratio_error']:.3f}")
    if own["error"] > MAX_NATS:
        reasons.append(f"level known to ± {own['error']:.3f} nats")
    if options.mode == "exact" and own["gap"] > MAX_NATS:
        reasons.append(f"{own['gap']:.3f} nats from the optimum")
    return "; ".join(reasons)
