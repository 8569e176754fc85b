"""What commands say: first lines about the network, and messages of the library in the words of the command line."""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich.text import Text
from torch import nn

from channelscope.data.images import ImageSplits
from channelscope.errors import FAILURES, ChannelscopeError, no_lack_of_memory
from channelscope.network.module_state import restored_state, zero_batch
from channelscope.progress import console, format_seconds

CALLED = re.compile(r"(\w\([^()]*\))")
"""a name with its arguments, such as that of a network: resnet20(width=2)"""


def announce_network(title: str, place: str, model: nn.Module, images: ImageSplits) -> None:
    """Say which network runs where, which images there are, and how long a pass over them takes.

    Parameters
    ----------
    title
        Name of the network.
    place
        Its device.
    model
        The network, on that device.
    images
        Its images.

    Examples
    --------
    >>> from channelscope import zoo
    >>> model, images = zoo.load("resnet20(width=2)", data="digits")
    >>> announce_network("resnet20(width=2)", "cpu", model, images)
    """
    parameters = sum(each.numel() for each in model.parameters())
    splits = ", ".join(f"{len(split):,} {split.name}" for split in (images.calibration, images.validation, images.test) if len(split))
    console.print(
        f"{title}: {parameters:,} parameters, on {place_in_words(place)}; {images.source.data}: {splits} images of "
        f"{'×'.join(map(str, images.image_shape))}{_duration(model, images)}"
    )


PILOT, PILOTS = 2, 4
"""images of a pass that is timed, and passes, of which the least time counts; no more of them after a second"""


def _duration(model: nn.Module, images: ImageSplits) -> str:
    """How long a pass over the calibration images takes, by the fastest of some passes of few; empty where the network does not run."""
    times: list[float] = []
    try:
        with restored_state(model), torch.no_grad():
            few = zero_batch(model, images.image_shape).repeat(PILOT, 1, 1, 1)
            while len(times) < PILOTS and sum(times) < 1:
                begun = time.monotonic()
                model(few)
                if few.is_cuda:
                    torch.cuda.synchronize(few.device)
                times.append(time.monotonic() - begun)
    except (*FAILURES, ChannelscopeError) as error:  # said where the command needs the pass
        no_lack_of_memory(error)
        return ""
    return f"; a pass over the calibration images takes about {format_seconds(min(times) / PILOT * len(images.calibration))}"


def place_in_words(place: str) -> str:
    """The device with what a reader knows it by.

    Examples
    --------
    >>> place_in_words("mps")
    'mps'
    """
    if place.startswith("cuda"):
        return f"{place} ({torch.cuda.get_device_name(place)})"
    return f"{place} ({torch.get_num_threads()} threads)" if place == "cpu" else place


def remark(said: str) -> None:
    """Print what a user should know of a result.

    Examples
    --------
    >>> remark("400 images are few")
    """
    console.print(Text.assemble(("note ", "yellow"), said))


@contextmanager
def warnings_as_remarks(wording: Callable[[str], str]) -> Iterator[None]:
    """Context in which warnings to users are printed as remarks; those to programmers are shown as they were.

    Parameters
    ----------
    wording
        A message in the words of the command line.

    Examples
    --------
    >>> with warnings_as_remarks(str):
    ...     pass
    """
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            remark(wording(str(message)))
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def in_flags(message: str, names: Mapping[str, str], further: Mapping[str, str] | None = None) -> str:
    """A message with flags in the place of Python's names of parameters; what stands in brackets behind a name stays as it is.

    Parameters
    ----------
    message
        The message.
    names
        Name of a parameter → its flag, without the dashes.
    further
        The same for names that mean a parameter only where a value is given for them, `name=value`.

    Returns
    -------
    str
        The message.

    Examples
    --------
    >>> in_flags("pass mean and std, or shrinkage='oas'", {"mean": "mean", "std": "std", "shrinkage": "shrinkage"})
    'pass --mean and --std, or --shrinkage oas'
    >>> in_flags("expected batch_size of at least 1", {"batch_size": "batch-size"})
    'expected --batch-size of at least 1'
    """
    given = {**(further or {}), **names}
    known, valued = ("|".join(sorted(each, key=len, reverse=True)) or "(?!)" for each in (names, given))
    several = "|".join(name for name in names if "_" in name) or "(?!)"
    patterns = (
        (rf"^({known}): (?=expected|\d)", lambda found: f"--{names[found[1]]}: "),
        (rf"(?<![\w/.-])({valued})=True\b", lambda found: f"--{given[found[1]]}"),
        (rf"(?<![\w/.-])({valued})=(['\"]?)([^'\"\s]*)\2", lambda found: f"--{given[found[1]]} {found[3]}".rstrip()),
        (rf"\bpass ({known}) and ({known})\b", lambda found: f"pass --{names[found[1]]} and --{names[found[2]]}"),
        (rf"\bpass (another )?({known})\b(?=[,;:.]|$| to | or )", lambda found: f"pass {found[1] or ''}--{names[found[2]]}"),
        (rf"(?<![\w/.'-])({several})(?![\w/.'-])", lambda found: f"--{names[found[1]]}"),
        (r"(--[\w-]+) or \1\b", lambda found: found[1]),
    )
    parts = CALLED.split(message)
    for pattern, flag in patterns:
        parts[::2] = [re.sub(pattern, flag, part) for part in parts[::2]]
    return "".join(parts)
