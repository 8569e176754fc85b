"""Every formula once more in plain numpy: slower and less complicated, written from the definition.

Twins take and return numpy arrays or floats. They loop where the library does not, invert where it updates, and know
nothing of copies, silence or resolution: those cases have tests of their own.
"""

import itertools
import math

import numpy as np


def moments(samples):
    """Count, mean, and sum of outer products of deviations."""
    mean = sum(samples) / len(samples)
    scatter = sum(np.outer(row - mean, row - mean) for row in samples)
    return len(samples), mean, scatter


def correlation(covariance):
    rho = np.empty_like(covariance)
    for i, j in np.ndindex(covariance.shape):
        rho[i, j] = covariance[i, j] / math.sqrt(covariance[i, i] * covariance[j, j])
    return rho


def oas(rho, n):
    """Shrinkage intensity of Chen et al. 2010, equation 23, for a correlation matrix (trace p)."""
    p = len(rho)
    trace_of_square, square_of_trace = np.trace(rho @ rho), np.trace(rho) ** 2
    return min(1.0, ((1 - 2 / p) * trace_of_square + square_of_trace) / ((n + 1 - 2 / p) * (trace_of_square - square_of_trace / p)))


def conditional(mean, covariance, known, value):
    """Mean and covariance of the rest given the known coordinates, through the precision matrix."""
    rest = [i for i in range(len(mean)) if i not in known]
    precision = np.linalg.inv(covariance)
    inner = precision[np.ix_(rest, rest)]
    spread = np.linalg.inv(inner)
    return mean[rest] - spread @ precision[np.ix_(rest, known)] @ (value - mean[known]), spread


def correlation_information(rho):
    return -0.5 * math.log(1 - rho**2)


def information(covariance, a, b):
    def det(index):
        return np.linalg.det(covariance[np.ix_(index, index)])

    return 0.5 * math.log(det(a) * det(b) / det(a + b))


def rayleigh(weight, input_covariance):
    return weight @ input_covariance @ weight / (weight @ weight)


def capture(variance, noise=None):
    noise = np.median(variance) if noise is None else noise
    return np.array([0.5 * math.log(1 + v / noise) for v in variance])


def overlap(rho):
    result = []
    for i in range(len(rho)):
        result.append(np.mean([correlation_information(rho[i, j]) for j in range(len(rho)) if j != i]))
    return np.array(result)


def peer_top(pairs, rho, top, of):
    result = []
    for i in range(len(rho)):
        peers = sorted((j for j in range(len(rho)) if j != i), key=lambda j: -abs(rho[i, j]))[:of]
        result.append(np.mean(sorted((pairs[i, j] for j in peers), reverse=True)[:top]))
    return np.array(result)


def explained(rho, target_rho, members):
    """Squared multiple correlation of a target with some variables."""
    if len(members) == 0:
        return 0.0
    r = target_rho[list(members)]
    return float(r @ np.linalg.solve(rho[np.ix_(members, members)], r))


def set_information(rho, target_rho, members):
    return -0.5 * math.log(1 - explained(rho, target_rho, list(members)))


def pair_information(target_rho, rho):
    n = len(rho)
    pairs = np.empty((n, n))
    for i, j in np.ndindex(n, n):
        pairs[i, j] = set_information(rho, target_rho, {i, j})
    return pairs


def excess(target_rho, rho):
    n = len(rho)
    result = np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        if i != j:
            best = max(correlation_information(target_rho[i]), correlation_information(target_rho[j]))
            result[i, j] = set_information(rho, target_rho, [i, j]) - best
    return result


def unique(single):
    n = len(single)
    return np.array([max(0.0, single[i] - np.mean([min(single[i], single[j]) for j in range(n) if j != i])) for i in range(n)])


def triplet_excess(target_rho, rho, triples, over="pairs"):
    result = []
    for triple in triples:
        smaller = itertools.combinations(triple, 2 if over == "pairs" else 1)
        result.append(set_information(rho, target_rho, triple) - max(set_information(rho, target_rho, part) for part in smaller))
    return np.array(result)


def triplet_ratio(target_rho, rho, triples):
    pairs = excess(target_rho, rho)
    two = np.mean([pairs[i, j] for triple in triples for i, j in itertools.combinations(triple, 2)])
    return np.mean(triplet_excess(target_rho, rho, triples)) / two


def label_information(total, within, index):
    index = list(index)
    return 0.5 * math.log(np.linalg.det(total[np.ix_(index, index)]) / np.linalg.det(within[np.ix_(index, index)]))


def ridge_explained(rho, target, members, ridge):
    """r'(R + λI)⁻¹r for the members' correlations r with the target."""
    if len(members) == 0:
        return 0.0
    inner = rho[np.ix_(members, members)] + ridge * np.eye(len(members))
    return float(rho[target, members] @ np.linalg.solve(inner, rho[target, members]))


def support(rho, ridge=1e-3):
    """One regression per channel."""
    n = len(rho)
    return np.array([ridge_explained(rho, i, [j for j in range(n) if j != i], ridge) for i in range(n)])


def task_credit(target_rho, rho, ridge=1e-3):
    """How much r'(R + λI)⁻¹r falls when a channel is left out, one regression per channel; equal to (P r)_i² / P_ii."""

    def explained(members):
        matrix = np.array([[rho[i, j] + ridge * (i == j) for j in members] for i in members])
        aim = np.array([target_rho[i] for i in members])
        return float(aim @ np.linalg.solve(matrix, aim)) if len(members) else 0.0

    everyone = list(range(len(rho)))
    return np.array([explained(everyone) - explained([j for j in everyone if j != i]) for i in everyone])


def hull(rho, target, max_size=10, threshold=0.95, ridge=1e-3, order="forward"):
    """Members, explained variance after each, and whether the threshold was reached, for one target."""
    others = [j for j in range(len(rho)) if j != target]
    goal = threshold * ridge_explained(rho, target, others, ridge)
    members, curve, reached = [], [], goal <= 0
    while len(members) < min(max_size, len(others)) and not reached:
        left = [j for j in others if j not in members]
        if order == "forward":
            pick = max(left, key=lambda j: ridge_explained(rho, target, [*members, j], ridge))
        else:
            pick = max(left, key=lambda j: abs(rho[target, j]))
        members.append(pick)
        curve.append(ridge_explained(rho, target, members, ridge))
        reached = curve[-1] >= goal - 2**-20  # what float32 statistics cannot tell apart
    return members, curve, reached


def peers_matrix(covariance, dropped, kept, ridge):
    inner = covariance[np.ix_(kept, kept)]
    penalty = ridge * np.mean([inner[i, i] for i in range(len(kept))]) * np.eye(len(kept))
    return covariance[np.ix_(dropped, kept)] @ np.linalg.inv(inner + penalty)


def replacement(samples, target, members):
    """Ordinary least squares with an intercept on the samples themselves."""
    design = np.column_stack([samples[:, members], np.ones(len(samples))])
    answer = np.linalg.lstsq(design, samples[:, target], rcond=None)[0]
    return answer[:-1], answer[-1]


def backward_elimination(covariance, weights, ridge=1e-3):
    """Remove the cheapest, then start over with what is left."""
    rho, kept, order, costs = correlation(covariance), list(range(len(covariance))), [], {}
    while kept:
        cost = {i: weights[i] * covariance[i, i] * (1 - ridge_explained(rho, i, [j for j in kept if j != i], ridge)) for i in kept}
        pick = min(kept, key=lambda i: cost[i])
        kept.remove(pick)
        order.append(pick)
        costs[pick] = cost[pick]
    return order, np.array([costs[i] for i in range(len(covariance))])


def jackknife(replicates):
    """Standard error from leave-one-group-out values."""
    groups = len(replicates)
    center = sum(replicates) / groups
    return math.sqrt((groups - 1) / groups * sum((value - center) ** 2 for value in replicates))


def permutation_p(observed, null):
    hits = sum(1 for value in null if value >= observed)
    return (1 + hits) / (1 + len(null))


def sign_flip(differences):
    """Share of all sign patterns whose sum is at least as far from zero."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(pattern, differences, strict=True))) for pattern in patterns]
    return sum(1 for value in sums if value >= observed - 1e-9) / len(patterns)


def holm(p):
    """Step down: the smallest times m, the next times m − 1, never decreasing, at most 1."""
    adjusted, running = {}, 0.0
    for place, test in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, (len(p) - place) * p[test])
        adjusted[test] = min(1.0, running)
    return [adjusted[i] for i in range(len(p))]


def effect_size(differences):
    mean = sum(differences) / len(differences)
    return mean / math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1))


def flops_auc(removed, accuracy):
    area = 0.0
    for i in range(len(removed) - 1):
        area += (removed[i + 1] - removed[i]) * (accuracy[i] + accuracy[i + 1]) / 2
    return area / removed[-1]


def linear_axes(weight, covariance, cross, target_variance, noise):
    """Both informations of one linear channel and their gradients by central differences."""

    def capture_of(w):
        return 0.5 * math.log(1 + w @ covariance @ w / noise)

    def relevance_of(w):
        return correlation_information(w @ cross / math.sqrt(w @ covariance @ w * target_variance))

    def slope(function):
        step = 1e-6 * np.linalg.norm(weight)
        return np.array([(function(weight + step * e) - function(weight - step * e)) / (2 * step) for e in np.eye(len(weight))])

    return capture_of(weight), relevance_of(weight), slope(capture_of), slope(relevance_of)


def cosine(a, b, metric):
    return a @ metric @ b / math.sqrt((a @ metric @ a) * (b @ metric @ b))


def strongest_edges(pairs, share, ceiling):
    """Weight of each kept pair."""
    positive = {(i, j): min(pairs[i, j], ceiling) for i, j in itertools.combinations(range(len(pairs)), 2) if pairs[i, j] > 0}
    ordered = sorted(positive, key=lambda edge: (-positive[edge], edge))
    return {edge: positive[edge] for edge in ordered[: math.ceil(round(share * len(ordered), 9))]}


def modularity(edges, members):
    """Newman's sum over ordered pairs of channels in the same community: (A_ij − k_i k_j / 2m) / 2m."""
    adjacency, nodes = {}, sorted({node for edge in edges for node in edge})
    for (i, j), weight in edges.items():
        adjacency[i, j] = adjacency[j, i] = weight
    degree = {i: sum(adjacency.get((i, j), 0.0) for j in nodes) for i in nodes}
    total = sum(degree.values())
    same = [(i, j) for group in members for i in group for j in group]
    return sum(adjacency.get((i, j), 0.0) - degree[i] * degree[j] / total for i, j in same) / total


def ranks(values):
    """Mean place of equal values, counting from 1."""
    return np.array([1 + sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values])


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return a @ b / math.sqrt((a @ a) * (b @ b))


def spearman(x, y):
    return pearson(ranks(x), ranks(y))


def partial_spearman(x, y, covariates):
    """Correlation of what a regression on the covariates' ranks leaves of the ranks."""
    design = np.column_stack([ranks(column) for column in covariates.T] + [np.ones(len(x))])
    left = [ranks(v) - design @ np.linalg.lstsq(design, ranks(v), rcond=None)[0] for v in (x, y)]
    return pearson(*left)


def rand_index(one, other):
    """Adjusted Rand index by looking at every couple."""
    couples = list(itertools.combinations(range(len(one)), 2))
    first, second = ([labels[i] == labels[j] for i, j in couples] for labels in (one, other))
    both = sum(a and b for a, b in zip(first, second, strict=True))
    chance = sum(first) * sum(second) / len(couples)
    return (both - chance) / ((sum(first) + sum(second)) / 2 - chance)


def silhouette(points, labels):
    """Mean over points of (b − a)/max(a, b): mean distance to the nearest other group against the own one."""
    scores = []
    for i in range(len(points)):
        distance = [math.dist(points[i], p) for p in points]
        own = [distance[j] for j in range(len(points)) if labels[j] == labels[i] and j != i]
        others = set(labels) - {labels[i]}
        b = min(np.mean([distance[j] for j in range(len(points)) if labels[j] == group]) for group in others)
        a = np.mean(own) if own else 0.0
        scores.append((b - a) / max(a, b) if own else 0.0)
    return float(np.mean(scores))
