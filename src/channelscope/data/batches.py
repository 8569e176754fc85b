"""Reading of batches: images, labels and the index of each image, from whatever a data loader returns."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from channelscope.errors import DataError
from channelscope.types import Int

IMAGE_KEYS = ("pixel_values", "image", "images", "img", "pixels", "input", "inputs", "x")
LABEL_KEYS = ("labels", "label", "target", "targets", "fine_label", "class", "cls", "y")
INDEX_KEYS = ("index", "indices", "idx")
UNLABELED = -1
KINDS = "(images, labels), (images, labels, index), images alone, or a dictionary with pixel_values or image and labels or label"


@dataclass(frozen=True)
class Batch:
    """Images, labels and indices of one batch."""

    images: Tensor
    """floating point, images first"""
    labels: Int[Tensor, "images"] | None
    """class of each image, int64, −1 where it has none; None where no image of the batch has one"""
    index: Int[Tensor, "images"] | None
    """number of each image in its data set, int64; None where the batch does not say"""


def read_batch(batch: Any, labels: bool = True, maps: bool = False) -> Batch:
    """Images, labels and index of one batch, whatever a data loader made of it.

    Parameters
    ----------
    batch
        Images alone; a tuple or list of images, labels and index, of which the last two may be left out; or a dictionary.
        Images are a floating-point tensor or array with the images along the first axis. Labels are integers of any type,
        floating-point numbers that are whole, one row a class (one-hot), or a list in which None stands for no label.
        A third entry of text or paths is ignored, as is everything after the third.
    labels
        Whether labels are read and checked.
    maps
        Whether the images must be batch × channels × height × width.

    Returns
    -------
    Batch
        Tensors on the device of the images.

    Raises
    ------
    DataError
        For anything else, saying what was received.

    Examples
    --------
    >>> read_batch({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": [4, None]}).labels
    tensor([ 4, -1])
    """
    given, named, index = _entries(batch)
    images = _images(given)
    if labels and named is None and isinstance(batch, Mapping):
        _refuse_misspelled_labels(batch)
    if maps and images.dim() != 4:
        raise DataError(
            f"a batch of images must be batch × channels × height × width, received shape {tuple(images.shape)}"
            + ("; a data set is read through torch.utils.data.DataLoader" if images.dim() == 3 else "")
        )
    classes = _labels(named, len(images)) if labels else None
    return Batch(images, classes if classes is None else classes.to(images.device), _index(index, images))


def images_of(batch: Any) -> Tensor:
    """Images of one batch; labels and indices are not read.

    Parameters
    ----------
    batch
        As for `read_batch`.

    Returns
    -------
    Tensor
        Floating point, images along the first axis.

    Raises
    ------
    DataError
        For images that `read_batch` refuses.

    Examples
    --------
    >>> images_of((torch.zeros(2, 3, 8, 8), "any labels")).shape
    torch.Size([2, 3, 8, 8])
    """
    return _images(_entries(batch)[0])


def indexed_batches(batches: Iterable, labels: bool = True) -> Iterator[tuple[Tensor, Int[Tensor, "images"] | None, Int[Tensor, "images"]]]:
    """Batches as (images, labels, index), without the empty ones.

    Parameters
    ----------
    batches
        Any iterable of batches, each as for `read_batch`.
    labels
        Whether labels are read and checked; else they are None.

    Yields
    ------
    tuple
        Images (batch, channels, height, width), labels int64 (batch,) or None, and index int64 (batch,): the running count
        over all batches where no index is given.

    Raises
    ------
    DataError
        For a batch that `read_batch` refuses, images that are not batch × channels × height × width, or an index that some
        batches have and others lack.

    Examples
    --------
    >>> batch = (torch.zeros(2, 3, 8, 8), [0, 1])
    >>> [index.tolist() for _, _, index in indexed_batches([batch, batch])]
    [[0, 1], [2, 3]]
    """
    count, given = 0, None
    for batch in batches:
        content = read_batch(batch, labels, maps=True)
        images, index = content.images, content.index
        if given not in (None, index is not None):
            raise DataError("an index must come with every batch or with none: the first batches are one way, this one is the other")
        given = index is not None
        running = torch.arange(count, count + len(images), device=images.device)
        count += len(images)
        if len(images):
            yield images, content.labels, running if index is None else index


def labeled_batches(batches: Iterable) -> Iterator[tuple[Tensor, Int[Tensor, "images"], Int[Tensor, "images"]]]:
    """Labeled images of all batches as (images, labels, index); a warning at the end gives the number of unlabeled ones.

    Parameters
    ----------
    batches
        Any iterable of batches, each as for `read_batch`.

    Yields
    ------
    tuple
        Images, labels and index as of `indexed_batches`.

    Raises
    ------
    DataError
        Where no image has a label, and what `indexed_batches` raises.

    Examples
    --------
    >>> [labels.tolist() for _, labels, _ in labeled_batches([(torch.zeros(2, 3, 8, 8), [1, 0])])]
    [[1, 0]]
    """
    left = total = 0
    for images, labels, index in indexed_batches(batches):
        kept = some_labeled(images, labels, index)
        total += len(images)
        left += len(images) - (0 if kept is None else len(kept[0]))
        if kept is not None:
            yield kept
    if total and left == total:
        raise DataError(f"what is measured needs labels, and none of the {total:,} images has one")
    warn_unlabeled(left, total)


def some_labeled(
    images: Tensor, labels: Tensor | None, index: Tensor
) -> tuple[Tensor, Int[Tensor, "images"], Int[Tensor, "images"]] | None:
    """Images with a label, their labels and indices.

    Parameters
    ----------
    images
        Images along the first axis.
    labels
        Class of each image, −1 where it has none; None where no image has one.
    index
        Index of each image.

    Returns
    -------
    tuple or None
        Without the unlabeled images; None without labels.

    Examples
    --------
    >>> images, labels, index = some_labeled(torch.zeros(2, 1, 1, 1), torch.tensor([-1, 4]), torch.tensor([0, 1]))
    >>> labels.tolist(), index.tolist()
    ([4], [1])
    """
    if labels is None:
        return None
    known = labels != UNLABELED
    return (images, labels, index) if bool(known.all()) else (images[known], labels[known], index[known])


def warn_unlabeled(left: int, total: int) -> None:
    """Warn of images that were left out for want of a label.

    Parameters
    ----------
    left
        Number of images without a label; no warning if 0.
    total
        Number of all images.

    Examples
    --------
    >>> warn_unlabeled(0, 10)
    """
    if left:
        warnings.warn(f"{left:,} of {total:,} images have no label and were left out", UserWarning, stacklevel=4)


def on_device_of(images: Tensor, model: nn.Module) -> Tensor:
    """Images on the device and in the floating-point type of a network's parameters.

    Parameters
    ----------
    images
        Any tensor.
    model
        A network; images stay as they are if it has no parameters.

    Returns
    -------
    Tensor
        The images, copied only where device or type differ.

    Examples
    --------
    >>> on_device_of(torch.zeros(1), nn.Linear(1, 1).double()).dtype
    torch.float64
    """
    like = next(model.parameters(), images)
    return images.to(like.device, like.dtype if like.is_floating_point() else images.dtype)


def _entries(batch: Any) -> tuple[Any, Any, Any]:
    """Images, labels and index of a batch, not yet read; None for what it lacks."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch, None, None
    if isinstance(batch, Mapping):
        return _keyed(batch)
    if isinstance(batch, tuple | list) and batch:
        given, *rest = batch
        return given, rest[0] if rest else None, rest[1] if len(rest) > 1 else None
    raise DataError(f"expected a batch as {KINDS}; received {_described(batch)}")


def _keyed(batch: Mapping) -> tuple[Any, Any, Any]:
    keys = {str(key): key for key in batch}
    images, labels, index = (next((keys[name] for name in names if name in keys), None) for names in (IMAGE_KEYS, LABEL_KEYS, INDEX_KEYS))
    if images is None:
        raise DataError(f"a batch that is a dictionary needs its images as {_any_of(IMAGE_KEYS)}; received the keys {', '.join(keys)}")
    return batch[images], None if labels is None else batch[labels], None if index is None else batch[index]


def _refuse_misspelled_labels(batch: Mapping) -> None:
    """Refuse a dictionary without labels that has a key much like one for labels."""
    near = [str(key) for key in batch if str(key) not in LABEL_KEYS and get_close_matches(str(key), LABEL_KEYS, 1)]
    if near:
        raise DataError(f"a batch that is a dictionary needs its labels as {_any_of(LABEL_KEYS)}; received the key {near[0]}")


def _images(given: Any) -> Tensor:
    if isinstance(given, tuple | list) and len(given) == 1 and isinstance(given[0], Tensor | np.ndarray):
        (given,) = given
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiub":
        given = torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32 if given.dtype.kind == "f" else given.dtype))
    if not isinstance(given, Tensor):
        hint = "; put them together with torch.stack" if isinstance(given, list | tuple) else "; turn them into tensors first"
        raise DataError(f"the images of a batch must be a tensor or an array of floating-point numbers, received {_described(given)}{hint}")
    if not given.is_floating_point():
        raise DataError(
            f"the images of a batch must be floating-point numbers, received {_described(given)}: divide pixels by 255 and normalize them "
            "as in training"
        )
    if not given.dim():
        raise DataError("the images of a batch must have the images along the first axis, received one number")
    return given


def _labels(given: Any, count: int) -> Tensor | None:
    if given is None:
        return None
    if isinstance(given, list | tuple):
        given = [UNLABELED if each is None else each for each in given]
    values = _numbers(given, "labels")
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if len(values) != count or values.dim() not in (1, 2):
        hint = "; one label for every position, as in segmentation, is not supported" if values.dim() > 2 else ""
        raise DataError(f"{count} images need as many labels, one class for each, received {_described(values)}{hint}")
    if values.dim() == 2:
        values = _one_hot(values)
    if values.is_floating_point() and not bool((values == values.round()).all()):
        raise DataError(f"labels must be whole numbers, the class of each image, received {_first_values(values)}")
    values = values.long()
    return None if count and bool((values == UNLABELED).all()) else values


def _one_hot(values: Tensor) -> Tensor:
    """The class of each row that has a one in one place and zeros elsewhere."""
    ones = (values == 1).sum(1)
    if bool((ones != 1).any()) or bool(((values != 0) & (values != 1)).any()):
        row = values[(ones != 1) | ((values != 0) & (values != 1)).any(1)][0]
        raise DataError(
            f"labels with one number per class must be one 1 and zeros for each image, received {_first_values(row)}: "
            "several labels or probabilities for one image are not supported"
        )
    return values.argmax(1)


def _index(given: Any, images: Tensor) -> Tensor | None:
    """The index of each image; None for text, paths and whatever else names images."""
    if given is None or _holds_names(given):
        return None
    values = _numbers(given, "index")
    if values.is_floating_point() or values.dtype == torch.bool:
        raise DataError(f"the third entry of a batch must be the index of each image in whole numbers, received {_described(values)}")
    if values.shape != (len(images),):
        raise DataError(f"{len(images)} images need as many index, received shape {tuple(values.shape)}")
    return values.long().to(images.device)


def _holds_names(given: Any) -> bool:
    if isinstance(given, str | Path | Mapping):
        return True
    if isinstance(given, np.ndarray):
        return given.dtype.kind in "USO"
    return isinstance(given, list | tuple) and all(isinstance(each, str | bytes | Path | Mapping) or each is None for each in given)


def _numbers(given: Any, what: str) -> Tensor:
    """A tensor of what was given; DataError if it holds anything but numbers."""
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the {what} of a batch must be numbers, one for each image, received {_described(given)}") from error
    if values.is_complex() or not values.dim():
        raise DataError(f"the {what} of a batch must be numbers, one for each image, received {_described(given)}")
    return values


def _first_values(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.tolist()[:4]) + (", …" if len(values) > 4 else "")


def _any_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _described(value: Any) -> str:
    """Type and shape of a value, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        inner = f" of {len(value)}, the first a {type(value[0]).__name__}" if value else " of nothing"
        return f"a {type(value).__name__}{inner}"
    return f"a {type(value).__name__}" + (f" ({value})" if isinstance(value, str | int | float) else "")


def batch_count(batches: Iterable) -> int | None:
    """Number of batches, if it is known without reading them.

    Returns
    -------
    int or None
        The length of a list, tuple, loader or split; None for other iterables.

    Examples
    --------
    >>> batch_count([1, 2, 3]), batch_count(iter([1, 2, 3]))
    (3, None)
    """
    if isinstance(batches, list | tuple | DataLoader):
        return len(batches)
    size = vars(batches).get("batch_size") if isinstance(batches, Sized) else None
    return -(-len(batches) // size) if size else None  # type: ignore[arg-type]
