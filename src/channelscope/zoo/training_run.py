"""Schedule, Epoch and History: how long and how a network is trained, and the log and folder of a training run."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from channelscope.display import Facts, Shown
from channelscope.errors import FormatError, InputError, check_choice, near_paths
from channelscope.storage import atomic_file

OptimizerName: TypeAlias = Literal["sgd", "adamw"]

MOMENTUM = 0.9
"""Of both optimizers: Nesterov's, and β₁ of AdamW."""

WEIGHT_DECAY: Mapping[OptimizerName, float] = {"sgd": 5 / 10_000, "adamw": 0.05}
"""SGD's is a part of the gradient of all parameters, AdamW's is taken off the weights with two dimensions or more alone."""

WARMUP_START = 1 / 25
"""Learning rate of the first step of a warm-up, as a fraction of the largest."""


def usual_optimizer(model: nn.Module) -> OptimizerName:
    """adamw for a network that is normalized by LayerNorm or RMSNorm alone, as transformers and ConvNeXts are, else sgd.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    str
        Name of the optimizer.

    Examples
    --------
    >>> usual_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))), usual_optimizer(nn.BatchNorm2d(2))
    ('adamw', 'sgd')
    """
    norms = {type(module).__name__.lower() for module in model.modules()}
    layers = any("layernorm" in name or "rmsnorm" in name for name in norms)
    return "adamw" if layers and not any("batchnorm" in name or "groupnorm" in name for name in norms) else "sgd"


@dataclass(frozen=True)
class Schedule:
    """Optimizer, cosine learning rate after a warm-up, random crops and flips.

    Examples
    --------
    >>> Schedule(lr=0.1).rate(0.5), Schedule(lr=0.1, warmup=0.5).rate(0.75)
    (0.05, 0.05)

    References
    ----------
    The reference training of small-image networks; Loshchilov & Hutter 2017 for the cosine, 2019 for AdamW; Goyal et al. 2017 for the
    warm-up; Szegedy et al. 2016 for smoothed labels; DeVries & Taylor 2017 for erased squares; Touvron et al. 2019 for training on
    smaller images.
    """

    epochs: int = 200
    """passes over the training images"""
    lr: float = 0.1
    """largest learning rate; it falls to zero along half a cosine"""
    batch_size: int = 128
    """images per step, at most; the images of an epoch are divided evenly"""
    pad: int = 4
    """black pixels added on every side before a random crop back to the image's size; 0 for no cropping"""
    flip: bool = True
    """whether half of the images are mirrored left to right"""
    every: int = 1
    """epochs between checkpoints; the initialization and the last epoch are always kept"""
    seed: int = 0
    """order of the images, crops, flips, erased squares and dropout"""
    warmup: float = 0.0
    """fraction of all steps at the beginning in which the learning rate rises along a line, from 1/25 of `lr`"""
    smoothing: float = 0.0
    """probability that the loss's target gives to all classes alike instead of to the label"""
    erase: float = 0.0
    """side of the black square on each image, as a fraction of the image's shorter side; 0 for none"""
    small: float = 0.0
    """fraction of the epochs, at the beginning, in which images have half their height and width; the last epoch never is one"""
    optimizer: OptimizerName = "sgd"
    """sgd: Nesterov momentum .9 and weight decay 5/10,000; adamw: β of .9 and .999, and weight decay .05 of all but biases, scales and
    shifts"""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range and for another optimizer."""
        check_choice("optimizer", self.optimizer, WEIGHT_DECAY)
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
        for name, value in (("warmup", self.warmup), ("smoothing", self.smoothing), ("erase", self.erase), ("small", self.small)):
            if not 0 <= value < 1:
                raise InputError(f"expected {name} of at least 0 and less than 1, received {value}")

    def rate(self, progress: float) -> float:
        """Learning rate after a fraction of all steps.

        Parameters
        ----------
        progress
            0 at the first step, 1 at the end.

        Returns
        -------
        float
            During the warm-up on a line from lr/25 to lr; afterwards lr times half of 1 + cos(π p), where p goes from 0 to 1.
        """
        if progress < self.warmup:
            return self.lr * (WARMUP_START + (1 - WARMUP_START) * progress / self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))

    def shrunk(self, epoch: int) -> bool:
        """Whether the images of an epoch have half their height and width; epochs are counted from 1."""
        return epoch <= min(round(self.small * self.epochs), self.epochs - 1)

    def keeps(self, epoch: int) -> bool:
        """Whether the checkpoint after an epoch is kept; epoch 0 is the initialization."""
        return epoch % self.every == 0 or epoch == self.epochs


FINETUNE_LR_DIVISOR = 10
"""Divisor of the learning rate for fine-tuning."""

DIGITS = Schedule(epochs=12, lr=0.1, batch_size=64, pad=1, flip=False)
"""8×8 digits in a quarter of a minute: crops move a digit by one pixel at most, and digits are not mirrored"""

LEARNING_RATES: Mapping[OptimizerName, Mapping[str, float]] = {
    "sgd": {"vgg": 0.05, "mobilenet": 0.03, "alexnet": 0.01, "squeezenet": 0.01, "convnext": 0.01},
    "adamw": {"convnext": 0.002},
}
"""optimizer → learning rate by the word in the network's name"""

USUAL_RATES: Mapping[OptimizerName, float] = {"sgd": Schedule.lr, "adamw": 0.001}
"""Learning rate of other networks. On the digits a ViT of six blocks has 43 % of the test images right after twelve epochs at .001, 36 at
.0005, 28 at .0002 and 20 at .002, and 22 with SGD at .03 (one run each)."""

STEADY, WARMUP = 0.03, 0.1
"""Largest default rate, and default warm-up, of networks that are not the zoo's: at .1 without a warm-up torchvision's ResNet-18 stays at
chance on 1,440 pictures of ten classes, at .03 it learns."""

RECIPES: dict[str, dict[str, float]] = {
    "resnet18": {"lr": 0.2, "small": 0.4},
    "vgg16_bn": {"lr": 0.1},
    "mobilenet_v2": {"lr": 0.1, "erase": 0.0},
}
"""the zoo's networks that are trained from scratch in few epochs → largest rate, and what differs from `FAST`: small images first
where they help (VGG-16 has five poolings, too many for half the size; MobileNetV2 took as long and learned less), and no erased
squares where training accuracy hardly exceeds test accuracy"""

FAST = {"epochs": 30, "warmup": 0.15, "smoothing": 0.1, "erase": 0.25}
"""what the recipes share"""


def default_schedule(network: str, data: str, optimizer: OptimizerName = "sgd") -> Schedule:
    """Default schedule for training a network on a data set.

    Parameters
    ----------
    network
        Name of the network.
    data
        Name of the data set.
    optimizer
        sgd or adamw; `usual_optimizer` says which one a network is usually trained with.

    Returns
    -------
    Schedule
        Twelve epochs for digits; 30 with a warm-up, smoothed labels and erased squares for resnet18, vgg16_bn and mobilenet_v2; else
        200. The learning rate depends on the optimizer and the architecture; that of networks of other packages or one's own, such as
        torchvision:resnet18, is .03 at most and begins with a warm-up, as AdamW's always does.

    Raises
    ------
    InputError
        For another optimizer.

    Examples
    --------
    >>> default_schedule("vgg16_bn", "cifar10").lr, default_schedule("resnet20", "digits").epochs
    (0.1, 12)
    >>> found = default_schedule("torchvision:resnet18", "folder:photos")
    >>> found.lr, found.warmup
    (0.03, 0.1)
    """
    plain = _plain_schedule(network, data, optimizer)
    recipe = RECIPES.get(network.partition("(")[0])
    if recipe is None or data == "digits":
        gentle = optimizer == "adamw" or ":" in network
        return replace(plain, lr=min(plain.lr, STEADY), warmup=WARMUP) if gentle else plain
    found = replace(plain, **(FAST | recipe))
    return found if optimizer == "sgd" else replace(found, lr=plain.lr)


def _plain_schedule(network: str, data: str, optimizer: OptimizerName) -> Schedule:
    """Cosine from the learning rate of the optimizer and the architecture, nothing else."""
    schedule = replace(DIGITS if data == "digits" else Schedule(), optimizer=optimizer)
    rates = LEARNING_RATES[optimizer].items()
    return replace(schedule, lr=next((rate for word, rate in rates if word in network.lower()), USUAL_RATES[optimizer]))


def finetuning_schedule(
    network: str, data: str, epochs: int, seed: int = 0, slower: float = FINETUNE_LR_DIVISOR, optimizer: OptimizerName = "sgd"
) -> Schedule:
    """Default schedule for fine-tuning a trained network: a cosine from a smaller learning rate, and no intermediate checkpoints.

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
        Divisor of the usual learning rate.
    optimizer
        As for `default_schedule`.

    Returns
    -------
    Schedule
        The schedule.

    Raises
    ------
    InputError
        For another optimizer.

    Examples
    --------
    >>> finetuning_schedule("resnet20", "cifar10", epochs=5).lr
    0.01
    """
    schedule = _plain_schedule(network, data, optimizer)
    return replace(schedule, epochs=epochs, lr=schedule.lr / slower, every=epochs, seed=seed)


FORMAT = 1

LOG = "training.json"

FEW = 100
"""Validation images from which on the best epoch is kept whatever the last one's accuracy is."""

Z = 1.96

TRAINED = "trained.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images; epoch 0 is the initialization and has validation numbers only."""

    epoch: int
    """0 for the initialization, then 1, 2, …"""
    lr: float
    """learning rate of the epoch's last step"""
    train_loss: float
    """mean loss in nats over the augmented training images, in training mode, during the epoch: cross-entropy, with the schedule's
    smoothing of the labels"""
    train_accuracy: float
    """fraction of them right, in training mode, during the epoch"""
    validation_loss: float
    """mean cross-entropy in nats over the validation images, after the epoch"""
    validation_accuracy: float
    """fraction of the validation images right, after the epoch"""
    seconds: float
    """wall-clock time, of all parts of an epoch that was interrupted"""


@dataclass(frozen=True, repr=False)
class History(Shown):
    """A training run: its folder, its epochs, and the test accuracy that is measured once, at its end."""

    folder: Path
    """where the checkpoints are"""
    network: str
    """the network's name"""
    start: str
    """`weights_hash` of the initialization"""
    settings: Mapping[str, Any]
    """the schedule, the precision and the images, as plain data"""
    epochs: tuple[Epoch, ...]
    """epochs 0, 1, …, in order"""
    test_loss: float = math.nan
    """mean cross-entropy in nats of the kept epoch's weights on the test images; nan until the run is finished"""
    test_accuracy: float = math.nan
    """fraction of the test images the kept epoch's weights get right; nan until the run is finished"""
    test_images: int = 0
    """number of test images; 0 until the run is finished"""

    def facts(self) -> Facts:
        """The test accuracy, the epoch that is kept, and the first and last epochs."""
        finished = f"test accuracy {self.test_accuracy:.1%} of {self.test_images:,} images" if self.test_images else "not finished"
        rows = [("folder", str(self.folder))]
        if self.epochs:
            rows.append(("kept", f"epoch {self.kept}"))
        for each in self.epochs[1:]:
            validated = f"validation accuracy {each.validation_accuracy:.1%}"
            rows.append((f"epoch {each.epoch}", f"training loss {each.train_loss:.3f}, {validated}, {each.seconds:.1f} s"))
        return f"History({self.network}: {max(len(self.epochs) - 1, 0)} epochs, {finished})", rows

    @property
    def precision(self) -> str:
        """Precision of the layers' products during training: float32 or bfloat16; empty in logs that do not say."""
        return self.settings.get("precision", "")

    @property
    def best(self) -> int:
        """The epoch with the highest validation accuracy, the earliest of equals."""
        return max(self.epochs, key=lambda epoch: (epoch.validation_accuracy, -epoch.epoch)).epoch

    @property
    def kept(self) -> int:
        """The epoch whose weights a finished run leaves: the best, or the last where too few validation images tell the two apart.

        Fewer than 100 validation images tell two epochs apart if their accuracies differ by more than 1.96 standard errors of the
        difference of two binomial proportions.
        """
        count = self.settings.get("images", {}).get("splits", {}).get("validation", FEW)
        best, last = self.epochs[self.best].validation_accuracy, self.epochs[-1].validation_accuracy
        middle = (best + last) / 2
        apart = best - last > Z * math.sqrt(2 * middle * (1 - middle) / max(count, 1))
        return self.best if count >= FEW or apart else self.epochs[-1].epoch

    @property
    def trained(self) -> Path:
        """Weights of the epoch that is kept; of the best one so far until the run is finished."""
        return self.folder / TRAINED

    def checkpoint(self, epoch: int) -> Path:
        """Weights after an epoch; 0 is the initialization."""
        return self.folder / f"epoch_{epoch:03d}.safetensors"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Epoch → weights, for the epochs whose weights are on disk."""
        return {record.epoch: path for record in self.epochs if (path := self.checkpoint(record.epoch)).exists()}

    def write(self) -> None:
        """Put the log into the folder; the file appears whole or not at all."""
        data = {**asdict(self), "format": FORMAT, "best": self.best, "kept": self.kept}
        del data["folder"]
        with atomic_file(self.folder / LOG) as half:
            half.write_text(json.dumps(_without_nan(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "History":
        """The log a training run left in its folder.

        Raises
        ------
        FormatError
            If there is none, or it is damaged or of another version.
        """
        path = Path(folder) / LOG
        if not path.is_file():
            raise FormatError(f"{path}: expected the log of a training run, found nothing there{near_paths(path)}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise FormatError(
                    f"{path}: expected format {FORMAT}, found {data['format']}; train again, or use the version that wrote it"
                )
            epochs = tuple(Epoch(**{name: _number(value) for name, value in record.items()}) for record in data["epochs"])
            test = {name: _number(data[name]) for name in ("test_loss", "test_accuracy", "test_images")}
            return cls(path.parent, data["network"], data["start"], data["settings"], epochs, **test)
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: damaged log of a training run ({type(error).__name__}: {error})") from error


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _without_nan(value: Any) -> Any:
    """JSON has no nan: undefined numbers are written as null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
