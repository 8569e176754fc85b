"""LayerContext: where a weighted layer's output goes, as far as it stays linear."""

from dataclasses import dataclass

from torch import fx, nn

from channelscope.network.graph import Graph
from channelscope.network.removal.channels import LayerChannels
from channelscope.network.sites import BATCH_NORMS

ADDITIONS = {"add", "iadd", "add_"}


@dataclass(frozen=True)
class LayerContext:
    """One layer, the normalization that belongs to it, and the sum it is a term of."""

    layer: LayerChannels
    """the layer, with the channels it reads and writes"""
    source: str
    """step whose value the layer reads"""
    norm: str | None
    """module path of the batch normalization that directly follows"""
    total: str | None
    """step of a sum that the (normalized) output is a term of"""
    rest: str | None
    """step of the sum's other term"""


def layer_contexts(graph: Graph, layers: tuple[LayerChannels, ...]) -> list[LayerContext]:
    """All weighted layers in execution order."""
    return [_context_of(graph, layer) for layer in layers if layer.taps]


def _context_of(graph: Graph, layer: LayerChannels) -> LayerContext:
    node = graph.nodes[layer.node]
    source = node.all_input_nodes[0].name
    norm = total = rest = None
    user = _only_user(node)
    if user is not None and _is_norm(graph, user):
        norm, node, user = str(user.target), user, _only_user(user) if _no_activation_inside(graph.modules[str(user.target)]) else None
    if user is not None and _is_addition(user) and graph.shapes.get(user.name) == graph.shapes.get(node.name):
        others = [part for part in user.args[:2] if part is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node) and graph.shapes.get(others[0].name) == graph.shapes.get(node.name):
            total, rest = user.name, others[0].name
    return LayerContext(layer, source, norm, total, rest)


def call_counts(graph: Graph, name: str) -> int:
    """How often the forward pass calls a module."""
    return sum(node.op == "call_module" and node.target == name for node in graph.steps.nodes)


def _is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a step is a batch normalization that nothing else uses and whose statistics are kept."""
    if node.op != "call_module":
        return False
    module = graph.modules[str(node.target)]
    return isinstance(module, BATCH_NORMS) and module.running_var is not None and call_counts(graph, str(node.target)) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_addition(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in ADDITIONS and "alpha" not in node.kwargs
    return node.op == "call_function" and node.target.__name__ in ADDITIONS and "alpha" not in node.kwargs  # type: ignore[union-attr]


def _no_activation_inside(norm: nn.Module) -> bool:
    """Whether a batch normalization carries no activation along (timm's do)."""
    return all(isinstance(child, nn.Identity) for child in norm.children())
