"""Statistics and readouts once more in plain numpy: slower and less complicated, written from the definition."""

import math

import numpy as np


def class_means(samples, labels, classes):
    """Count and mean of each class; zero rows for classes without samples."""
    counts = np.array([sum(1 for label in labels if label == k) for k in range(classes)], dtype=float)
    means = np.zeros((classes, samples.shape[1]))
    for k in range(classes):
        own = [row for row, label in zip(samples, labels, strict=True) if label == k]
        if own:
            means[k] = sum(own) / len(own)
    return counts, means


def within_scatter(samples, labels):
    """Sum over samples of outer products of deviations from the sample's own class mean."""
    total = np.zeros((samples.shape[1], samples.shape[1]))
    for label in set(labels.tolist()):
        own = samples[labels == label]
        for row in own - own.mean(0):
            total += np.outer(row, row)
    return total


def rank(maps):
    """Rank of each channel's H×W map, summed over images, from singular values."""
    result = np.zeros(maps.shape[1])
    for image in maps:
        for channel, plane in enumerate(image):
            values = np.linalg.svd(plane, compute_uv=False)
            result[channel] += sum(1 for value in values if value > values.max() * max(plane.shape) * np.finfo(np.float32).eps)
    return result


def independence(maps):
    """Drop of the nuclear norm of the C×HW matrix when a channel's row is zeroed, summed over images."""
    result = np.zeros(maps.shape[1])
    for image in maps:
        matrix = image.reshape(len(image), -1)
        whole = np.linalg.svd(matrix, compute_uv=False).sum()
        for channel in range(len(matrix)):
            without = matrix.copy()
            without[channel] = 0
            result[channel] += whole - np.linalg.svd(without, compute_uv=False).sum()
    return result


def wilson(correct, n, z=1.959963984540054):
    """Accuracies p with |correct/n − p| ≤ z √(p(1 − p)/n): the roots of the quadratic."""
    share = correct / n
    roots = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
    return tuple(sorted(float(root.real) for root in roots))


def cross_entropy(logits, labels):
    return [math.log(sum(math.exp(v - row[y]) for v in row)) for row, y in zip(logits, labels, strict=True)]


def margin(logits, labels):
    return [row[y] - max(v for k, v in enumerate(row) if k != y) for row, y in zip(logits, labels, strict=True)]


def samples(maps, axis, where=None):
    """Rows of the channels, image by image, position by position (all, or those in `where`)."""
    rows = []
    for number, image in enumerate(np.moveaxis(maps, axis + 1, 1)):
        flat = image.reshape(len(image), -1)
        for position in range(flat.shape[1]) if where is None else where[number]:
            rows.append(flat[:, position])
    return np.array(rows)


MASK = (1 << 64) - 1


def splitmix(key):
    """SplitMix64's next output for a state, with Python's whole numbers."""
    z = (key + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(index, positions, count, seed):
    """Positions with the smallest hashed keys, as signed numbers."""
    keys = {}
    for position in range(positions):
        key = splitmix((splitmix(index * positions + position) + seed) & MASK)
        keys[position] = key - (1 << 64) if key >> 63 else key
    return sorted(sorted(keys, key=keys.__getitem__)[:count])
