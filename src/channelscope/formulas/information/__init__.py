"""Information in nats: mutual, local axis, target axis, label."""

from channelscope.formulas.gaussian import EXACT
from channelscope.formulas.information.label import label_information, label_pairs, label_singles
from channelscope.formulas.information.local import capture, overlap, peer_mean, peer_top, rayleigh
from channelscope.formulas.information.mutual import CEILING, correlation_information, gaussian_bias, information, nats_of_gap
from channelscope.formulas.information.target import (
    excess,
    pair_information,
    redundancy,
    sample_triples,
    triplet_excess,
    triplet_ratio,
    unique,
)

__all__ = [
    "CEILING",
    "EXACT",
    "capture",
    "correlation_information",
    "excess",
    "gaussian_bias",
    "information",
    "label_information",
    "label_pairs",
    "label_singles",
    "nats_of_gap",
    "overlap",
    "pair_information",
    "peer_mean",
    "peer_top",
    "rayleigh",
    "redundancy",
    "sample_triples",
    "triplet_excess",
    "triplet_ratio",
    "unique",
]
