"""Scores: one number per channel from a profile; `scores.NAME(profile)` gives a Ranking."""

from channelscope.scores.capture import capture, rayleigh
from channelscope.scores.compactness import compactness
from channelscope.scores.excess import excess, triplets
from channelscope.scores.gradient import fisher, taylor_activation, taylor_weight
from channelscope.scores.layer import Convention, Layer
from channelscope.scores.mixture import capture_overlap, local_composite, norm_capture, peer_residual, random, target_composite
from channelscope.scores.null import Null, null
from channelscope.scores.overlap import overlap, support
from channelscope.scores.published import chip, hrank
from channelscope.scores.relevance import redundancy, relevance, unique
from channelscope.scores.score import REGISTRY, Score, named, score
from channelscope.scores.size import activation_mean, activation_rms, bn_scale, fpgm, l1, l2
from channelscope.scores.table import STANDARD, standard_errors, table

__all__ = [
    "REGISTRY",
    "STANDARD",
    "Convention",
    "Layer",
    "Null",
    "Score",
    "activation_mean",
    "activation_rms",
    "bn_scale",
    "capture",
    "capture_overlap",
    "chip",
    "compactness",
    "excess",
    "fisher",
    "fpgm",
    "hrank",
    "l1",
    "l2",
    "local_composite",
    "named",
    "norm_capture",
    "null",
    "overlap",
    "peer_residual",
    "random",
    "rayleigh",
    "redundancy",
    "relevance",
    "score",
    "standard_errors",
    "support",
    "table",
    "target_composite",
    "taylor_activation",
    "taylor_weight",
    "triplets",
    "unique",
]
