"""Rewriting: a network as its recorded steps, with corrected numbers and weights that are no longer computed."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from channelscope.network.operations.numbers import Edit, Number

if TYPE_CHECKING:
    from channelscope.network.channel_graph import ChannelGraph


def rewritten(
    graph: "ChannelGraph", small: nn.Module, edits: Mapping[fx.Node, Edit], folded: Mapping[fx.Node, Tensor], values: Mapping[fx.Node, Any]
) -> nn.Module:
    """The recorded steps of a network as a module of their own; parameters and modules keep their names.

    Parameters
    ----------
    graph
        The channel graph.
    small
        The network with cut parameters.
    edits
        Steps with other arguments.
    folded
        Steps that compute a weight, and the weight.
    values
        Values of the steps in the smaller network.
    """
    steps = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copied(part: Any) -> Any:
        if isinstance(part, fx.Node):
            return copies[part]
        if isinstance(part, Number):
            return _scaled(steps, part, copies)
        if isinstance(part, slice):
            return slice(copied(part.start), copied(part.stop), copied(part.step))
        return part

    like = next(small.parameters(), None)
    for node in graph.steps.nodes:
        if node in folded:
            name = f"folded_{node.name}"
            value = folded[node] if like is None else folded[node].to(like)
            small.register_parameter(name, nn.Parameter(value.clone(), requires_grad=False))
            copies[node] = steps.create_node("get_attr", name)
            continue
        if node.op == "get_attr" and node.target in graph.constants:
            small.register_buffer(str(node.target), graph.constants[str(node.target)].clone())
        changed = edits.get(node)
        args, kwargs = (node.args, node.kwargs) if changed is None else (changed.args, changed.kwargs)
        copies[node] = steps.create_node(node.op, node.target, map_aggregate(args, copied), map_aggregate(kwargs, copied), node.name)  # type: ignore[arg-type]
        if changed is not None and changed.factor != 1:
            copies[node] = steps.call_function(operator.mul, (copies[node], changed.factor))
    result = fx.GraphModule(small, steps, type(small).__name__)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _scaled(steps: fx.Graph, number: Number, copies: Mapping[fx.Node, fx.Node]) -> Any:
    """The number that is wanted, in proportion to what is given, so that it still depends on the batch size where that does."""
    if not isinstance(number.given, fx.Node):
        return number.want
    product = steps.call_function(operator.mul, (copies[number.given], number.want))
    return steps.call_function(operator.floordiv, (product, number.now))
