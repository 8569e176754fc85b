"""Experiments on channels: each is one function that returns tables."""

from channelscope.experiments.ablation import ablate
from channelscope.experiments.ablation_plan import AblationPlan, Replacement
from channelscope.experiments.axes import axis_alignment, axis_clusters, task_mass
from channelscope.experiments.communities import find_communities
from channelscope.experiments.gradients import gradient_angles, simulate
from channelscope.experiments.hulls import HullOptions, replacement_sets
from channelscope.experiments.propagation import axis_propagation
from channelscope.experiments.trajectory import training_trajectory

__all__ = [
    "AblationPlan",
    "HullOptions",
    "Replacement",
    "ablate",
    "axis_alignment",
    "axis_clusters",
    "axis_propagation",
    "find_communities",
    "gradient_angles",
    "replacement_sets",
    "simulate",
    "task_mass",
    "training_trajectory",
]
