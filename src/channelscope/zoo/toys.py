"""Toys: tiny networks and images whose answers are known exactly, for tests of everything above.

Toys for statistics are constant planes, exactly orthonormal over the images. Whatever the readout, channel statistics are the
closed form of the weights, to float32 rounding. The one site is `conv`, a 1×1 convolution; the bias keeps all preactivations
positive, so its ReLU is the identity (but in `xor_pair`). Truth of such a toy: site; covariance (C, C) of the channels;
margin_variance and margin_covariance (C,) with the logit margin; task_information (C,) = −½ ln(1 − ρ²) in nats, nan for a silent
channel. All labels are 1, so that the margin z₁ − z₀ is linear in the channels.

Toys for structure have channels that can only be removed together, on images of noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.types import Float, Int

Batches = list[tuple[Tensor, Tensor, Tensor]]

SIDE = 4

CHUNK = 64


@dataclass(frozen=True)
class Toy:
    """A network in evaluation mode, its images, and its known statistics.

    Examples
    --------
    >>> from channelscope.zoo.toys import exact_copy
    >>> exact_copy(images=100).images
    100
    """

    model: nn.Module
    """the network"""
    batches: Batches
    """(images float32, labels int64, index int64), as a list"""
    truth: dict[str, Any]
    """known statistics by name; the docstring of each toy lists them"""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(labels) for _, labels, _ in self.batches)


def batches(pixels: Float[Tensor, "images C H W"], labels: Int[Tensor, "images"]) -> Batches:
    """Batches of 64 images with their running index.

    Parameters
    ----------
    pixels
        float32 (images, channels, height, width).
    labels
        int64 (images,).

    Returns
    -------
    list
        (images, labels, index) of each batch.

    Examples
    --------
    >>> [len(index) for _, _, index in batches(torch.zeros(100, 1, 4, 4), torch.zeros(100))]
    [64, 36]
    """
    index = torch.arange(len(labels))
    return list(zip(pixels.split(CHUNK), labels.split(CHUNK), index.split(CHUNK), strict=True))


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


class ResidualNet(nn.Module):
    """A stem, and a block of two convolutions whose result is added to the stem's."""

    def __init__(self, width: int = 6, classes: int = 3):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.inner, self.inner_bn = nn.Conv2d(width, width + 2, 3, padding=1, bias=False), nn.BatchNorm2d(width + 2)
        self.outer, self.outer_bn = nn.Conv2d(width + 2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, classes); one ReLU module serves three places."""
        x = self.relu(self.stem_bn(self.stem(x)))
        y = self.outer_bn(self.outer(self.relu(self.inner_bn(self.inner(x)))))
        return self.fc(self.flatten(self.pool(self.relu(x + y))))


class DepthwiseNet(nn.Module):
    """Expansion, depthwise convolution, projection, as in a MobileNet."""

    def __init__(self, width: int = 8, classes: int = 3):
        super().__init__()
        self.expand, self.expand_bn = nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depthwise, self.depthwise_bn = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
        self.project, self.project_bn = nn.Conv2d(width, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.act1, self.act2 = nn.ReLU6(), nn.ReLU6()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, classes)."""
        x = self.act2(self.depthwise_bn(self.depthwise(self.act1(self.expand_bn(self.expand(x))))))
        return self.fc(self.flatten(self.pool(self.project_bn(self.project(x)))))


class SharedActivationNet(nn.Module):
    """Two convolutions in a row whose ReLU is the function F.relu, called twice, and no module at all."""

    def __init__(self, width: int = 6, classes: int = 3):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width + 1, 3, padding=1)
        self.fc = nn.Linear(width + 1, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, classes)."""
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.fc(x.mean((2, 3)))


def residual_pair(images: int = 64, seed: int = 0) -> Toy:
    """Stem and outer convolution are coupled by a residual sum: channel k of both is kept or removed together; inner is free.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: sites in execution order; tied: sets of sites that share their channels; free: sites that share with none.

    Examples
    --------
    >>> toy = residual_pair()
    >>> toy.truth["free"]
    ['inner']
    """
    return _structural(ResidualNet(), images, seed, ["stem", "inner", "outer"], [{"stem", "outer"}])


def depthwise_block(images: int = 64, seed: int = 0) -> Toy:
    """Channel k of the depthwise convolution is computed from channel k of the expansion alone: both are kept or removed together.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: sites in execution order; tied: sets of sites that share their channels; free: sites that share with none.

    Examples
    --------
    >>> toy = depthwise_block()
    >>> toy.truth["free"]
    ['project']
    """
    return _structural(DepthwiseNet(), images, seed, ["expand", "depthwise", "project"], [{"expand", "depthwise"}])


def shared_activation(images: int = 64, seed: int = 0) -> Toy:
    """Two convolutions behind the same function F.relu: a shared activation couples nothing, and each has its own activation step.

    Parameters
    ----------
    images
        Number of images.
    seed
        Seed of the images.

    Returns
    -------
    Toy
        Its truth: sites in execution order; tied: sets of sites that share their channels; free: sites that share with none.

    Examples
    --------
    >>> toy = shared_activation()
    >>> toy.truth["tied"]
    []
    """
    return _structural(SharedActivationNet(), images, seed, ["first", "second"], [])


def _structural(model: nn.Module, images: int, seed: int, sites: list[str], tied: list[set[str]]) -> Toy:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():  # also norms: identity statistics would hide mistakes
                noise = torch.randn(value.shape, generator=source)
                scale = noise.abs() + 0.5 if name.endswith(("_bn.weight", "running_var")) else noise / max(1, value[0].numel()) ** 0.5
                value.copy_(scale)
    pixels = torch.randn(images, 3, 2 * SIDE, 2 * SIDE, generator=source)
    labels = torch.randint(3, (images,), generator=source)
    free = [site for site in sites if not any(site in group for group in tied)]
    return Toy(model.eval(), batches(pixels, labels), {"sites": sites, "tied": tied, "free": free})


TOYS = (
    exact_copy,
    dead_channel,
    independent_channels,
    suppressor_pair,
    label_channel,
    xor_pair,
    residual_pair,
    depthwise_block,
    shared_activation,
)
"""every toy, for tests that want them all"""
