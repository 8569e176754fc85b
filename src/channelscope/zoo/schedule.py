"""Schedule: how long and how a network is trained, and the default schedules."""

import math
from dataclasses import dataclass, replace

from channelscope.errors import InputError

MOMENTUM = 0.9

WEIGHT_DECAY = 5 / 10_000


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum .9 and weight decay 5/10,000, cosine learning rate, random crops and flips.

    Examples
    --------
    >>> Schedule(lr=0.1).rate(0.5)
    0.05

    References
    ----------
    The reference training of small-image networks; Loshchilov & Hutter 2017 for the cosine.
    """

    epochs: int = 200
    """passes over the training images"""
    lr: float = 0.1
    """learning rate of the first step; it falls to zero along half a cosine"""
    batch_size: int = 128
    """images per step, at most; the images of an epoch are divided evenly"""
    pad: int = 4
    """black pixels added on every side before a random crop back to the image's size; 0 for no cropping"""
    flip: bool = True
    """whether half of the images are mirrored left to right"""
    every: int = 1
    """epochs between checkpoints; the initialization and the last epoch are always kept"""
    seed: int = 0
    """order of the images, crops, flips and dropout"""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range."""
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 2),
            ("pad", self.pad, 0),
            ("every", self.every, 1),
        ):
            if value < least:
                raise InputError(f"expected {name} of at least {least}, received {value}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"expected a positive learning rate, received {self.lr}")

    def rate(self, progress: float) -> float:
        """Learning rate after a fraction of all steps.

        Parameters
        ----------
        progress
            0 at the first step, 1 at the end.

        Returns
        -------
        float
            `lr` times half of 1 + cos(π progress).
        """
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def keeps(self, epoch: int) -> bool:
        """Whether the checkpoint after an epoch is kept; epoch 0 is the initialization."""
        return epoch % self.every == 0 or epoch == self.epochs


FINETUNE_LR_DIVISOR = 10
"""Divisor of the learning rate for fine-tuning."""

DIGITS = Schedule(epochs=12, lr=0.1, batch_size=64, pad=1, flip=False)
"""8×8 digits in a quarter of a minute: crops move a digit by one pixel at most, and digits are not mirrored"""

LEARNING_RATES = {"vgg": 0.05, "mobilenet": 0.01, "alexnet": 0.01, "squeezenet": 0.01, "convnext": 0.01}
"""learning rate by the word in the network's name; residual networks and the rest take .1"""


def default_schedule(network: str, data: str) -> Schedule:
    """Default schedule for training a network on a data set.

    Parameters
    ----------
    network
        Name of the network.
    data
        Name of the data set.

    Returns
    -------
    Schedule
        Twelve epochs for digits, else 200; the learning rate depends on the architecture.

    Examples
    --------
    >>> default_schedule("vgg16_bn", "cifar10").lr, default_schedule("resnet20", "digits").epochs
    (0.05, 12)
    """
    schedule = DIGITS if data == "digits" else Schedule()
    rate = next((rate for word, rate in LEARNING_RATES.items() if word in network.lower()), schedule.lr)
    return replace(schedule, lr=rate)


def finetuning_schedule(network: str, data: str, epochs: int, seed: int = 0, slower: float = FINETUNE_LR_DIVISOR) -> Schedule:
    """Default schedule for fine-tuning a trained network: a smaller learning rate, and no intermediate checkpoints.

    Parameters
    ----------
    network
        Name of the network.
    data
        Name of the data set.
    epochs
        Number of epochs.
    seed
        Order of the images, crops, flips and dropout.
    slower
        Divisor of the default learning rate.

    Returns
    -------
    Schedule
        The schedule.

    Examples
    --------
    >>> finetuning_schedule("resnet20", "cifar10", epochs=5).lr
    0.01
    """
    schedule = default_schedule(network, data)
    return replace(schedule, epochs=epochs, lr=schedule.lr / slower, every=epochs, seed=seed)
