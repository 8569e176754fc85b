"""Pruning, slower and less complicated."""

import numpy as np


def chain_macs(found, kept: dict[str, list[bool]]) -> int:
    """MACs of a plain chain of convolutions, from the channel counts alone."""
    total, inputs = 0, 3
    for layer in found.layers:
        outputs = sum(kept[layer.name]) if layer.name in kept else len(layer.outputs)
        total += inputs * outputs * layer.taps * layer.positions
        inputs = outputs
    return total


def cut_slowly(ranking, found, fraction: float, allocation: str, normalize: str, cap: float = 0.95) -> dict[str, list[bool]]:
    """`cut` for a chain, where every channel is a group: remove one after the other, recount everything each time."""
    kept = {site.name: [True] * site.channels for site in found.sites}
    full = chain_macs(found, kept)
    queue = []
    for depth, site in enumerate(found.sites):
        if site.name in found.unprunable:
            continue
        values = ranking[site.name] if ranking.keeps == "high" else -ranking[site.name]
        if normalize == "mean":
            values = values / np.mean(np.abs(values))
        if normalize == "zscore":
            values = (values - np.mean(values)) / np.std(values)
        if allocation == "uniform":
            order = sorted(range(site.channels), key=lambda c, v=values: v[c])
            values = [(order.index(c) + 0.5) / site.channels for c in range(site.channels)]
        queue += [(float(values[c]), depth, c, site.name) for c in range(site.channels)]
    removed = []
    for _, _, channel, name in sorted(queue):
        if chain_macs(found, kept) <= fraction * full:
            break
        size = len(kept[name])
        if kept[name].count(False) + 1 <= min(int(cap * size), size - 1):
            kept[name][channel] = False
            removed.append((name, channel))
    for name, channel in reversed(removed):
        kept[name][channel] = True
        if chain_macs(found, kept) > fraction * full:
            kept[name][channel] = False
    return kept


def ridge_slowly(x: np.ndarray, t: np.ndarray, prior: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge toward a prior as ordinary least squares on samples with pseudo-samples appended."""
    x_mean, t_mean = x.mean(0), t.mean(0)
    centred = x - x_mean
    load = share * np.mean(np.diag(centred.T @ centred))
    rows = np.vstack([centred, np.sqrt(load) * np.eye(x.shape[1])])
    goal = np.vstack([t - t_mean, np.sqrt(load) * prior.T])
    weights = np.linalg.lstsq(rows, goal, rcond=None)[0].T
    return weights, t_mean - weights @ x_mean


def at_scale_slowly(weights: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Weights whose outputs have the standard deviation of the target."""
    return weights * (t.std(0) / (x @ weights.T).std(0))[:, None]


def elimination_slowly(covariance, metric, weights, owner, outputs, gone) -> dict[int, float]:
    """Half the weighted error that each group's removal adds, every regression solved anew on the inputs left."""

    def refit(without: list[int]) -> np.ndarray:
        keep = ~np.isin(owner, without)
        fitted = np.zeros_like(weights)
        fitted[:, keep] = np.linalg.solve(covariance[np.ix_(keep, keep)], covariance[keep] @ weights.T).T
        return fitted

    rows = ~np.isin(outputs, gone)
    before = refit(gone)
    costs = {}
    for group in sorted(set(owner[owner >= 0].tolist()) - set(gone)):
        change = (refit([*gone, group]) - before)[rows]
        costs[group] = 0.5 * np.trace(metric[np.ix_(rows, rows)] @ change @ covariance @ change.T)
    return costs
