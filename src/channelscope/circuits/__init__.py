"""Feature-preserving circuits: the kernels that one feature of a network needs, as a subset, a module and a diagram."""

from channelscope.circuits.circuit import Circuit, remove_dead_ends, union
from channelscope.circuits.comparison import compare_criteria
from channelscope.circuits.criteria import CircuitOptions, score_kernels
from channelscope.circuits.evaluation import HeldOutImages, evaluate_circuit
from channelscope.circuits.extraction import extract_module
from channelscope.circuits.feature import Feature, LocatedFeature, locate_feature
from channelscope.circuits.folder import load_circuit, save_circuit
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.circuits.selection import connected_top_k, top_k
from channelscope.circuits.subfeatures import subfeature_circuits

__all__ = [
    "Circuit",
    "CircuitOptions",
    "Feature",
    "HeldOutImages",
    "KernelScores",
    "LocatedFeature",
    "compare_criteria",
    "connected_top_k",
    "evaluate_circuit",
    "extract_module",
    "load_circuit",
    "locate_feature",
    "remove_dead_ends",
    "save_circuit",
    "score_kernels",
    "subfeature_circuits",
    "top_k",
    "union",
]
