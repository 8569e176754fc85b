"""LayerContext: the BatchNorm and the sum that follow a layer before the next nonlinearity."""

from dataclasses import dataclass

from torch import fx, nn

from channelscope.network.graph import Graph
from channelscope.network.operations import of_module, of_step
from channelscope.network.removal.channels import LayerChannels


@dataclass(frozen=True)
class LayerContext:
    """One layer, the BatchNorm that follows it, and the sum that its output is a term of."""

    layer: LayerChannels
    """the layer, with the channels it reads and writes"""
    input_node: str
    """step whose value the layer reads"""
    batchnorm: str | None
    """module path of the batch normalization that directly follows"""
    sum_node: str | None
    """step of the sum that the (normalized) output is a term of"""
    other_term: str | None
    """step of the other term of that sum"""


def layer_contexts(graph: Graph, layers: tuple[LayerChannels, ...]) -> list[LayerContext]:
    """The context of every weighted layer, in execution order.

    Parameters
    ----------
    graph
        The traced network.
    layers
        Its layers, as `Groups.layers` has them.

    Returns
    -------
    list of LayerContext
        One for each layer that has weights between its inputs and outputs.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = groups(toy.model, toy.batches[0][0][:1])
    >>> [(each.layer.name, each.batchnorm, each.sum_node) for each in layer_contexts(found.graph, found.layers)]
    [('stem', 'stem_bn', None), ('inner', 'inner_bn', None), ('outer', 'outer_bn', 'add'), ('fc', None, None)]
    """
    return [_context_of(graph, layer) for layer in layers if layer.taps]


def _context_of(graph: Graph, layer: LayerChannels) -> LayerContext:
    node = graph.nodes[layer.node]
    input_node = node.all_input_nodes[0].name
    batchnorm = sum_node = other_term = None
    user = _only_user(node)
    if user is not None and _is_norm(graph, user):
        followed = _no_activation_inside(graph.modules[str(user.target)])
        batchnorm, node, user = str(user.target), user, _only_user(user) if followed else None
    if user is not None and _is_addition(graph, user) and graph.shapes.get(user.name) == graph.shapes.get(node.name):
        others = [part for part in user.args[:2] if part is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node) and graph.shapes.get(others[0].name) == graph.shapes.get(node.name):
            sum_node, other_term = user.name, others[0].name
    return LayerContext(layer, input_node, batchnorm, sum_node, other_term)


def call_counts(graph: Graph, name: str) -> int:
    """Number of times that the forward pass calls a module.

    Parameters
    ----------
    graph
        The traced network.
    name
        Path of the module.

    Returns
    -------
    int
        0 for a module that is not called, or called inside a module that is followed as one step.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.graph import trace
    >>> relu = nn.ReLU()
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 2, 1), relu), torch.zeros(1, 3, 8, 8))
    >>> call_counts(graph, "0"), call_counts(graph, "1"), call_counts(graph, "4")
    (1, 2, 0)
    """
    return sum(node.op == "call_module" and node.target == name for node in graph.steps.nodes)


def _is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a step is a batch normalization that nothing else uses and whose statistics are kept."""
    if node.op != "call_module":
        return False
    scale_shift = of_step(node, graph.modules).scale_shift
    if scale_shift is None or scale_shift(graph.modules[str(node.target)]) is None:
        return False
    return call_counts(graph, str(node.target)) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_addition(graph: Graph, node: fx.Node) -> bool:
    return of_step(node, graph.modules).arithmetic == "sum" and "alpha" not in node.kwargs


def _no_activation_inside(norm: nn.Module) -> bool:
    """Whether a batch normalization contains no activation (timm's BatchNormAct2d does)."""
    entries = [of_module(child) for child in norm.children()]
    return all(entry is not None and entry.identity for entry in entries)
