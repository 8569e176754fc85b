"""Sites of a traced network: where channels are, each with its pre-activation and its activation node, and the layers that read them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from channelscope.display import Facts, Shown
from channelscope.errors import SiteError, no_such
from channelscope.network.channel_graph import channels_behind
from channelscope.network.channel_tracing import ChannelTracer
from channelscope.network.graph import Graph, trace
from channelscope.network.operations import Call, WeightedLayer, call_of, inherits_forward, layer_of
from channelscope.site import Kind, Site
from channelscope.types import Bool, Tensor


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
    """The site called `name`; raises SiteError with near matches when there is none.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3))
    >>> site_named(sites(net, torch.zeros(1, 1, 1, 1)).found, "0").channels
    2
    """
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

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    >>> [(site.name, site.kind, site.channels) for site in sites(net, torch.zeros(1, 1, 1, 1))]
    [('0', 'conv', 2)]
    """
    return sites_of(trace(model, example))


def sites_of(graph: Graph, *, none: bool = False) -> Sites:
    """The sites of a network already traced; a network without any is refused, unless `none` is allowed.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3)), torch.zeros(1, 1, 1, 1))
    >>> list(sites_of(graph).skipped)
    ['2']
    """
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
        reason = "" if node in graph.of_images else "its values are the same for every image"
        if not reason and graph.shapes[node.name][0] % _images(graph):
            reason = "the rows of its value do not belong to one image each"
        reason = reason or _why_skipped(node, layer, calls[node.target], outputs)
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
    return (
        (bool(call.entry.keeps) and call.argument("input") is node) or _scales(call, node) or _added_constant(graph, call, node) is not None
    )


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
        windows=graph.shapes[node.name][0] // _images(graph),
    )


def _images(graph: Graph) -> int:
    """Number of images of the example."""
    return graph.shapes[graph.inputs[0]][0]


def _activation_node(graph: Graph, node: fx.Node, axis: int, shape: tuple[int, ...]) -> tuple[fx.Node, str | None, bool]:
    """Follow the layer's only consumer while it treats channels one by one."""
    norm, affine = None, True
    while len(node.users) == 1:
        user = next(iter(node.users))
        call = call_of(user, graph.modules)
        if graph.shapes.get(user.name, ())[1:] != shape or not (_channelwise(call, node, axis) or _shifts(graph, call, node, axis)):
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


def _shifts(graph: Graph, call: Call, node: fx.Node, axis: int) -> bool:
    """Whether a step adds to each channel of a value a number that is the same for every image and position, such as a bias."""
    added = _added_constant(graph, call, node)
    if added is None:
        return False
    sizes, dims = graph.shapes[added.name], len(graph.shapes[node.name])
    return all(size == 1 for place, size in enumerate(sizes, dims - len(sizes)) if place != axis + 1)


def _added_constant(graph: Graph, call: Call, node: fx.Node) -> fx.Node | None:
    """What a step adds to a value, where that is a tensor that is the same for every image."""
    others = [part for part in call.node.args[:2] if part is not node]
    added = others[0] if call.entry.arithmetic == "sum" and len(others) == 1 else None
    return added if isinstance(added, fx.Node) and added not in graph.of_images and added.name in graph.shapes else None


def _constant(part: Any) -> bool:
    return isinstance(part, fx.Node) and part.op == "get_attr"


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a site."""

    layer: str
    """module path of the convolution or linear layer"""
    through_sum: bool
    """whether the channels meet others in a sum or product on the way, as in a residual connection"""


def consumers(graph: Graph, site: Site) -> tuple[Consumer, ...]:
    """The layers that see the site's cut point through activations, pooling, sums and reshaping, in execution order.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = sites(toy.model, toy.batches[0][0][:1])
    >>> [(each.layer, each.through_sum) for each in consumers(found.graph, found["stem"])]
    [('inner', False), ('fc', True)]
    """
    met: dict[str, bool] = {}
    for node, summed in _reached_layers(graph, site).items():
        met[str(node.target)] = met.get(str(node.target), False) or summed
    return tuple(Consumer(layer, summed) for layer, summed in met.items())


class InputChannels:
    """Which inputs of which layers show which channels of the sites of a network.

    Parameters
    ----------
    found
        The sites of a network.
    structural
        Whether normalization passes every channel on as it is. Otherwise every input behind a norm that looks at several channels
        shows all of them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from channelscope.network.sites import sites
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(4, 5)).eval()
    >>> found = sites(net, torch.zeros(1, 3, 1, 1))
    >>> [InputChannels(found, structural).marks(found["0"])[0][1].int().tolist() for structural in (True, False)]
    [[[1, 0], [0, 1]], [[1, 1], [1, 1]]]
    """

    def __init__(self, found: Sites, structural: bool = False):
        self.found = found
        nodes = [node for node in found.graph.steps.nodes if node.op != "output"]
        self.traced = ChannelTracer(found.graph, nodes, own_layers=True, structural=structural)

    def marks(self, site: Site) -> list[tuple[str, Bool[Tensor, "channels inputs"]]]:
        """Calls of the layers that see the site, in execution order.

        Parameters
        ----------
        site
            A site of the network.

        Returns
        -------
        list
            For each call the layer's module path, and which of its inputs show which channels.
        """
        graph, traced = self.found.graph, self.traced
        layers = list(_reached_layers(graph, site))
        if not layers:
            return []
        channels = traced.one_each(graph.nodes[site.activation], traced.labels[site.activation].movedim(site.channel_axis + 1, 0))
        reads = [traced.reads[layer.name] for layer in layers]
        seen = channels_behind(traced.parts, channels, np.concatenate(reads)).split([len(inputs) for inputs in reads], dim=1)
        return [(str(layer.target), marks) for layer, marks in zip(layers, seen, strict=True)]

    def by_layer(self, site: Site) -> dict[str, Bool[Tensor, "channels inputs"]]:
        """Which inputs of each consumer show which channels of the site, in any of its calls: consumer → marks.

        Parameters
        ----------
        site
            A site of the network.
        """
        found: dict[str, Tensor] = {}
        for layer, seen in self.marks(site):
            found[layer] = found.get(layer, False) | seen
        return found


def by_image(site: Site, maps: Tensor) -> tuple[Tensor, int]:
    """A site's value with images first, and the axis of its channels without them; windows of an image are positions of it.

    Parameters
    ----------
    site
        The site.
    maps
        Its value, (images · windows, …).

    Examples
    --------
    >>> import torch
    >>> maps, axis = by_image(Site("qkv", "linear", 6, (9, 6), 1, "qkv", "qkv", 0, 6, (), windows=4), torch.zeros(8, 9, 6))
    >>> tuple(maps.shape), axis
    ((2, 4, 9, 6), 2)
    """
    return (maps, site.channel_axis) if site.windows == 1 else (maps.unflatten(0, (-1, site.windows)), site.channel_axis + 1)


def _reached_layers(graph: Graph, site: Site) -> dict[fx.Node, bool]:
    """Calls of layers that see the site → whether its channels have met others before."""
    summed: dict[fx.Node, bool] = {graph.nodes[site.activation]: False}
    found: dict[fx.Node, bool] = {}
    for node in graph.steps.nodes:
        before = [parent for parent in node.all_input_nodes if parent in summed and node in graph.of_images]
        if before and node not in summed:
            met = any(summed[parent] for parent in before)
            if _weighted(graph, node):
                found[node] = met
            else:
                summed[node] = met or _combines(graph, node)
    return found


def _weighted(graph: Graph, node: fx.Node) -> bool:
    return node.op == "call_module" and layer_of(graph.modules[str(node.target)]) is not None


def _combines(graph: Graph, node: fx.Node) -> bool:
    """Whether a step brings two activations together element by element, not merely one beside the other."""
    if node.op != "call_function" or call_of(node, graph.modules).entry.joins:
        return False
    return len([parent for parent in node.all_input_nodes if parent.name in graph.shapes and parent in graph.of_images]) > 1
