"""columns: what the columns of the discarding tables mean."""

from collections.abc import Mapping

from channelscope.tables import Column

HERE = "this library"
MA = "Ma et al. 2022"


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=HERE)


def _nats(meaning: str, source: str = HERE, low: float | None = None) -> Column:
    return Column("nats/value", 3, meaning, source, low)


def _part(meaning: str) -> Column:
    return Column("fraction", 3, meaning, HERE, 0.0, 1.0)


COLUMNS: Mapping[str, Column] = {
    "network": _text("the network"),
    "other": _text("the network it is compared with"),
    "layer": _text("layer, by module path or step of the traced pass"),
    "other_layer": _text("layer of the other network"),
    "depth": Column("", 0, "position of the layer in execution order", HERE, 0.0),
    "image": Column("", 0, "index of the image in its data set", HERE, 0.0),
    "cid": _nats("information discarding: largest mean entropy of pixel noise (pixels of 0 to 1) that keeps the feature", MA),
    "cid_other": _nats("CID of the other network", MA),
    "difference": _nats("CID of the other network less CID of this one"),
    "gain": _nats("CID less the entropy of uniform noise under the same constraint and caps: how uneven the sensitivity is"),
    "gap": _nats("entropy that better-known noise could still gain, estimated; up to 0.1 nat of it is included in the CID", low=0.0),
    "error": _nats("standard error of the CID, from the draws that set the noise level", low=0.0),
    "ratio": Column("ε", 3, "E|Δf|² on fresh noise over what is allowed", HERE, 0.0),
    "ratio_se": Column("ε", 3, "standard error of that ratio", HERE, 0.0),
    "capped": _part("cells whose noise is held by the data's standard deviation"),
    "unseen": _part("cells that do not reach the feature: outside its receptive field, or dead"),
    "reached": _text("whether the constraint can be reached at all"),
    "converged": _part("whether, or in what share of images, constraint, level and optimum are known within 2 % and 0.02 nats"),
    "unreached": Column("images", 0, "images whose constraint cannot be reached; left out of the means", HERE, 0.0),
    "note": _text("what keeps the CID from having converged"),
    "passes": Column("passes", 0, "passes forward and backward per image, the check included", HERE, 0.0),
    "seconds": Column("s", 3, "wall-clock time per image", HERE, 0.0),
    "concentration": _nats("mean H over the background less mean H over the object: positive where the object is kept better", MA),
    "rho": Column(
        "fraction", 3, "ρ = C₁ + (C₂ · concentration − C₃) / (2 (C₄ − H̄)), H̄ the mean of the map: not a measured mutual information", MA
    ),
    "c1": _part("C₁: share of the foreground"),
    "c2": _part("C₂: 2 n_f n_b / n²"),
    "c3": _nats("C₃: 2 (n_f / n) (C₄ − entropy of a foreground value)"),
    "c4": _nats("C₄: entropy of an input value, taken as normal with the data's standard deviation"),
    "points_on": Column("cells", 0, "cells on the object kept better than the background's mean by the margin", HERE, 0.0),
    "points_beside": Column("cells", 0, "cells beside the object kept as well", HERE, 0.0),
    "of": _text("edges (brightness gradient) or color (distance from gray)"),
    "method": _text("whose map: cid of a layer, another method, random, or center (a map that only knows that objects are in the middle)"),
    "baseline": _text("what replaces a cell: zero (the mean color) or its blurred self"),
    "area": Column(
        "probability", 3, "area under the class's probability over the share of pixels taken away; low is better", HERE, 0.0, 1.0
    ),
    "less_cid": Column("", 3, "the method's value less that of the first CID, paired over images", HERE),
    "iou": _part("mean intersection over union of the map's box with the object's"),
    "found": _part("images with an IoU of at least 0.5"),
    "level": _part("quantile at which maps are cut, chosen on the tuning images"),
    "tuned": Column("images", 0, "tuning images", HERE, 0.0),
    "decoder": _text("ridge, or trained: a residual network on top of it"),
    "ru": _nats("reconstruction uncertainty: mean over cells of ½ ln(2πe E(x̂ − x)²) under the noise the feature survives", MA),
    "ru_clean": _nats("the same without noise"),
    "variance": Column("pixel²", 4, "variance of the reconstruction over the noise", HERE, 0.0),
    "bias": Column("pixel²", 4, "squared distance of the expected reconstruction from the image; unbiased, so it can be below zero", HERE),
    "n": Column("images", 0, "images behind the row", HERE, 0.0),
}
