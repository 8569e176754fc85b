"""DiagramLayout: columns by depth, rows by connection, for the channels and kernels of a circuit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.network.channel_graph import ChannelGraph, Merge

HEIGHT = 860
"""Pixels that a column may be high before it is folded into several."""

PICTURE_SIZES = ((60, 72), (160, 44), (400, 32))
"""Up to so many kernels, a picture's side in pixels …"""

SMALLEST = 22
"""… and with more."""

GAP, BELOW, BETWEEN, MARGIN = 8, 15, 72, 28
"""Pixels between pictures of a row, below each for its number, between columns, and around everything."""

LINE, LETTER = 13, 6.2
"""Pixels of a line of a column's title, and of a letter in it."""

BARYCENTER_SWEEPS = 4
"""Passes that move channels next to what they are connected to."""


@dataclass(eq=False)
class Node:
    """A channel, an image channel, or the sum of several channels."""

    name: str
    """layer:channel, image:channel, or the names of the channels that are summed"""
    kind: str
    """channel, image or sum"""
    group: str
    """layer"""
    depth: int = 0
    """column"""
    feature: bool = False
    """whether it is (part of) what the circuit computes"""
    x: float = 0.0
    """left edge, pixels"""
    y: float = 0.0
    """top edge, pixels"""
    side: float = 0.0
    """pixels"""


@dataclass(frozen=True, eq=False)
class Edge:
    """A kernel; without weights, a channel's part in a sum."""

    source: int
    """index of the channel that it reads"""
    reader: int
    """index of the channel that it leads to"""
    score: float = 0.0
    """over the largest of the circuit"""
    effect: float = 0.0
    """signed, over the largest of the circuit; 0 where no sign is measured"""
    kernel: np.ndarray | None = None
    """its weights (rows, columns)"""


@dataclass(frozen=True, eq=False)
class DiagramLayout:
    """A circuit on a page."""

    nodes: list[Node]
    """channels"""
    edges: list[Edge]
    """kernels, the weakest first, so that the strongest lie on top"""
    titles: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    """middle of each column, and the layers in it"""
    width: float = 0.0
    """pixels"""
    height: float = 0.0
    """pixels"""

    @property
    def kernels(self) -> int:
        """Number of kernels drawn."""
        return sum(edge.kernel is not None for edge in self.edges)


def lay_out(circuit: Circuit, scores: KernelScores) -> DiagramLayout:
    """Positions of a circuit's channels: a column for each depth of layers in the network, sums between the columns.

    Parameters
    ----------
    circuit
        Kernels that are drawn.
    scores
        Their scores, and signed effects if there are any.

    Returns
    -------
    DiagramLayout
        In pixels.

    Examples
    --------
    >>> from channelscope.circuits.criteria import score_kernels
    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.circuits.selection import top_k
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> scores = score_kernels(feature, toy.batches)
    >>> layout = lay_out(top_k(scores, 6), scores)
    >>> layout.kernels, sorted(node.name for node in layout.nodes)
    (6, ['conv:0', 'conv:2', 'conv:4', 'fc:1', 'image:0', 'image:2', 'image:4'])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (diagram); rows by barycenters (Sugiyama, Tagawa, Toda 1981).
    """
    network = _CircuitGraph(circuit, scores)
    network.read()
    nodes, edges = network.nodes, sorted(network.edges, key=lambda edge: edge.score)
    side = next((size for most, size in PICTURE_SIZES if circuit.count <= most), SMALLEST)
    columns = _order_rows(nodes, edges)
    titles, width, top = _place_columns(columns, side)
    _place_sums(nodes, edges, side, top)
    height = max(node.y + node.side for node in nodes) + BELOW + MARGIN
    return DiagramLayout(nodes, edges, titles, width, height)


class _CircuitGraph:
    """The circuit as nodes and edges; a sum with one remaining member is replaced by that member."""

    def __init__(self, circuit: Circuit, scores: KernelScores):
        self.circuit, self.scores, self.feature = circuit, scores, scores.feature
        self.kernel_graph: ChannelGraph = scores.feature.channel_graph
        self.names = self.kernel_graph.names()
        self.place: dict[int, int] = {}
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        joins = [part for part in self.kernel_graph.operations if isinstance(part, Merge)]
        self.members = {int(node): join.members[row] for join in joins for row, node in enumerate(join.outputs)}
        self.images = set(self.kernel_graph.image_nodes.tolist())
        self.live: set[int] = set()

    def read(self) -> None:
        largest = max((float(values.abs().max()) for values in self.scores.values.values()), default=0.0) or 1.0
        signed = self.scores.signed_values or {}
        strongest = max((float(values.abs().max()) for values in signed.values()), default=0.0) or 1.0
        for call in self.kernel_graph.calls:
            if call.layer not in self.circuit:
                continue
            weights = self.feature.graph.modules[call.layer].weight.detach().cpu()  # type: ignore[union-attr,operator]
            for row, column in self.circuit[call.layer].nonzero().tolist():
                source, reader = self._source(int(call.sources[row, column])), self._channel(int(call.outputs[row]), call.layer)
                score = float(self.scores[call.layer][row, column]) / largest
                effect = float(signed[call.layer][row, column]) / strongest if signed else 0.0
                kernel = weights[row, column].reshape(-1, weights.shape[-1] if weights.dim() == 4 else 1).numpy()
                self.edges.append(Edge(source, reader, score, effect, kernel))
        for seed in self.feature.feature_nodes.tolist():
            self.nodes[self._source(seed)].feature = True
        depth = self._depths()
        for node in self.nodes:
            node.depth = depth.get(node.group, 0)
        for edge in self.edges:
            if edge.kernel is None:
                self.nodes[edge.reader].depth = max(self.nodes[edge.reader].depth, self.nodes[edge.source].depth)

    def _depths(self) -> dict[str, int]:
        """Column of every drawn layer: its depth in the network, so that a channel that is constant in the circuit keeps its column."""
        drawn, found = {node.group for node in self.nodes}, {}
        level = np.zeros(self.kernel_graph.node_count, dtype=np.int64)
        for part in self.kernel_graph.operations:
            if isinstance(part, Merge):
                level[part.outputs] = level[part.members].max(1)
            elif part.layer in drawn:
                level[part.outputs] = found[part.layer] = int(level[part.sources].max()) + 1
            else:
                level[part.outputs] = level[part.sources].max(1)
        return found

    def _channel(self, node: int, group: str) -> int:
        if node not in self.place:
            self.live.add(node)
            self._add(node, Node(self.names[node], "channel", group))
        return self.place[node]

    def _source(self, node: int) -> int:
        """What a kernel reads: a channel, an image channel, or a sum of channels of the circuit."""
        members = sorted(self._makers(node))
        if len(members) == 1:
            node = members[0]
        if node in self.place:
            return self.place[node]
        name = self.names[node]
        if node in self.members:
            self._add(node, Node(" + ".join(self.names[each] for each in members) or f"{name} (constant here)", "sum", ""))
            self.edges += [Edge(self._source(each), self.place[node]) for each in members]
        elif node in self.images:
            self._add(node, Node(name, "image", "image"))
        else:
            self._add(node, Node(name, "channel", name.rpartition(":")[0]))
        return self.place[node]

    def _add(self, node: int, drawn: Node) -> None:
        self.place[node] = len(self.nodes)
        self.nodes.append(drawn)

    def _makers(self, node: int) -> set[int]:
        """The channels of the circuit, and image channels, that a node is a sum of."""
        found, stack, seen = set(), [node], set()
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            if each in self.members:
                stack += self.members[each].tolist()
            elif each in self.live or each in self.images:
                found.add(each)
        return found


def _order_rows(nodes: list[Node], edges: list[Edge]) -> list[list[Node]]:
    """Columns of channels, each sorted by layer and then by the mean row of connected channels."""
    drawn = [node for node in nodes if node.kind != "sum"]
    columns = [[node for node in drawn if node.depth == depth] for depth in range(max(node.depth for node in drawn) + 1)]
    beside: dict[int, list[int]] = {place: [] for place in range(len(nodes))}
    for edge in edges:
        beside[edge.source].append(edge.reader)
        beside[edge.reader].append(edge.source)
    number = {id(node): place for place, node in enumerate(nodes)}
    row = dict.fromkeys(range(len(nodes)), 0.5)
    for sweep in range(BARYCENTER_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            mean: Mapping[int, float] = {
                id(node): float(np.mean([row[other] for other in beside[number[id(node)]]] or [0.5])) for node in column
            }
            column.sort(key=lambda node: (node.group, mean[id(node)], number[id(node)]))
            row |= {number[id(node)]: (place + 0.5) / len(column) for place, node in enumerate(column)}
        row |= {
            place: float(np.mean([row[each] for each in beside[place]] or [0.5])) for place, node in enumerate(nodes) if node.kind == "sum"
        }
    return columns


def _place_columns(columns: list[list[Node]], side: int) -> tuple[list[tuple[float, tuple[str, ...]]], float, float]:
    """Coordinates of the channels; a column that is too high is folded. Returns the titles, the width, and where pictures begin."""
    columns = [column for column in columns if column]
    names = [tuple(dict.fromkeys(node.group for node in column)) for column in columns]
    head = MARGIN + LINE * max(len(lines) for lines in names)
    fit = max(1, (HEIGHT - head - 2 * MARGIN) // (side + BELOW))
    longest = min(fit, max(len(column) for column in columns))
    titles, right, written = [], float(2 * MARGIN - BETWEEN), 0.0
    for column, lines in zip(columns, names, strict=True):
        folds = math.ceil(len(column) / fit)
        high = math.ceil(len(column) / folds)
        wide, text = folds * (side + GAP) - GAP, LETTER * max(map(len, lines))
        middle = max(right + BETWEEN + wide / 2, written + LINE + text / 2)
        top = head + (longest - high) * (side + BELOW) / 2
        for place, node in enumerate(column):
            node.side = side
            node.x, node.y = middle - wide / 2 + (place // high) * (side + GAP), top + (place % high) * (side + BELOW)
        titles.append((middle, lines))
        right, written = middle + wide / 2, middle + text / 2
    return titles, max(right, written) + MARGIN, head


def _place_sums(nodes: list[Node], edges: list[Edge], side: int, top: float) -> None:
    """Sums lie to the right of their last member's column, those without one before their first reader's; as near as there is
    room to the mean height of what they are connected to."""
    size = side / 3
    columns: dict[float, list[tuple[float, Node]]] = {}
    for place, node in enumerate(nodes):
        if node.kind == "sum":
            members = [nodes[edge.source] for edge in edges if edge.reader == place]
            readers = [nodes[edge.reader] for edge in edges if edge.source == place]
            last = node.depth if members else min(other.depth for other in readers) - 1
            rights = [other.x + side for other in nodes if other.kind != "sum" and other.depth <= last]
            node.side = size
            node.x = (max(rights) if rights else min(other.x for other in readers) - BETWEEN) + BETWEEN / 4
            wanted = float(np.mean([other.y + other.side / 2 for other in members or readers])) - size / 2
            columns.setdefault(node.x, []).append((wanted, node))
    for column in columns.values():
        column.sort(key=lambda pair: pair[0])
        placed: list[float] = []
        for wanted, _ in column:
            placed.append(max(wanted, placed[-1] + size + 2) if placed else wanted)
        shift = float(np.mean([wanted - y for (wanted, _), y in zip(column, placed, strict=True)]))
        shift = max(shift, top - placed[0])
        for (_, node), y in zip(column, placed, strict=True):
            node.y = y + shift
