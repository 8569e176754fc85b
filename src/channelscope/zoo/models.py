"""Networks by name: the zoo's own, torchvision's, timm's, and classes of a Python file."""

import ast
import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelscope.data.decoding import ResizeCrop
from channelscope.data.images import IMAGENET, SMALL_IMAGE
from channelscope.data.torchvision_cpu import models
from channelscope.errors import InputError, UserCode
from channelscope.zoo.architectures import ARCHITECTURES, SmallResNet, set_input_channels

RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}

FIXED_SIZE = ("vit", "swin", "maxvit")  # torchvision families that take one image size only

CLASS_WORDS = ("num_classes", "classes", "n_classes")

CHANNEL_WORDS = ("in_chans", "in_channels", "channels", "in_planes")


@dataclass(frozen=True)
class InputSpec:
    """Preprocessing of images that a network expects.

    Examples
    --------
    >>> InputSpec().normalization is None
    True
    """

    fit: ResizeCrop | None = None
    """resizing and cropping; None if the network takes any size"""
    enlarge: bool = False
    """whether the network takes this size only, so that smaller images are enlarged"""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """mean and standard deviation of its pixels; None for those of the data set"""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a network of the zoo, in `model.card`.

    Examples
    --------
    >>> model_info(build("resnet20", classes=5)).classes
    5
    """

    name: str
    """name that `build` was called with, options included"""
    classes: int
    """number of classes"""
    channels: int
    """channels of its input images"""
    intake: InputSpec
    """preprocessing of its images"""


def network_names() -> tuple[str, ...]:
    """Names of the zoo's own networks; `build` takes `timm:NAME`, `torchvision:NAME` and `file.py:Class` too.

    Returns
    -------
    tuple
        The names.

    Examples
    --------
    >>> network_names()[:2]
    ('resnet20', 'resnet32')
    """
    return (*RESNETS, *ARCHITECTURES)


def build(name: str, classes: int = 10, channels: int = 3, image_size: int = 32, seed: int = 0) -> nn.Module:
    """Untrained network in evaluation mode, with its description in `model.card`.

    Parameters
    ----------
    name
        One of `network_names()`, `timm:NAME`, `torchvision:NAME` (unmodified), or `path/to/file.py:Class` (the file is run);
        keyword arguments of the constructor may follow, as in `resnet20(width=8)` or `nets.py:Small(depth=20)`.
    classes
        Number of classes.
    channels
        Channels of the images.
    image_size
        Side of the images in pixels; for at most 64 pixels the network gets a stem for small images (zoo/architectures.py).
    seed
        Seed of the initialization; the global generator is left as it was.

    Returns
    -------
    nn.Module
        The network.

    Raises
    ------
    InputError
        If there is no such network, or its constructor refuses the arguments.

    Examples
    --------
    >>> build("resnet20(width=4)", classes=7).fc
    Linear(in_features=16, out_features=7, bias=True)
    """
    plain, options = _parse(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with UserCode(InputError, f"network '{name}': cannot be made for {classes} classes and {channels} channels"):
            model, intake = _build(plain, options, classes, channels, image_size)
    model.__dict__["card"] = ModelInfo(name, classes, channels, intake)
    return model.eval()


def model_info(model: nn.Module) -> ModelInfo:
    """Description of a network that `build` made.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    ModelInfo
        Its name, classes, channels and preprocessing.

    Raises
    ------
    InputError
        If the network was made elsewhere.

    Examples
    --------
    >>> model_info(build("resnet20", channels=1)).channels
    1
    """
    info = vars(model).get("card")
    if not isinstance(info, ModelInfo):
        raise InputError(f"expected a network made by zoo.build or zoo.load, received a {type(model).__name__} without a card")
    return info


def _build(name: str, options: dict[str, Any], classes: int, channels: int, size: int) -> tuple[nn.Module, InputSpec]:
    kind, _, rest = name.partition(":")
    if kind == "timm":
        return _timm(rest, options, classes, channels)
    if kind == "torchvision":
        return _torchvision(rest, options, classes)
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        return _call_constructor(_load_attribute(Path(path).expanduser(), attribute), options, classes, channels), InputSpec()
    if name in RESNETS:
        return SmallResNet(RESNETS[name], classes, channels, **options), InputSpec()
    if name not in ARCHITECTURES:
        known = " ".join(network_names())
        raise InputError(f"unknown network '{name}': expected timm:NAME, torchvision:NAME, path/to/file.py:Class, or one of {known}")
    build, adapt = ARCHITECTURES[name]
    model = build(num_classes=classes, **options)
    if size <= SMALL_IMAGE:
        adapt(model, channels, size)
        return model, InputSpec()
    set_input_channels(model, channels)
    return model, InputSpec(ResizeCrop((224, 224), 0.875), normalization=IMAGENET if channels == 3 else None)


def _timm(name: str, options: dict[str, Any], classes: int, channels: int) -> tuple[nn.Module, InputSpec]:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name}: {error.name} is not installed; pip install 'channelscope[timm]'") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:5])
        raise InputError(f"timm has no network '{name}'" + (f"; it has {near}" if near else ""))
    model = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options)
    config: Any = model.pretrained_cfg
    fit = ResizeCrop(tuple(config["input_size"][1:]), config["crop_pct"], config["interpolation"])
    own = (tuple(config["mean"]), tuple(config["std"])) if channels == 3 else None
    return model, InputSpec(fit, bool(config["fixed_input_size"]), own)


def _torchvision(name: str, options: dict[str, Any], classes: int) -> tuple[nn.Module, InputSpec]:
    names = models.list_models(module=models)
    if name not in names:
        raise InputError(f"torchvision has no classification network '{name}'; it has {', '.join(names[:5])}, …")
    config: Any = models.get_model_weights(name)["DEFAULT"].transforms()
    side = config.crop_size[0]
    fit = ResizeCrop((side, side), side / config.resize_size[0], config.interpolation.value)
    model = models.get_model(name, weights=None, num_classes=classes, **options)
    return model, InputSpec(fit, name.startswith(FIXED_SIZE), (tuple(config.mean), tuple(config.std)))


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, …)` → the name and its keyword arguments, which are literals."""
    if not name.endswith(")"):
        return name, {}
    plain, _, inside = name[:-1].partition("(")
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("only keyword arguments")
        return plain, {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError) as error:
        raise InputError(f"network '{name}': expected NAME or NAME(key=value, …) with literal values ({error})") from error


def _load_attribute(path: Path, name: str) -> Callable[..., Any]:
    """What a Python file calls `name`; the file is run once per path and version."""
    if not path.is_file():
        raise InputError(f"{path}: expected a Python file with the class {name}, found nothing there")
    module = _run_file(str(path.resolve()), os.stat(path).st_mtime_ns)
    found = vars(module).get(name)
    if not callable(found):
        classes = ", ".join(key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module))
        raise InputError(f"{path} has no class {name}; its networks are: {classes or 'none'}")
    return found


@functools.cache
def _run_file(path: str, version: int) -> Any:
    name = f"channelscope_network_{Path(path).stem}_{abs(hash((path, version))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look the class up there
    spec.loader.exec_module(module)
    return module


def _call_constructor(make: Callable[..., Any], options: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """Call a constructor, telling it classes and channels if it has a parameter for them that was not given."""
    taken = inspect.signature(make).parameters
    for words, value in ((CLASS_WORDS, classes), (CHANNEL_WORDS, channels)):
        word = next((word for word in words if word in taken), None)
        if word is not None and not any(known in options for known in words):
            options = {**options, word: value}
    model = make(**options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, received {type(model).__name__}")
    return model
