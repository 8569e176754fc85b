"""The table of operations: one entry for each kind of step that a network can contain."""

from channelscope.network.operations import elementwise, mixing, moves, pooling, products, step
from channelscope.network.operations.mixing import FunctionalCall, FunctionalLayers, layers_called
from channelscope.network.operations.operation import (
    TABLE,
    Layout,
    Operation,
    WeightedLayer,
    has_separate_kernels,
    inherits_forward,
    keep_channels,
    layer_of,
    of_function,
    of_module,
    of_step,
    register,
    spell,
    spelling,
    unregister,
)
from channelscope.network.operations.pooling import tracking_norms
from channelscope.network.operations.step import Call, Step, call_of, execute

FAMILIES = (elementwise, mixing, moves, pooling, products, step)
"""The files in which the entries stand."""

__all__ = [
    "FAMILIES",
    "TABLE",
    "Call",
    "FunctionalCall",
    "FunctionalLayers",
    "Layout",
    "Operation",
    "Step",
    "WeightedLayer",
    "call_of",
    "execute",
    "has_separate_kernels",
    "inherits_forward",
    "keep_channels",
    "layer_of",
    "layers_called",
    "of_function",
    "of_module",
    "of_step",
    "register",
    "spell",
    "spelling",
    "tracking_norms",
    "unregister",
]
