"""Discarding once more in plain numpy and loops: slower and less complicated, written from the definition."""

import itertools
import math

import numpy as np
from scipy import optimize


def entropy(deviation):
    """Differential entropy of a normal variable by numerical integration of −p ln p."""
    edges = np.linspace(-12 * deviation, 12 * deviation, 20_001)
    density = np.exp(-0.5 * (edges / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    positive = density > 0
    terms = np.zeros_like(density)
    terms[positive] = -density[positive] * np.log(density[positive])
    return float(np.trapezoid(terms, edges))


def allocation(sensitivity, budget, cap, values):
    """Reverse water-filling by bisection on the water level, one cell at a time."""

    def at(level):
        chosen = []
        for g, c, n in zip(sensitivity, cap, values, strict=True):
            if n == 0:
                chosen.append(0.0)
            elif g == 0:
                chosen.append(c)
            else:
                chosen.append(min(c, math.sqrt(level * n / g)))
        return np.array(chosen)

    def spent(sigma):
        return sum(g * s**2 for g, s in zip(sensitivity, sigma, strict=True) if g > 0)

    everything = np.array([c if n else 0.0 for c, n in zip(cap, values, strict=True)])
    if all(math.isfinite(c) for c in everything) and spent(everything) < budget:
        return everything
    low, high = 0.0, 1.0
    while spent(at(high)) < budget:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(at(middle)) < budget else (low, middle)
    return at(high)


def isotropic(sensitivity, budget, cap, values):
    """Level of uniform noise below the caps, by bisection."""

    def spent(level):
        return sum(g * min(level, c) ** 2 for g, c, n in zip(sensitivity, cap, values, strict=True) if n)

    if spent(math.inf) < budget:
        return math.inf
    low, high = 0.0, 1.0
    while spent(high) < budget:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    return high


def cell_sums(plane, grid):
    """Sum over the pixels of each cell: pixel (r, c) lies in cell (⌊r·rows/height⌋, ⌊c·columns/width⌋)."""
    height, width = plane.shape
    sums = np.zeros(grid)
    for row in range(height):
        for column in range(width):
            sums[row * grid[0] // height, column * grid[1] // width] += plane[row, column]
    return sums


def blurred(plane, width):
    """Gaussian blur that loses what would come from outside, by a double loop over pixels."""
    if width == 0:
        return plane.copy()
    reach = min(int(3 * width) + 1, max(plane.shape))
    steps = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (steps / width) ** 2)
    kernel /= kernel.sum()
    out = np.zeros_like(plane)
    for r in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            for dr, wr in zip(steps, kernel, strict=True):
                for dc, wc in zip(steps, kernel, strict=True):
                    if 0 <= r + dr < plane.shape[0] and 0 <= c + dc < plane.shape[1]:
                        out[r, c] += wr * wc * plane[r + dr, c + dc]
    return out


def shrunk(samples, start, seen):
    """A mean of noisy maps of one image, shrunk toward a start scale by scale, and its doubt; arrays (draws, rows, columns)."""
    samples = samples * seen
    total = samples.mean(0).sum()
    field = start * seen
    field = field * total / field.sum()
    count = max(int(seen.sum()), 1)
    widths = [2.0**power for power in range(15, -2, -1) if 4 * 2**power <= max(seen.shape)] + [0.0]
    coarser, doubt = None, 0.0
    for width in widths:
        below = blurred(field, width)
        ratios = np.array([np.divide(blurred(one, width), below, out=np.zeros_like(below), where=seen) for one in samples])
        details = []
        for ratio in ratios:
            if coarser is None:
                background = np.ones_like(ratio)
            else:
                background = np.divide(blurred(ratio, coarser), blurred(seen.astype(float), coarser), out=np.zeros_like(ratio), where=seen)
            details.append(np.where(seen, ratio - background, 0))
        details = np.array(details)
        scatter = (details.mean(0) ** 2).sum() / count
        agreed = np.mean([(one * other).sum() / count for one, other in itertools.combinations(details, 2)] or [scatter])
        weight = max(0.0, agreed / scatter)
        doubt += weight * (scatter - agreed)
        field = field * np.maximum(1 + weight * (ratios.mean(0) - 1), 0.5)
        field = field * total / field.sum()
        coarser = width
    return field, doubt


def regressed(samples, start, features):
    """Gamma regression of the mean map of one image on its features by a general solver; rows of cells, a penalty of one cell."""
    ratio = samples.mean(0) / start
    design = np.column_stack([np.ones(len(start)), features])

    def equations(fit):
        predicted = ratio.mean() * np.exp(design @ fit)
        return design.T @ (ratio / predicted - 1) - np.concatenate([[0.0], fit[1:]])

    solved = optimize.root(equations, np.zeros(design.shape[1]), tol=1e-12)
    assert solved.success
    return start * np.exp(design @ solved.x)


def optimum_by_adam(feature, image, budget, cap, steps=4000, pairs=8, seed=0):
    """The published way: Adam on ln σ of every pixel with antithetic noise, then one common factor until the budget is met.

    `feature(images)` returns the features and a function that pulls vectors back to the images. The gradient is that of
    mean ln σ − ½ ln E|Δf|²; caps are kept by clipping.
    """
    random = np.random.default_rng(seed)
    size = image.size
    log_sigma = np.full(size, math.log(0.01))
    first, second = np.zeros(size), np.zeros(size)
    clean = feature(image[None])[0][0]

    def response(sigma, count):
        unit = random.standard_normal((count, size))
        noisy = image.reshape(1, -1) + np.concatenate([unit, -unit]) * sigma
        values, pull = feature(noisy.reshape(-1, *image.shape))
        change = values - clean
        return (change**2).sum(1).mean(), (pull(change).reshape(len(noisy), -1) * np.concatenate([unit, -unit]) * sigma).mean(0)

    for step in range(1, steps + 1):
        _, share = response(np.minimum(np.exp(log_sigma), cap), pairs)
        gradient = share / share.sum() - 1 / size
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 0.03 * 0.5 * (1 + math.cos(math.pi * step / steps))
        log_sigma -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    sigma = np.exp(log_sigma)
    for _ in range(12):
        sigma = np.minimum(sigma * math.sqrt(budget / response(np.minimum(sigma, cap), 2000)[0]), cap)
    return sigma


def concentration(plane, inside):
    """Mean over pixels outside less mean over pixels inside, one pixel at a time; arrays (rows, columns)."""
    within, beside = [], []
    for r in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            (within if inside[r, c] else beside).append(plane[r, c])
    return sum(beside) / len(beside) - sum(within) / len(within)


def share_about_the_foreground(plane, whole, inside):
    """Σ over the foreground of (input entropy − H) over the same sum over all pixels: what ρ stands for."""
    kept = whole - plane
    return kept[inside].sum() / kept.sum()


def box(plane, level):
    """The box around the largest connected part above a quantile, by flood filling."""
    above = plane >= np.quantile(plane, level)
    seen, best = np.zeros_like(above), []
    for start in zip(*np.nonzero(above), strict=True):
        stack, part = [start], []
        while stack:
            r, c = stack.pop()
            if 0 <= r < above.shape[0] and 0 <= c < above.shape[1] and above[r, c] and not seen[r, c]:
                seen[r, c] = True
                part.append((r, c))
                stack += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
        if len(part) > len(best):
            best = part
    rows, columns = zip(*best, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def descriptive_accuracy(probability, image, relevance, other, side, shares):
    """Probability after the most relevant cells of one image (C, H, W) take the other image's values, cell by cell.

    Cells go one at a time, the largest mean relevance per pixel first, until one more would lead further from the wanted
    share of the pixels than staying.
    """
    height, width = relevance.shape
    members = {}
    for r, c in itertools.product(range(height), range(width)):
        members.setdefault((r * side // height, c * side // width), []).append((r, c))
    means = {own: sum(float(relevance[place]) for place in places) / len(places) for own, places in members.items()}
    order = sorted(means, key=lambda own: (-means[own], own))
    curve = []
    for share in shares:
        changed, gone = image.copy(), 0
        for own in order:
            if abs(gone + len(members[own]) - share * height * width) >= abs(gone - share * height * width):
                break
            gone += len(members[own])
            for r, c in members[own]:
                changed[:, r, c] = other[:, r, c]
        curve.append(probability(changed))
    return curve
