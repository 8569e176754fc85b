"""Sites of a traced network: where channels are, each with its pre-activation and its activation node."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from channelscope.errors import SiteError, no_such
from channelscope.network.graph import Graph, trace
from channelscope.network.operations import Call, WeightedLayer, call_of, inherits_forward, layer_of
from channelscope.site import Kind, Site


@dataclass(frozen=True)
class Sites:
    """The sites of a network in execution order, and what could not be one."""

    found: tuple[Site, ...]
    """sites in execution order"""
    skipped: dict[str, str]
    """module path → why its channels are not a site"""
    graph: Graph
    """the traced network they were found in"""

    def __iter__(self):
        """Iterate over the sites."""
        return iter(self.found)

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.found)

    def __getitem__(self, name: str) -> Site:
        """The site of that name; SiteError lists near matches."""
        return site_named(self.found, name)


def site_named(found: tuple[Site, ...], name: str) -> Site:
    """The site called `name`; raises SiteError with near matches when there is none."""
    table = {site.name: site for site in found}
    if name in table:
        return table[name]
    raise SiteError(no_such("site", name, table))


def sites(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Sites:
    """All places of `model` where channels live, from one traced pass over `example`.

    Raises
    ------
    SiteError
        If there is none.
    TracingError
        If the pass cannot be followed.
    """
    return sites_of(trace(model, example))


def sites_of(graph: Graph, *, none: bool = False) -> Sites:
    """The sites of a network already traced; a network without any is refused, unless `none` is allowed."""
    calls = Counter(node.target for node in graph.steps.nodes if node.op == "call_module")
    found: list[Site] = []
    skipped: dict[str, str] = {}
    outputs = _output_steps(graph)
    for node in graph.steps.nodes:
        if node.op != "call_module" or str(node.target) in skipped:
            continue
        layer = layer_of(graph.modules[str(node.target)])
        if layer is None:
            continue
        reason = _why_skipped(node, layer, calls[node.target], outputs)
        if reason:
            skipped[str(node.target)] = reason
        else:
            found.append(_site(graph, node, layer, len(found)))
    used = {str(target) for target in calls}
    for name, module in graph.modules.items():
        if name not in used and layer_of(module) is not None:
            within = [leaf for leaf in used if name.startswith(f"{leaf}.")]
            skipped[name] = f"inside {within[0]}, which is followed as one step" if within else "not called as a module in the forward pass"
    if not found and not none:
        raise SiteError("the network has no convolution or linear layer whose channels can be told apart; " + _reasons(skipped))
    return Sites(tuple(found), skipped, graph)


def _reasons(skipped: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5]) or "it contains no such layer"


def _kind(layer: WeightedLayer) -> Kind:
    if layer.tokens:
        return "linear"
    if layer.groups == 1:
        return "conv"
    return "depthwise" if layer.depthwise else "grouped"


def _why_skipped(node: fx.Node, layer: WeightedLayer, calls: int, outputs: set[fx.Node]) -> str:
    """Why a layer's channels are not a site; empty when they are."""
    if calls > 1:
        return f"called {calls} times in one pass: its channels are not one place"
    if layer.transposed:
        return "transposed convolution"
    if node in outputs:
        return "its outputs are the network's own outputs, not channels inside it"
    return ""


def _output_steps(graph: Graph) -> set[fx.Node]:
    """Steps whose channels leave the network as they are, with nothing behind them that makes new ones."""
    found: set[fx.Node] = set()
    for node in reversed(graph.steps.nodes):
        if any(user.op == "output" or (user in found and _passes(graph, user, node)) for user in node.users):
            found.add(node)
    return found


def _passes(graph: Graph, user: fx.Node, node: fx.Node) -> bool:
    """Whether the channels of a value are those of a step that takes it as its first argument."""
    call = call_of(user, graph.modules)
    if call.entry.joins:
        return True
    return (bool(call.entry.keeps) and call.argument("input") is node) or _scales(call, node)


def _site(graph: Graph, node: fx.Node, layer: WeightedLayer, depth: int) -> Site:
    shape = graph.shapes[node.name][1:]
    axis = layer.channel_axis(len(shape) + 1) - 1
    cut, norm, affine = _activation_node(graph, node, axis, shape)
    return Site(
        name=str(node.target),
        kind=_kind(layer),
        channels=shape[axis],
        shape=shape,
        channel_axis=axis,
        preactivation=node.name,
        activation=cut.name,
        depth=depth,
        in_channels=layer.in_channels,
        kernel_size=layer.kernel,
        groups=layer.groups,
        batchnorm=norm,
        activation_is_affine=affine,
    )


def _activation_node(graph: Graph, node: fx.Node, axis: int, shape: tuple[int, ...]) -> tuple[fx.Node, str | None, bool]:
    """Follow the layer's only consumer while it treats channels one by one."""
    norm, affine = None, True
    while len(node.users) == 1:
        user = next(iter(node.users))
        call = call_of(user, graph.modules)
        if not _channelwise(call, node, axis) or graph.shapes.get(user.name, ())[1:] != shape:
            break
        scale_shift, module = call.entry.scale_shift, call.module
        if scale_shift is not None and module is not None and norm is None:
            norm = str(user.target)
            affine &= inherits_forward(module) and scale_shift(module) is not None
        else:
            affine &= call.entry.identity and module is not None
        node = user
    return node, norm, affine


def _channelwise(call: Call, node: fx.Node, axis: int) -> bool:
    """Whether a step treats each channel of a value on its own, and has no other tensor."""
    if _scales(call, node):
        return True
    own = call.entry.keeps == "apart" and (call.entry.pointwise or (call.entry.local and not call.entry.joins and axis == 0))
    return own and call.node.all_input_nodes == [node]


def _scales(call: Call, node: fx.Node) -> bool:
    """Whether a step multiplies a value with a number or with a constant of the network."""
    others = [part for part in call.node.args[:2] if part is not node]
    return call.entry.arithmetic == "product" and len(others) == 1 and (isinstance(others[0], int | float) or _constant(others[0]))


def _constant(part: Any) -> bool:
    return isinstance(part, fx.Node) and part.op == "get_attr"
