"""Sites of a traced network: where channels are, each with its pre-activation and its activation node."""

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from channelscope.display import Facts, Shown
from channelscope.errors import SiteError, no_such
from channelscope.network.graph import Graph, trace
from channelscope.network.operations import of_function, spelling
from channelscope.network.operations.elementwise import ACTIVATIONS, IDLE
from channelscope.network.operations.norms import BATCH_NORMS
from channelscope.site import Kind, Site

PLAIN_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}

NO_OP_IN_EVAL = IDLE
"""Modules that do nothing in evaluation mode."""

CHANNELWISE = (*ACTIVATIONS, *IDLE, nn.PReLU)
"""Modules that treat each element, or each channel, on its own."""

SKIPPED_MODULES = (nn.Flatten, nn.Softmax, nn.LogSoftmax, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)

SKIPPED_METHODS = {"flatten", "view", "reshape", "squeeze", "softmax", "log_softmax", "mean"}

SKIPPED_FUNCTIONS = {
    torch.flatten,
    torch.squeeze,
    torch.mean,
    F.softmax,
    F.log_softmax,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    operator.getitem,
}
"""What may lie between a layer and the network's output when the layer's channels are that output."""


@dataclass(frozen=True, repr=False)
class Sites(Shown):
    """The sites of a network in execution order, and what could not be one."""

    found: tuple[Site, ...]
    """sites in execution order"""
    skipped: dict[str, str]
    """module path → why its channels are not a site"""
    graph: Graph
    """the traced network they were found in"""

    def facts(self) -> Facts:
        """Kind and size of every site, and how many layers were skipped."""
        sizes = ((site.name, f"{site.kind}, {site.channels} channels, {' × '.join(map(str, site.shape))}") for site in self.found)
        return f"Sites({len(self)} sites, {len(self.skipped)} layers skipped)", sizes

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


def sites_of(graph: Graph) -> Sites:
    """The sites of a network already traced."""
    calls = Counter(node.target for node in graph.steps.nodes if node.op == "call_module")
    found: list[Site] = []
    skipped: dict[str, str] = {}
    for node in graph.steps.nodes:
        if node.op != "call_module" or str(node.target) in skipped:
            continue
        module = graph.modules[str(node.target)]
        kind = _kind(module)
        if kind is None:
            continue
        reason = _why_skipped(graph, node, module, kind, calls[node.target])
        if reason:
            skipped[str(node.target)] = reason
        else:
            found.append(_site(graph, node, module, kind, len(found)))
    used = {str(target) for target in calls}
    for name, module in graph.modules.items():
        if _kind(module) and name not in used:
            within = [leaf for leaf in used if name.startswith(f"{leaf}.")]
            skipped[name] = f"inside {within[0]}, which is followed as one step" if within else "not called as a module in the forward pass"
    if not found:
        raise SiteError("the network has no convolution or linear layer whose channels can be told apart; " + _reasons(skipped))
    return Sites(tuple(found), skipped, graph)


def _reasons(skipped: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5]) or "it contains no such layer"


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == 1:
            return "conv"
        return "depthwise" if module.groups == module.in_channels else "grouped"
    return None


def _why_skipped(graph: Graph, node: fx.Node, module: nn.Module, kind: Kind, calls: int) -> str:
    """Why a layer's channels are not a site; empty when they are."""
    if calls > 1:
        return f"called {calls} times in one pass: its channels are not one place"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed convolution"
    if _reaches_output(graph, node, len(graph.shapes[node.name]) - 2 if kind == "linear" else 0):
        return "its outputs are the network's own outputs, not channels inside it"
    return ""


def _reaches_output(graph: Graph, node: fx.Node, axis: int) -> bool:
    """Whether the node's value leaves the network with nothing but activations, pooling and reshaping after it."""
    return any(
        user.op == "output" or ((_passing(graph, user) or _channelwise(graph, user, node, axis)) and _reaches_output(graph, user, axis))
        for user in node.users
    )


def _passing(graph: Graph, user: fx.Node) -> bool:
    """Whether a step only pools or reshapes, so that channels stay the same outputs."""
    if user.op == "call_module":
        return isinstance(graph.modules[str(user.target)], SKIPPED_MODULES)
    return user.target in (SKIPPED_METHODS if user.op == "call_method" else SKIPPED_FUNCTIONS)


def _site(graph: Graph, node: fx.Node, module: nn.Module, kind: Kind, depth: int) -> Site:
    shape = graph.shapes[node.name][1:]
    linear = isinstance(module, nn.Linear)
    axis = len(shape) - 1 if linear else 0
    cut, norm, affine = _activation_node(graph, node, axis, shape)
    return Site(
        name=str(node.target),
        kind=kind,
        channels=shape[axis],
        shape=shape,
        channel_axis=axis,
        preactivation=node.name,
        activation=cut.name,
        depth=depth,
        in_channels=int(module.in_features if linear else module.in_channels),  # type: ignore[arg-type]
        kernel_size=() if linear else tuple(module.kernel_size),  # type: ignore[arg-type]
        groups=1 if linear else int(module.groups),  # type: ignore[arg-type]
        batchnorm=norm,
        activation_is_affine=affine,
    )


def _activation_node(graph: Graph, node: fx.Node, axis: int, shape: tuple[int, ...]) -> tuple[fx.Node, str | None, bool]:
    """Follow the layer's only consumer while it treats channels one by one."""
    norm, affine = None, True
    while len(node.users) == 1:
        user = next(iter(node.users))
        if not _channelwise(graph, user, node, axis) or graph.shapes.get(user.name, ())[1:] != shape:
            break
        module = graph.modules[str(user.target)] if user.op == "call_module" else None
        if isinstance(module, BATCH_NORMS) and norm is None:
            norm = str(user.target)
            affine &= type(module) in PLAIN_NORMS and module.running_var is not None
        else:
            affine &= isinstance(module, NO_OP_IN_EVAL)
        node = user
    return node, norm, affine


def _channelwise(graph: Graph, user: fx.Node, node: fx.Node, axis: int) -> bool:
    if user.op == "call_module":
        module = graph.modules[str(user.target)]
        return isinstance(module, CHANNELWISE) or (isinstance(module, BATCH_NORMS) and axis == 0)
    if user.op == "call_method":
        return _elementwise(user) and user.args[0] is node
    if user.op == "call_function":
        if user.target in {operator.mul, operator.imul, torch.mul}:
            other = user.args[1] if user.args[0] is node else user.args[0]
            return isinstance(other, int | float) or (isinstance(other, fx.Node) and other.op == "get_attr")
        return _elementwise(user)
    return False


def _elementwise(user: fx.Node) -> bool:
    """Whether a function or method is an activation or does nothing, and is given no other tensor."""
    entry = of_function(spelling(user))
    return entry is not None and entry.name in ("elementwise", "idle") and len(user.all_input_nodes) == 1
