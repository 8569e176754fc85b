"""Toys for statistics: constant planes, exactly orthonormal over the images.

Whatever the readout, channel statistics are the closed form of the weights, to float32 rounding. The one site is
`conv`, a 1×1 convolution; the bias keeps all preactivations positive, so its ReLU is the identity (but in `xor_pair`).

Truth of a linear toy: site; covariance (C, C) of the channels; margin_variance and margin_covariance (C,) with the logit
margin; task_information (C,) = −½ ln(1 − ρ²) in nats, nan for a silent channel. All labels of a linear toy are 1, so that
the margin z₁ − z₀ is linear in the channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from channelscope.types import Float, Int
from channelscope.zoo.toys.toy import SIDE, Batches, Toy, batches

BIAS = 16.0


class LinearNet(nn.Module):
    """1×1 convolution, ReLU, average, linear head."""

    def __init__(self, planes: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(planes, channels, 1)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, planes, H, W) → logits (B, classes)."""
        return self.fc(self.flatten(self.pool(self.act(self.conv(x)))))


def exact_copy(images: int = 256, seed: int = 0) -> Toy:
    """Channel 3 is twice channel 0; channels 1 and 2 share half of their variance with it, and a quarter with each other.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: the entries of a linear toy and copies: the pairs (channel, its multiple).

    Examples
    --------
    >>> toy = exact_copy()
    >>> toy.truth["copies"]
    [(0, 3)]
    """
    half = np.sqrt(0.5)
    mixing = [[1, 0, 0], [half, half, 0], [half, 0, -half], [2, 0, 0]]
    toy = _linear(mixing, [1.0, 1.0, 1.0, 0.0], images, seed)
    return Toy(toy.model, toy.batches, {**toy.truth, "copies": [(0, 3)]})


def dead_channel(images: int = 256, seed: int = 0) -> Toy:
    """Channel 1 of four is zero on every image, at the read point and at the cut point.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: the entries of a linear toy and dead: the silent channels.

    Examples
    --------
    >>> toy = dead_channel()
    >>> toy.truth["dead"]
    [1]
    """
    mixing = [[1, 0, 0], [0, 0, 0], [0, 2, 0], [1, 0, 1]]
    toy = _linear(mixing, [1.0, 1.0, -1.0, 0.5], images, seed)
    with torch.no_grad():
        toy.model.get_parameter("conv.bias")[1] = 0
    return Toy(toy.model, toy.batches, {**toy.truth, "dead": [1]})


def independent_channels(images: int = 256, seed: int = 0) -> Toy:
    """Five uncorrelated channels with standard deviations 1, 2, 3, 4, 5: nothing is shared, and no peer can replace another.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: the entries of a linear toy; weight_norms: Euclidean norm of each channel's weights.

    Examples
    --------
    >>> toy = independent_channels()
    >>> toy.truth["weight_norms"].tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    scales = np.arange(1.0, 6.0)
    toy = _linear(np.diag(scales), [1.0, 0.0, 1.0, 0.0, 0.2], images, seed)
    return Toy(toy.model, toy.batches, {**toy.truth, "weight_norms": scales})


def suppressor_pair(images: int = 256, seed: int = 0) -> Toy:
    """Y0 = T + N and Y1 = N for independent T, N: Y1 alone is uninformative, together they give T; Y2 is the rest of the margin.

    The logit margin is T + E with Y2 = E of a quarter of T's variance, so that the pair (0, 1) leaves something unexplained.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: the entries of a linear toy; excess: pair → I(T;pair) − max(I_T) in nats,
        here ½ ln(1/(1 − .8)) − ½ ln(1/(1 − .4)) for (0, 1).

    Examples
    --------
    >>> toy = suppressor_pair()
    >>> round(float(toy.truth["excess"][0, 1]), 3)
    0.549
    """
    toy = _linear([[1, 1, 0], [0, 1, 0], [0, 0, 0.5]], [1.0, -1.0, 1.0], images, seed)
    excess = 0.5 * np.log(1 / (1 - 0.8)) - 0.5 * np.log(1 / (1 - 0.4))
    return Toy(toy.model, toy.batches, {**toy.truth, "excess": {(0, 1): excess}})


def label_channel(images: int = 256, seed: int = 0) -> Toy:
    """Channel 2 alone carries the label (two classes, equally many): its class means are ±1, its variance within classes ¼.

    The other channels are noise, uncorrelated with the label and with each other.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: site; label: the channel; label_information (channels,): ½ ln(total/within) in nats; accuracy: of the network.

    Examples
    --------
    >>> toy = label_channel()
    >>> toy.truth["label_information"].round(3).tolist()
    [0.0, 0.0, 0.805, 0.0]
    """
    labels = _balanced_labels(images, seed)
    sign = labels * 2.0 - 1
    planes = _orthonormal(images, 4, seed, sign)
    planes[:, 2] = sign + 0.5 * planes[:, 2]
    head = np.zeros((2, 4))
    head[:, 2] = -1, 1
    model = _linear_network(np.eye(4), head)
    guess = np.sign(planes[:, 2]) == sign
    information = np.zeros(4)
    information[2] = 0.5 * np.log(1.25 / 0.25)
    truth = {"site": "conv", "label": 2, "label_information": information, "accuracy": float(guess.mean())}
    return Toy(model, _batches(planes, labels), truth)


def xor_pair(images: int = 256, seed: int = 0) -> Toy:
    """The label is whether two ±1 planes differ: a channel that reads one plane is uninformative, the network is always right.

    Channels 0 and 1 read one plane each; 2 to 5 are the sums and differences from which the head computes |a − b| − |a + b|.
    All four combinations occur equally often. A Gaussian measure sees nothing in the pair (0, 1); the truth is ln 2.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: site; pair; label_information (channels,): 0 for the pair; discrete_information: ln 2; accuracy: 1.

    Examples
    --------
    >>> toy = xor_pair()
    >>> toy.truth["pair"], toy.truth["accuracy"]
    ((0, 1), 1.0)
    """
    combinations = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float)
    order = np.random.default_rng(seed).permutation(images - images % 4) % 4
    planes = combinations[order]
    labels = (planes[:, 0] != planes[:, 1]).astype(np.int64)
    mixing = np.array([[1, 0], [0, 1], [1, 1], [-1, -1], [1, -1], [-1, 1]], dtype=float)
    head = np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=float)
    model = _linear_network(mixing, head, lift=0.0)
    truth = {"site": "conv", "pair": (0, 1), "label_information": np.zeros(6), "discrete_information": np.log(2), "accuracy": 1.0}
    return Toy(model, _batches(planes, labels), truth)


def _linear(mixing: Any, weights: Sequence[float], images: int, seed: int) -> Toy:
    """Channels that mix orthonormal planes, and a logit margin that is a weighted sum of the channels.

    With W the mixing and h the weights, the covariances are WW' and WW'h.
    """
    W, h = np.asarray(mixing, dtype=float), np.asarray(weights, dtype=float)
    planes = _orthonormal(images, W.shape[1], seed)
    model = _linear_network(W, np.stack([np.zeros_like(h), h]))
    covariance = W @ W.T
    margin, cross = float(h @ covariance @ h), covariance @ h
    with np.errstate(invalid="ignore", divide="ignore"):
        information = -0.5 * np.log(1 - cross**2 / (covariance.diagonal() * margin))
    truth = {
        "site": "conv",
        "covariance": covariance,
        "margin_variance": margin,
        "margin_covariance": cross,
        "task_information": information,
    }
    return Toy(model, _batches(planes, np.ones(images, dtype=np.int64)), truth)


def _linear_network(
    mixing: Float[np.ndarray, "channels planes"], head: Float[np.ndarray, "classes channels"], lift: float = BIAS
) -> LinearNet:
    model = LinearNet(mixing.shape[1], mixing.shape[0], head.shape[0])
    with torch.no_grad():
        model.conv.weight.copy_(torch.as_tensor(mixing)[:, :, None, None])
        gain = torch.as_tensor(np.maximum(np.linalg.norm(mixing, axis=1), 1))
        model.get_parameter("conv.bias").copy_(lift * gain)
        model.fc.weight.copy_(torch.as_tensor(head))
        model.fc.bias.copy_(-torch.as_tensor(head) @ (lift * gain))
    return model.eval()


def _orthonormal(
    images: int, planes: int, seed: int, orthogonal_to: Float[np.ndarray, "images"] | None = None
) -> Float[np.ndarray, "images planes"]:
    """Values with mean 0, variance 1 and no correlation, exactly, and none with the column orthogonal_to them."""
    noise = np.random.default_rng(seed).standard_normal((images, planes))
    first = [np.ones(images)] if orthogonal_to is None else [np.ones(images), orthogonal_to]
    q, _ = np.linalg.qr(np.column_stack([*first, noise]))
    return q[:, len(first) :] * np.sqrt(images)


def _balanced_labels(images: int, seed: int) -> Int[np.ndarray, "images"]:
    return np.random.default_rng(seed).permutation(images) % 2


def _batches(planes: Float[np.ndarray, "images planes"], labels: Int[np.ndarray, "images"]) -> Batches:
    pixels = torch.as_tensor(planes, dtype=torch.float32)[:, :, None, None].expand(-1, -1, SIDE, SIDE).contiguous()
    return batches(pixels, torch.as_tensor(labels, dtype=torch.int64))
