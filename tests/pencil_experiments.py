"""Experiments once more in plain numpy and loops: slower and less complicated, written from the definition."""

import itertools

import numpy as np
import torch


def ranked(values):
    """Mean rank of ties, by counting."""
    return np.array([sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values])


def partial_correlation(columns):
    """Correlation of the residuals of the first two columns after a least-squares fit on the others."""
    columns = np.asarray(columns, dtype=float)
    rest = np.column_stack([np.ones(len(columns)), columns[:, 2:]])
    left = [column - rest @ np.linalg.lstsq(rest, column, rcond=None)[0] for column in columns[:, :2].T]
    return float(left[0] @ left[1] / np.sqrt((left[0] @ left[0]) * (left[1] @ left[1])))


def hull(rho, target, max_size, threshold, ridge):
    """Greedy forward selection by refitting every candidate set: members and explained variance after each."""
    peers = [peer for peer in range(len(rho)) if peer != target]

    def explained(members):
        inner = rho[np.ix_(members, members)] + ridge * np.eye(len(members))
        return rho[target, members] @ np.linalg.solve(inner, rho[members, target])

    goal, members, curve = threshold * explained(peers), [], []
    while len(members) < min(max_size, len(peers)) and (not curve or curve[-1] < goal):
        gains = {peer: explained([*members, peer]) for peer in peers if peer not in members}
        best = max(gains, key=lambda peer: gains[peer])
        members.append(best)
        curve.append(gains[best])
    return members, curve


def silenced(model, module, channel, images):
    """Logits with one channel of a module's output set to zero by a forward hook."""

    def zero(_, inputs, output):
        output = output.clone()
        output[:, channel] = 0
        return output

    handle = module.register_forward_hook(zero)
    try:
        with torch.no_grad():
            return model(images)
    finally:
        handle.remove()


def harm(before, after, labels):
    """Loss, accuracy, margin and KL of each image, one image at a time."""
    rows = []
    for old, new, label in zip(before, after, labels, strict=True):
        p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (old, new))
        gap = [z[label] - max(value for place, value in enumerate(z) if place != label) for z in (old, new)]
        right = [float(z.argmax() == label) for z in (old, new)]
        rows.append([np.log(p[label] / q[label]), right[0] - right[1], gap[0] - gap[1], sum(p * np.log(p / q))])
    return np.array(rows).T


def prediction(maps, target, members):
    """Least-squares prediction of one column of samples from others, intercept included."""
    design = np.column_stack([np.ones(len(maps)), maps[:, members]])
    return design @ np.linalg.lstsq(design, maps[:, target], rcond=None)[0]


def spread(sizes, total):
    """Deal one channel after the other to the layer that has fewest of those with room; only the counts' multiset is defined."""
    counts = [0] * len(sizes)
    for _ in range(min(total, sum(sizes))):
        open_ = [layer for layer, size in enumerate(sizes) if counts[layer] < size]
        counts[min(open_, key=lambda layer: counts[layer])] += 1
    return counts


def later(steps, start):
    """Names of the steps that depend on `start`, by transitive closure of (step, parents)."""
    found = {start}
    for name, parents in itertools.chain(steps, steps):
        if set(parents) & found:
            found.add(name)
    return found - {start}


def mean_spearman(groups):
    """Mean over layers of Spearman's rho of (x, y), layers with fewer than three known pairs or a constant left out."""
    values = []
    for x, y in groups:
        known = [(a, b) for a, b in zip(x, y, strict=True) if not (np.isnan(a) or np.isnan(b))]
        if len(known) >= 3:
            one, other = ranked([a for a, _ in known]), ranked([b for _, b in known])
            if np.ptp(one) and np.ptp(other):
                values.append(np.corrcoef(one, other)[0, 1])
    return float(np.mean(values)) if values else float("nan")


def influence(weight, groups, spread, seen):
    """|W[j, i]|₁ · σ of the channel behind input i, summed over the inputs that show the channel; seen[i] is that channel."""
    outputs, per_group = weight.shape[:2]
    found = np.zeros((len(spread), outputs))
    for j in range(outputs):
        group = j // (outputs // groups)
        for place in range(per_group):
            channel = seen[group * per_group + place]
            found[channel, j] += np.abs(weight[j, place]).sum() * spread[channel]
    return found


def upstream_mean(strength, values):
    """What reaches each reader: the mean of what it reads, weighted by influence, reader by reader."""
    return [sum(w * q for w, q in zip(column, values, strict=True)) / sum(column) for column in strength.T]


def patches(images, kernel, stride, padding, dilation):
    """What a convolution sees: (images, positions, channels, taps), zeros outside, by cutting out one window after the other."""
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (kernel - 1) + 1
    rows, columns = (range(0, size - reach + 1, stride) for size in padded.shape[2:])
    windows = [padded[:, :, r : r + reach : dilation, c : c + reach : dilation] for r in rows for c in columns]
    return np.stack(windows, 1).reshape(len(images), len(windows), images.shape[1], kernel * kernel)


def directions(samples, weights, target):
    """Cosine of Σw and g = c − (b/D) Σw for each row of weights, with Σ formed in full, and |w'g| over |w| |g|."""
    centred, gap = samples - samples.mean(0), target - target.mean()
    covariance, cross = centred.T @ centred / len(samples), centred.T @ gap / len(samples)
    found = []
    for w in weights:
        pull = covariance @ w
        rest = cross - (w @ cross) / (w @ pull) * pull
        found.append((pull @ rest / np.linalg.norm(pull) / np.linalg.norm(rest), abs(w @ rest) / np.linalg.norm(w) / np.linalg.norm(rest)))
    return np.array(found).T
