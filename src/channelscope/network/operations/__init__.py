"""The table of operations: one entry for each kind of step that a network can contain."""

from channelscope.network.operations import attention, elementwise, mixing, moves, norms, opaque, pooling, products
from channelscope.network.operations.operation import (
    TABLE,
    Geometry,
    Layout,
    Operation,
    of_function,
    of_module,
    of_step,
    register,
    spell,
    spelling,
    unregister,
)
from channelscope.network.operations.step import Step

FAMILIES = (attention, elementwise, mixing, moves, norms, opaque, pooling, products)
"""The files in which the entries stand."""

__all__ = [
    "FAMILIES",
    "TABLE",
    "Geometry",
    "Layout",
    "Operation",
    "Step",
    "of_function",
    "of_module",
    "of_step",
    "register",
    "spell",
    "spelling",
    "unregister",
]
