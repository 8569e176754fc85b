"""Replay: the steps of a recorded pass carried out again, on another network, other inputs, or with changes in between."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from channelscope.network.graph import execute
from channelscope.network.module_state import out_of_place

Change = Callable[[fx.Node, Any], Any]
"""(step, its value) → the value to go on with"""


def replay(
    steps: fx.Graph, model: nn.Module, inputs: tuple[Any, ...], constants: Mapping[str, Tensor], change: Change | None = None
) -> tuple[Any, dict[fx.Node, Any]]:
    """The output of the recorded steps, and the value of every step.

    Parameters
    ----------
    steps
        The recorded pass.
    model
        The network whose modules and parameters are used.
    inputs
        One for each placeholder; those that are missing keep the recorded default.
    constants
        Tensors that are neither inputs nor parameters.
    change
        Is given each step and its value, and returns the value to go on with.
    """
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    result = None

    def of(argument: Any) -> Any:
        return map_aggregate(argument, lambda part: values[part] if isinstance(part, fx.Node) else part)

    with torch.no_grad(), out_of_place(model):
        for node in steps.nodes:
            if node.op == "placeholder":
                value = next(given, node.args[0] if node.args else None)
            elif node.op == "get_attr":
                value = constants[str(node.target)] if node.target in constants else execute(model, node.op, node.target, (), {})
            elif node.op == "output":
                result = of(node.args[0])
                continue
            else:
                value = execute(model, node.op, node.target, of(node.args), of(node.kwargs))
            values[node] = value if change is None else change(node, value)
    return result, values


def plain(value: Any) -> Any:
    """A nested value with its tensors in float64 where they hold floating-point numbers."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return map_aggregate(value, lambda part: part.double() if isinstance(part, Tensor) and part.is_floating_point() else part)  # type: ignore[arg-type]
