"""Accuracy, loss and margin of networks on labeled images."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.data.batches import labeled_batches, on_device_of
from channelscope.data.splits import Split
from channelscope.errors import DataError, FormatError
from channelscope.network.graph import memory_format
from channelscope.network.module_state import channels_last, device_of, eval_mode, fingerprints, weights_hash
from channelscope.network.nest import logits_of
from channelscope.stats.tally import Tally, check_logits
from channelscope.storage import atomic_file

Precision: TypeAlias = Literal["float32", "bfloat16"]

Layouts: TypeAlias = dict[nn.Module, torch.memory_format]
"""network → the order in memory in which it is given its images, once it has been found"""


def evaluate(model: nn.Module, batches: Iterable) -> Tally:
    """Tally of a network over labeled images, in evaluation mode; the network is left as it was.

    Images without a label (None or −1) are left out, with a warning.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of batches: (images, labels, …) or dictionaries (data/batches.py).

    Returns
    -------
    Tally
        Sums of loss, accuracy and margin over the images.

    Raises
    ------
    DataError
        Without labeled images, for labels outside the network's classes, or for batches that cannot be read.
    InputError
        For an output that is not images × classes, such as a map.

    Examples
    --------
    >>> evaluate(nn.Flatten(), [(torch.eye(2).view(2, 2, 1, 1), [0, 0])]).accuracy
    0.5
    """
    return evaluate_each(model, batches)[0]


@torch.inference_mode()
def loss_and_accuracy(model: nn.Module, split: Split, precision: str = "float32") -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a network on a split; the network is left in evaluation mode.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    split
        Labeled images.
    precision
        float32, or bfloat16: the layers' products by autocast, with channels last in memory; the loss is float32.

    Returns
    -------
    tuple
        Mean cross-entropy in nats, and fraction of the images that are classified correctly.

    Raises
    ------
    InputError
        For an output that is not images × classes, such as a map.

    Examples
    --------
    >>> from channelscope.data.images import read_images
    >>> split = read_images("digits").test
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> _ = nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    >>> loss, accuracy = loss_and_accuracy(model, split)
    >>> round(loss, 3), round(accuracy * len(split)) == int((split.labels == 0).sum())
    (2.303, True)
    """
    model.eval()
    device = device_of(model)
    loss, correct = torch.zeros((), device=device, dtype=torch.float64), torch.zeros((), device=device, dtype=torch.int64)
    layouts = Layouts()
    with channels_last(model, precision == "bfloat16"):
        for x, y, _ in split:
            logits, y = _float_logits(model, x, precision, layouts), y.to(device)
            check_logits(logits, len(y))
            loss += F.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), int(correct) / len(split)


def logits_in(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits of a batch, computed as it is, or in bfloat16 by autocast with the channels of the batch last in memory.

    Parameters
    ----------
    model
        A network that returns logits (images, classes).
    x
        Images on the network's device.
    precision
        float32, which leaves types as they are, or bfloat16.

    Returns
    -------
    Tensor
        In the precision of the network's last layer.

    Examples
    --------
    >>> layer, x = nn.Conv2d(1, 2, 1), torch.ones(3, 1, 1, 1)
    >>> logits_in(layer, x, "float32").dtype, logits_in(layer, x, "bfloat16").dtype
    (torch.float32, torch.bfloat16)
    """
    low = precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        return logits_of(model(x.contiguous(memory_format=torch.channels_last) if low else x))


@torch.no_grad()
def evaluate_each(model: nn.Module, batches: Iterable, precision: Precision = "float32") -> tuple[Tally, np.ndarray]:
    """Tally of a network over labeled images, and whether each image is classified correctly.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left as it was.
    batches
        Labeled images.
    precision
        float32, or bfloat16: the layers' products by autocast, with channels last in memory; loss and margin are float32.

    Returns
    -------
    tuple
        Tally, and bool (images,).

    Raises
    ------
    DataError
        Without labeled images.

    Examples
    --------
    >>> from channelscope.zoo.toys import label_channel
    >>> toy = label_channel()
    >>> tally, correct = evaluate_each(toy.model, toy.batches)
    >>> correct.mean() == tally.accuracy == toy.truth["accuracy"]
    True
    """
    tally, correct, layouts = Tally(), [], Layouts()
    with eval_mode(model), channels_last(model, precision == "bfloat16"):
        for images, labels, _ in labeled_batches(batches):
            logits, found = _judged(model, images, labels, layouts, precision)
            tally = tally + found
            correct.append((logits.argmax(1).cpu() == labels.cpu()).numpy())
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally, np.concatenate(correct)


AGREEMENT = 1e-3
"""Largest difference of a mean loss or margin, in nats and in logits, up to which a network gives what it gave before."""


@dataclass(frozen=True)
class StoredEvaluation:
    """The tally of a network over labeled images, with what tells whether it still holds.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> stored = StoredEvaluation("abc", "def", Tally(1, 1, 0.5), Tally(2, 1, 1.5))
    >>> with TemporaryDirectory() as folder:
    ...     stored.save(Path(folder) / "evaluation.json")
    ...     StoredEvaluation.load(Path(folder) / "evaluation.json") == stored
    True
    """

    weights: str
    """`weights_hash` of the network"""
    images: str
    """fingerprint of all images, as the network is given them, and of their labels"""
    first: Tally
    """of the first batch, which is evaluated again: a network of the same weights may compute something else"""
    tally: Tally
    """of all images"""

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "StoredEvaluation":
        """What `save` wrote; FormatError if the file is damaged."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            first, tally = (Tally(**{name: float(value) for name, value in plain[part].items()}) for part in ("first", "tally"))
            return cls(str(plain["weights"]), str(plain["images"]), first, tally)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path} is no evaluation ({type(error).__name__}: {error}): delete it, and the network is evaluated"
            ) from error

    def agrees(self, first: Tally) -> bool:
        """Whether the network gives on the first batch what it gave before."""
        means = zip((self.first.loss, self.first.margin), (first.loss, first.margin), strict=True)
        return self.first.images == first.images and all(abs(before - now) <= AGREEMENT for before, now in means)


@torch.no_grad()
def evaluate_networks(
    networks: Mapping[str, nn.Module],
    batches: Iterable,
    stored: Path | None = None,
    after_batch: Callable[[], None] = lambda: None,
    weights: str | None = None,
) -> tuple[dict[str, Tally], bool]:
    """Tallies of several networks over labeled images, which are read once; and whether that of the first was taken from a file.

    Parameters
    ----------
    networks
        Name → network that returns logits, images × classes; they are left as they were.
    batches
        Labeled images; read again only where the file is of other images.
    stored
        File with the first network's tally. If it is of the same weights, gives the same on the first batch, and all images and
        labels have the same fingerprint, the first network is not evaluated on the others. Else the file is written anew.
    after_batch
        Called after each batch, such as to move a bar.
    weights
        `weights_hash` of the first network, where it is known.

    Returns
    -------
    tuple
        Name → tally, and whether the first network's was in the file.

    Raises
    ------
    DataError
        Without labeled images, as `evaluate`.
    FormatError
        If the file is damaged.

    Examples
    --------
    >>> from channelscope.zoo.toys import label_channel
    >>> toy = label_channel()
    >>> tallies, known = evaluate_networks({"original": toy.model, "again": toy.model}, toy.batches)
    >>> tallies["again"].accuracy == tallies["original"].accuracy == toy.truth["accuracy"], known
    (True, False)
    """
    name, model = next(iter(networks.items()))
    weights = weights or weights_hash(model)
    known = StoredEvaluation.load(stored) if stored is not None and stored.is_file() else None
    known = known if known is not None and known.weights == weights else None
    tallies, firsts, layouts = dict.fromkeys(networks, Tally()), Tally(), Layouts()
    digest = hashlib.sha256()
    with eval_mode(*networks.values()):
        for number, (images, labels, index) in enumerate(labeled_batches(batches)):
            digest.update(fingerprints(images, index).numpy().tobytes() + labels.cpu().numpy().tobytes())
            for each, network in networks.items():
                if each != name or known is None or not number:
                    tallies[each] = tallies[each] + _judged(network, images, labels, layouts)[1]
            if not number:
                firsts = tallies[name]
                known = known if known is not None and known.agrees(firsts) else None
            after_batch()
    if not tallies[name].images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    if known is not None and known.images == digest.hexdigest():
        return tallies | {name: known.tally}, True
    if known is not None:
        tallies[name] = evaluate(model, batches)
    if stored is not None:
        StoredEvaluation(weights, digest.hexdigest(), firsts, tallies[name]).save(stored)
    return tallies, False


def _float_logits(model: nn.Module, x: Tensor, precision: str, layouts: Layouts) -> Tensor:
    """`logits_in` of images in the faster order in memory, in float32 where they were computed in less."""
    x = on_device_of(x, model)
    if model not in layouts:
        layouts[model] = memory_format(model, x)
    logits = logits_in(model, x.contiguous(memory_format=layouts[model]), precision)
    return logits.float() if precision == "bfloat16" else logits


def _judged(model: nn.Module, images: Tensor, labels: Tensor, layouts: Layouts, precision: Precision = "float32") -> tuple[Tensor, Tally]:
    """Logits of a batch, in float32 where they were computed in less, and their tally."""
    logits = _float_logits(model, images, precision, layouts)
    return logits, Tally.of(logits, labels.to(logits.device if isinstance(logits, torch.Tensor) else "cpu"))


def bfloat16_gap(model: nn.Module, split: Split, images: int = 2000) -> float:
    """Accuracy of a network in bfloat16 minus that in float32, on the first images of a split.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left as it was.
    split
        Labeled images.
    images
        Number of images, all of them where there are fewer.

    Returns
    -------
    float
        A fraction.

    Examples
    --------
    >>> from channelscope import zoo
    >>> model, images = zoo.load("resnet20(width=2)", "digits")
    >>> abs(bfloat16_gap(model, images.test, 100)) < 0.1
    True
    """
    first = split.take(min(images, len(split)))
    return evaluate_each(model, first, "bfloat16")[0].accuracy - evaluate_each(model, first)[0].accuracy
