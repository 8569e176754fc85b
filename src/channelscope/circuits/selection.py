"""From kernel scores to a circuit of a given number of kernels."""

import heapq
import math
from numbers import Integral

import numpy as np
import torch

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.feature import LocatedFeature
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.errors import BudgetError
from channelscope.network.channel_graph import KernelEdges, Merge
from channelscope.types import Float, Tensor

ROUNDS = 10


def kernel_count(feature: LocatedFeature, keep: float | int) -> int:
    """Number of kernels meant by `keep`: a number of kernels if it is a whole number, else a fraction of the relevant ones (at least 1).

    Parameters
    ----------
    feature
        The feature, which has `relevant_count` kernels.
    keep
        1 to `relevant_count` kernels, or a fraction above 0 and up to 1.

    Returns
    -------
    int
        Kernels.

    Raises
    ------
    BudgetError
        For any other `keep`.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> kernel_count(feature, 6), kernel_count(feature, 0.5), kernel_count(feature, 1.0)
    (6, 15, 30)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: sizes are fractions of relevant kernels kept.
    """
    if isinstance(keep, Integral) and not isinstance(keep, bool) and 1 <= keep <= feature.relevant_count:
        return int(keep)
    if isinstance(keep, float) and 0 < keep <= 1:
        return max(1, round(keep * feature.relevant_count))
    raise BudgetError(f"keep: expected 1 to {feature.relevant_count} kernels or a fraction above 0 and up to 1.0, received {keep!r}")


def top_k(scores: KernelScores, keep: float | int) -> Circuit:
    """The circuit of exactly so many kernels with the largest scores; among equal scores the first in execution order.

    Parameters
    ----------
    scores
        Scores by any criterion.
    keep
        Number of kernels, or a fraction of the relevant ones.

    Returns
    -------
    Circuit
        It may contain dead ends; see `remove_dead_ends`.

    Raises
    ------
    BudgetError
        If fewer kernels were scored.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature, score_kernels
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> circuit = top_k(score_kernels(feature, toy.batches), 6)
    >>> circuit["conv"].nonzero().tolist(), circuit["fc"].nonzero().tolist()
    ([[0, 0], [2, 2], [4, 4]], [[1, 0], [1, 2], [1, 4]])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (selection).
    """
    return _from_ranking(scores.feature, score_order(scores.ranked())[: _room(scores, keep)])


def _room(scores: KernelScores, keep: float | int) -> int:
    """Number of kernels meant by `keep`; refused where a circuit that they were scored inside has fewer."""
    wanted = kernel_count(scores.feature, keep)
    if wanted > scores.kernels:
        raise BudgetError(f"keep: {wanted} kernels, and the circuit that they were scored inside has {scores.kernels}: keep fewer")
    return wanted


def top_share(scores: KernelScores, share: float) -> Circuit:
    """The circuit of the fewest kernels whose scores reach a share of the total.

    Parameters
    ----------
    scores
        Scores by any criterion.
    share
        Fraction of the sum of all scores, above 0 and up to 1.

    Returns
    -------
    Circuit
        At least one kernel.

    Raises
    ------
    BudgetError
        If the share is not above 0 and up to 1, or all scores are zero.

    Examples
    --------
    The five scores are 0, 0, 3, 0, 0.

    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.circuits.criteria import baseline_scores
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> top_share(baseline_scores(feature, "magnitude"), 0.9)["conv"].nonzero().tolist()
    [[2, 2]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (selection).
    """
    flat = scores.flatten()
    if not 0 < share <= 1 or not bool(flat.sum() > 0):
        raise BudgetError(f"share: expected above 0 and up to 1 of a positive total, received {share} of {float(flat.sum()):.4g}")
    ranked = score_order(flat)
    sums = flat[ranked].cumsum(0)
    enough = int((sums < share * sums[-1]).sum()) + 1
    return _from_ranking(scores.feature, ranked[:enough])


def score_order(values: Float[Tensor, "kernels"]) -> Tensor:
    """Indices from the largest value to the smallest; equal values stay in order.

    Parameters
    ----------
    values
        One number per kernel.

    Returns
    -------
    Tensor
        Int64 (kernels,).

    Examples
    --------
    >>> score_order(torch.tensor([1.0, 2.0, 2.0, 0.0])).tolist()
    [1, 2, 0, 3]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (stable tie-break).
    """
    return values.sort(descending=True, stable=True).indices


def geometric_schedule(kernels: int, keep: int, rounds: int = ROUNDS) -> list[int]:
    """Kernels kept after each round: k_t = ⌈exp((t/T) ln k + (1 − t/T) ln N)⌉, and k itself at the end.

    Parameters
    ----------
    kernels
        Kernels N at the start.
    keep
        Kernels k at the end.
    rounds
        Number T of rounds.

    Returns
    -------
    list[int]
        `rounds` numbers, never increasing.

    Examples
    --------
    >>> geometric_schedule(16, 1, rounds=4)
    [8, 4, 2, 1]

    References
    ----------
    De Jorge et al. 2021 (FORCE), rounded up so that the last is k; checked by tests/pencil_circuits.py::schedule.
    """
    steps = [t / rounds for t in range(1, rounds)]
    sizes = [math.exp(step * math.log(keep) + (1 - step) * math.log(kernels)) for step in steps]
    return [math.ceil(round(size, 9)) for size in sizes] + [keep]  # rounded first: exp(ln 3) is a little more than 3


def _from_ranking(feature: LocatedFeature, indices: Tensor) -> Circuit:
    """The circuit of the kernels at some indices of the flat order of relevant kernels."""
    flat = torch.zeros(feature.relevant_count, dtype=torch.bool)
    flat[indices] = True
    marks, start = {}, 0
    for layer, relevant in feature.relevant.items():
        size = int(relevant.sum())
        marks[layer] = torch.zeros_like(relevant).masked_scatter_(relevant, flat[start : start + size])
        start += size
    return Circuit.of_feature(feature, marks)


def connected_top_k(scores: KernelScores, keep: float | int) -> Circuit:
    """The circuit of kernels with large scores that all lie on paths from the images to the feature.

    Greedy best-first selection from the feature backwards: the kernel with the largest score that feeds a channel of the circuit comes
    next. If its source channel is new, the best path from the images to that channel is added with it, where the budget allows.
    So no layer is left out and there are no dead ends.

    Parameters
    ----------
    scores
        Scores by any criterion.
    keep
        Number of kernels, or a fraction of the relevant ones.

    Returns
    -------
    Circuit
        `keep` kernels, or a few less where no path fits into the rest.

    Raises
    ------
    BudgetError
        If no path from the images has so few kernels, with the smallest number that works.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.circuits.criteria import baseline_scores
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> circuit = connected_top_k(baseline_scores(feature, "magnitude"), 4)
    >>> circuit["conv"].nonzero().tolist(), circuit["fc"].nonzero().tolist()
    ([[0, 0], [2, 2]], [[1, 0], [1, 2]])

    References
    ----------
    This library.
    """
    feature, budget = scores.feature, _room(scores, keep)
    growth = _PathGrowth(scores)
    smallest = growth.hops[feature.feature_nodes].min()
    if not np.isfinite(smallest):
        raise BudgetError(f"feature {feature.feature}: no path from the images lies inside the circuit that kernels were scored inside")
    if budget < smallest:
        raise BudgetError(
            f"feature {feature.feature}: no path from the images has {budget} kernels; the smallest circuit has {int(smallest)}"
        )
    growth.run(budget)
    return Circuit.of_feature(feature, {layer: torch.from_numpy(taken) for layer, taken in growth.taken.items()})


class _PathGrowth:
    """A circuit that grows by one path at a time; `open` nodes lead to the feature, `fed` nodes are reached from the images."""

    def __init__(self, scores: KernelScores):
        self.feature = scores.feature
        self.values = {layer: np.where(scores.eligible[layer], values, -np.inf) for layer, values in scores.values.items()}
        kernel_graph = self.feature.channel_graph
        self.maker: dict[int, tuple[KernelEdges, int]] = {}
        self.members: dict[int, np.ndarray] = {}
        for part in kernel_graph.operations:
            for row, node in enumerate(part.outputs.tolist()):
                if isinstance(part, KernelEdges):
                    self.maker[node] = (part, row)
                else:
                    self.members[node] = part.members[row]
        self.joins = [part for part in kernel_graph.operations if isinstance(part, Merge)]
        self.hops = kernel_graph.distances() if scores.inside is None else kernel_graph.distances(scores.eligible)
        self.fed = np.zeros(kernel_graph.node_count, dtype=bool)
        self.fed[kernel_graph.image_nodes] = True
        self.summed = np.zeros(kernel_graph.node_count, dtype=bool)
        for join in self.joins:
            self.summed[join.members] = True
        self._spread()
        self.open = np.zeros(kernel_graph.node_count, dtype=bool)
        self.taken = {layer: np.zeros(relevant.shape, dtype=bool) for layer, relevant in self.feature.relevant.items()}
        self.queue: list[tuple[float, int, int]] = []
        self.ranks: dict[int, np.ndarray] = {}
        self.size = 0

    def run(self, budget: int) -> None:
        first = min(self.feature.feature_nodes.tolist(), key=lambda node: (self.hops[node], node))
        self._take(self._way(first, budget))
        for node in self.feature.feature_nodes.tolist():
            self._reach(node)
        late: list[tuple[KernelEdges, int, int]] = []
        while self.queue and self.size < budget:
            _, node, place = heapq.heappop(self.queue)
            call, row = self.maker[node]
            self._push(node, place + 1)
            kernel = (call, row, int(self.ranks[node][place]))
            if not self._fits(kernel, budget):
                late.append(kernel)
        while late and self.size < budget:  # channels opened since then may have made the way to these shorter
            again = [kernel for kernel in late if not self._fits(kernel, budget)]
            if len(again) == len(late):
                break
            late = again

    def _fits(self, kernel: tuple[KernelEdges, int, int], budget: int) -> bool:
        """Take a kernel and the path that feeds it if the budget allows; False if it does not."""
        call, row, column = kernel
        source = int(call.sources[row, column])
        if self.taken[call.layer][row, column] or not np.isfinite(self.hops[source]):
            return True
        way = self._way(source, budget - self.size - 1)
        if (way or self.fed[source]) and self.size < budget:
            self._take([kernel, *way])
            return True
        return False

    def _reach(self, node: int) -> None:
        """Mark the node as an ancestor of the feature, and queue the kernels that produce it."""
        stack = [node]
        while stack:
            each = stack.pop()
            if self.open[each]:
                continue
            self.open[each] = True
            stack += self.members[each].tolist() if each in self.members else []
            if each in self.maker:
                call, row = self.maker[each]
                self.ranks[each] = np.argsort(-self.values[call.layer][row], kind="stable")
                self._push(each, 0)

    def _push(self, node: int, place: int) -> None:
        call, row = self.maker[node]
        if place < call.sources.shape[1]:
            value = self.values[call.layer][row, self.ranks[node][place]]
            if np.isfinite(value):
                heapq.heappush(self.queue, (-float(value), node, place))

    def _way(self, node: int, room: float) -> list[tuple[KernelEdges, int, int]]:
        """The best path from what is already fed to a node, as few kernels as `room` allows."""
        way: list[tuple[KernelEdges, int, int]] = []
        while not self.fed[node]:
            best: tuple[float, KernelEdges, int, int] | None = None
            for each in self._makers(node):
                call, row = self.maker[each]
                sources = call.sources[row]
                near = np.where(self.fed[sources], 0, self.hops[sources]) < room - len(way)
                values = np.where(near, self.values[call.layer][row], -np.inf)
                near &= np.isfinite(values)
                column = int(values.argmax())
                if near[column] and (best is None or values[column] > best[0]):
                    best = (float(values[column]), call, row, column)
            if best is None:
                return []
            way.append(best[1:])
            node = int(best[1].sources[best[2], best[3]])
        return way

    def _makers(self, node: int) -> list[int]:
        """The layer outputs that a node is a sum of."""
        found, stack = [], [node]
        while stack:
            each = stack.pop()
            if each in self.maker:
                found.append(each)
            stack += self.members[each].tolist() if each in self.members else []
        return sorted(found)

    def _take(self, way: list[tuple[KernelEdges, int, int]]) -> None:
        for call, row, column in reversed(way):
            self.size += not self.taken[call.layer][row, column]
            self.taken[call.layer][row, column] = True
            self._reach(int(call.sources[row, column]))
            self._feed(int(call.outputs[row]))

    def _feed(self, node: int) -> None:
        """Mark the node as reached from the images, and every sum that it is a member of."""
        if self.fed[node]:
            return
        self.fed[node] = True
        if self.summed[node]:
            self._spread()

    def _spread(self) -> None:
        """Sums and mixtures are reached if any of their members is."""
        for join in self.joins:
            self.fed[join.outputs] |= self.fed[join.members].any(1)
