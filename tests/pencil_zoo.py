"""The zoo's arithmetic again, slower and less complicated."""

import hashlib
import math

import numpy as np


def augmented(pixels, offsets, mirrored, pad):
    """Crop each image (C, H, W) of a batch at its offset from a frame of black pixels; then mirror some."""
    count, channels, height, width = pixels.shape
    result = np.zeros_like(pixels)
    for b in range(count):
        top, left = offsets[b]
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    from_y = y + top - pad
                    from_x = x + left - pad
                    inside = 0 <= from_y < height and 0 <= from_x < width
                    to_x = width - 1 - x if mirrored[b] else x
                    result[b, c, y, to_x] = pixels[b, c, from_y, from_x] if inside else 0
    return result


def erased(pixels, middle_y, middle_x, side):
    """Each image (C, H, W) of a batch with zeros in the square of that side whose middle is given."""
    result = pixels.copy()
    count, channels, height, width = pixels.shape
    for b in range(count):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    if 0 <= y - middle_y[b] + side // 2 < side and 0 <= x - middle_x[b] + side // 2 < side:
                        result[b, c, y, x] = 0
    return result


def normalized(pixels, mean, std):
    """Pixels 0..255 (B, C, H, W) → (pixels/255 − mean)/std, channel by channel."""
    result = np.zeros(pixels.shape)
    for c in range(pixels.shape[1]):
        result[:, c] = (pixels[:, c] / 255 - mean[c]) / std[c]
    return result


def channel_statistics(pictures):
    """Mean and standard deviation of each channel over all pixels in 0..1 of (images, C, H, W)."""
    means, stds = [], []
    for c in range(pictures.shape[1]):
        values = [float(v) / 255 for v in pictures[:, c].reshape(-1)]
        mean = math.fsum(values) / len(values)
        means.append(mean)
        stds.append(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)))
    return means, stds


def box_through(box, width, height, size, crop):
    """A box of a picture after its shorter side is resized to size/crop and the center size×size is cut out."""
    short = math.floor(size / crop)
    scale = max(short / width, short / height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = round((wide - size) / 2), round((high - size) / 2)
    x0, y0, x1, y1 = box
    corners = [x0 * wide / width - left, y0 * high / height - top, x1 * wide / width - left, y1 * high / height - top]
    return tuple(min(max(value, 0.0), size) for value in corners)


def fingerprint(state):
    """SHA-256 of named arrays: name, torch dtype, shape, bytes; in the order of the names."""
    text = b""
    for name in sorted(state):
        array, kind = state[name]
        text += name.encode() + b"\0" + kind.encode() + b"\0" + repr(tuple(array.shape)).encode() + b"\0" + array.tobytes()
    return hashlib.sha256(text).hexdigest()


def cosine(lr, done, total):
    """Learning rate after `done` of `total` steps."""
    return lr * (1 + math.cos(math.pi * done / total)) / 2


def nesterov(weight, gradients, rates, momentum, decay):
    """Weights after some steps of SGD with Nesterov momentum and weight decay; `gradients` are functions of the weight."""
    velocity = None
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient(weight) + decay * weight
        velocity = g if velocity is None else momentum * velocity + g
        weight = weight - rate * (g + momentum * velocity)
    return weight


def adamw(weight, gradients, rates, decay, beta=0.9, square_beta=0.999, epsilon=1e-8):
    """Weights after some steps of Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = gradient(weight)
        mean, square = beta * mean + (1 - beta) * g, square_beta * square + (1 - square_beta) * g**2
        unbiased = mean / (1 - beta**step), square / (1 - square_beta**step)
        weight = weight - rate * decay * weight - rate * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon)
    return weight


def softmax_gradient(weight, bias, x, y):
    """Mean cross-entropy of x W' + b, and its gradients with respect to W and b."""
    logits = x @ weight.T + bias
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    return loss, p.T @ x / len(y), p.mean(0)


def cross_entropy(logits, y):
    """Mean negative log-probability of the right class, in nats."""
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(v - top) for v in row)) - row[label]
    return total / len(y)


def positions_after(size, layers):
    """Spatial size after convolutions and pools (kernel, stride, padding)."""
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
    return size
