"""History: the log of a training run, and its folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from channelscope.errors import FormatError
from channelscope.storage import atomic_file

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


@dataclass(frozen=True)
class History:
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
            raise FormatError(f"{path}: expected the log of a training run, found nothing there")
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
