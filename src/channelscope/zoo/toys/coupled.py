"""Toys for structure: channels that can only be removed together, on images of noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.zoo.toys.toy import SIDE, Toy, batches


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
