"""Scores: one number per channel from a profile; `scores.NAME(profile)` gives a Ranking."""

from channelscope.scores.baselines import (
    activation_mean,
    activation_rms,
    bn_scale,
    chip,
    fisher,
    fpgm,
    hrank,
    l1,
    l2,
    random,
    taylor_activation,
    taylor_weight,
)
from channelscope.scores.composites import (
    capture_overlap,
    duplicate_task,
    local_composite,
    nonreplaceable_task,
    norm_capture,
    target_composite,
)
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.scores.local import capture, compactness, overlap, peer_residual, rayleigh, support
from channelscope.scores.registry import REGISTRY, Score, lookup, register
from channelscope.scores.score_table import DEFAULT_SCORES, PermutationNull, permutation_null, standard_errors, table
from channelscope.scores.target import excess, redundancy, relevance, task_credit, triplet_excess_by_layer, unique

__all__ = [
    "DEFAULT_SCORES",
    "REGISTRY",
    "LayerStatistics",
    "PermutationNull",
    "Score",
    "ScoreOptions",
    "activation_mean",
    "activation_rms",
    "bn_scale",
    "capture",
    "capture_overlap",
    "chip",
    "compactness",
    "duplicate_task",
    "excess",
    "fisher",
    "fpgm",
    "hrank",
    "l1",
    "l2",
    "local_composite",
    "lookup",
    "nonreplaceable_task",
    "norm_capture",
    "overlap",
    "peer_residual",
    "permutation_null",
    "random",
    "rayleigh",
    "redundancy",
    "register",
    "relevance",
    "standard_errors",
    "support",
    "table",
    "target_composite",
    "task_credit",
    "taylor_activation",
    "taylor_weight",
    "triplet_excess_by_layer",
    "unique",
]
