"""Networks by name: the zoo's own, torchvision's, timm's, transformers', and classes of a Python file.

The zoo's own are small residual networks (He, Zhang, Ren, Sun 2016: ResNet-20 to 110), and torchvision's with stems for small images."""

import ast
import functools
import importlib.util
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.data import torchvision_cpu
from channelscope.data.decoding import ResizeCrop
from channelscope.data.images import IMAGENET, SMALL_IMAGE
from channelscope.errors import InputError, UserCode, first_line, near_paths, no_such

RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}

FIXED_SIZE = ("vit", "swin", "maxvit")  # torchvision families that take one image size only

SIZE_OPTIONS = ("img_size", "image_size", "input_size")
"""What timm's and torchvision's constructors call the size of the images that a network is made for."""

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
    """Names of the zoo's own networks; `build` takes `timm:NAME`, `torchvision:NAME`, `hf:FOLDER` and `file.py:Class` too.

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
    """Network in evaluation mode, untrained unless its name says otherwise, with its description in `model.card`.

    Parameters
    ----------
    name
        One of `network_names()`, `timm:NAME`, `torchvision:NAME` (unmodified), `hf:FOLDER` (a network of transformers, or its
        name on the hub, with its weights), or `path/to/file.py:Class` (the file is run); keyword arguments of the constructor
        may follow, as in `resnet20(width=8)`, `timm:resnet18(pretrained=True)` or `nets.py:Small(depth=20)`.
    classes
        Number of classes.
    channels
        Channels of the images.
    image_size
        Side of the images in pixels; for at most 64 pixels the network gets a stem for small images (zoo/models.py).
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
            try:
                model, intake = _build(plain, options, classes, channels, image_size)
            except OSError as error:  # of every library that downloads
                if not comes_trained(name):
                    raise
                said = f"network '{name}': its published weights cannot be read ({type(error).__name__}: {first_line(error)})"
                raise InputError(f"{said}; without a connection, give the weights in a file") from error
    model.__dict__["card"] = ModelInfo(name, classes, channels, intake)
    return model.eval()


def comes_trained(name: str) -> bool:
    """Whether `build` gives a network of this name its published or stored weights.

    Parameters
    ----------
    name
        As `build` takes it.

    Returns
    -------
    bool
        True with `pretrained=True`, and for networks of transformers, except where their folder holds no weights.

    Examples
    --------
    >>> comes_trained("timm:resnet18"), comes_trained("timm:resnet18(pretrained=True)"), comes_trained("hf:microsoft/resnet-18")
    (False, True, True)
    """
    plain, options = _parse(name)
    kind, _, rest = plain.partition(":")
    if kind != "hf":
        return bool(options.get("pretrained", False))
    return not _is_bare(Path(rest).expanduser())


def pretrained_name(name: str) -> str:
    """The name of a network by which `build` gives it its published weights.

    Parameters
    ----------
    name
        As `build` takes it: a network of timm, torchvision or transformers.

    Returns
    -------
    str
        The name, with `pretrained=True` where weights are not taken without it.

    Raises
    ------
    InputError
        If a network of this name has no published weights.

    Examples
    --------
    >>> pretrained_name("timm:resnet18(drop_rate=0.1)")
    'timm:resnet18(drop_rate=0.1, pretrained=True)'
    """
    plain, options = _parse(name)
    kind, _, rest = plain.partition(":")
    if kind == "hf" and not _is_bare(Path(rest).expanduser()):
        return name
    if kind not in ("timm", "torchvision"):
        why = "the folder holds none" if kind == "hf" else "expected timm:NAME, torchvision:NAME or hf:NAME"
        raise InputError(f"there are no published weights for '{name}': {why}; give a file of weights, or take them as they are made")
    words = ", ".join(f"{key}={value!r}" for key, value in {**options, "pretrained": True}.items())
    return f"{plain}({words})"


def _is_bare(place: Path) -> bool:
    """Whether a place is a folder without weights."""
    return place.is_dir() and not any(place.glob("*.safetensors"))


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
    if kind == "hf":
        return _transformers(rest, options, classes, channels)
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        return _call_constructor(_load_attribute(Path(path).expanduser(), attribute), options, classes, channels), InputSpec()
    if name in RESNETS:
        return SmallResNet(RESNETS[name], classes, channels, **options), InputSpec()
    if name not in ARCHITECTURES:
        others = "or give timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:Class"
        if os.sep in name and (near := near_paths(Path(name))):
            raise InputError(f"{name}: expected a network, or the folder of a pruned one, found nothing there{near}")
        raise InputError(f"{no_such('network', name, network_names())}; {others}")
    model = torchvision_cpu.models.get_model(name, weights=None, num_classes=classes, **options)
    if size <= SMALL_IMAGE:
        ARCHITECTURES[name](model, channels, size)
        return model, InputSpec()
    set_input_channels(model, channels)
    return model, InputSpec(ResizeCrop((224, 224), 0.875), normalization=IMAGENET if channels == 3 else None)


def _timm(name: str, options: dict[str, Any], classes: int, channels: int) -> tuple[nn.Module, InputSpec]:
    torchvision_cpu.load_torchvision()  # timm imports it
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name}: {error.name} is not installed; pip install 'channelscope[timm]'") from error
    if not timm.is_model(name):
        raise InputError(no_such("network of timm", name, timm.list_models()))
    model = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
    config: Any = model.pretrained_cfg
    if options.get("pretrained"):
        _note_new_head(f"timm:{name}", config.get("num_classes"), classes)
    fit = ResizeCrop(tuple(config["input_size"][1:]), config["crop_pct"], config["interpolation"])
    own = (tuple(config["mean"]), tuple(config["std"])) if channels == 3 else None
    return model, InputSpec(_made_for(fit, options), bool(config["fixed_input_size"]), own)


def _made_for(usual: ResizeCrop, options: dict[str, Any]) -> ResizeCrop:
    """The preprocessing of a published network, to the size for which this one is made."""
    size = next((options[word] for word in SIZE_OPTIONS if word in options), None)
    if size is None:
        return usual
    return replace(usual, size=(size, size) if isinstance(size, int) else tuple(size))


def _torchvision(name: str, options: dict[str, Any], classes: int) -> tuple[nn.Module, InputSpec]:
    models = torchvision_cpu.models
    names = models.list_models(module=models)
    if name not in names:
        raise InputError(no_such("classification network of torchvision", name, names))
    published: Any = models.get_model_weights(name)["DEFAULT"]
    config: Any = published.transforms()
    side = config.crop_size[0]
    fit = ResizeCrop((side, side), side / config.resize_size[0], config.interpolation.value)
    pretrained = options.pop("pretrained", False)
    model = models.get_model(name, num_classes=classes, **options)
    if pretrained:
        drawn, model, count = model, models.get_model(name, weights=published, **options), len(published.meta["categories"])
        for path, layer in list(model.named_modules()) if classes != count else ():
            if count in (vars(layer).get("out_features"), vars(layer).get("out_channels")):
                model.set_submodule(path, drawn.get_submodule(path))
        _note_new_head(f"torchvision:{name}", count, classes)
    return model, InputSpec(_made_for(fit, options), name.startswith(FIXED_SIZE), (tuple(config.mean), tuple(config.std)))


def _note_new_head(name: str, published: int | None, classes: int) -> None:
    """Warn if published weights are for another number of classes, so that the last layer's were left as they were drawn."""
    if published not in (None, classes):
        text = f"{name}: published weights are for {published:,} classes, the images have {classes:,}: the last layer's are random"
        warnings.warn(text, UserWarning, stacklevel=2)


def _transformers(name: str, options: dict[str, Any], classes: int, channels: int) -> tuple[nn.Module, InputSpec]:
    """An image classifier of Hugging Face's transformers from a folder or the hub: with its weights where there are any."""
    torchvision_cpu.load_torchvision()  # transformers imports it
    try:
        import transformers
        from transformers.utils.hub import cached_file
    except ImportError as error:
        raise InputError(f"hf:{name}: {error.name} is not installed; pip install 'channelscope[transformers]'") from error
    place = Path(name).expanduser()
    path = str(place) if place.is_dir() else name
    kind = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(path, num_labels=classes, **options)
        if config.num_channels != channels:
            raise InputError(f"hf:{name}: expected images of {config.num_channels} channels, received {channels}")
        if _is_bare(place):
            model = kind.from_config(config)
        else:
            model = kind.from_pretrained(path, config=config, ignore_mismatched_sizes=True)
            _note_new_head(f"hf:{name}", transformers.AutoConfig.from_pretrained(path).num_labels, classes)
        found = cached_file(path, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise InputError(f"hf:{name}: expected a folder with config.json, or a network of the hub ({first_line(error)})") from error
    rules = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    size = rules.get("size") or {}
    side = size.get("height") or size.get("shortest_edge") or vars(config).get("image_size")
    own = (tuple(rules["image_mean"]), tuple(rules["image_std"])) if "image_mean" in rules else None
    return model, InputSpec(ResizeCrop((side, side)) if side else None, "image_size" in vars(config), own)


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
        raise InputError(f"{path}: expected a Python file with the class {name}, found nothing there{near_paths(path)}")
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


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution with padding 1 and no bias.

    Parameters
    ----------
    inputs, outputs
        Number of channels.
    stride
        Stride along both axes.

    Returns
    -------
    Conv2d
        Randomly initialized.

    Examples
    --------
    >>> conv3(3, 8).weight.shape
    torch.Size([8, 3, 3, 3])
    """
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; the shortcut is a 1×1 convolution where the shape changes (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2, self.bn2, self.act2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem and three stages of width, 2·width and 4·width channels with (depth − 2)/6 blocks each.

    Option B shortcuts (projections) instead of the paper's zero-padded identities: every channel is then the
    output of a convolution, and all of them can be scored, removed and repaired. They add 2,752 weights to ResNet-20.

    References
    ----------
    He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition, section 4.2.
    """

    def __init__(self, depth: int = 20, classes: int = 10, channels: int = 3, width: int = 16):
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"expected a depth of 6n + 2 (8, 14, 20, 32, 44, 56, 110), received {depth}")
        blocks = (depth - 2) // 6
        self.conv1, self.bn1, self.act1 = conv3(channels, width), nn.BatchNorm2d(width), nn.ReLU()
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) → logits (B, classes)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.pool(x)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def first_conv(model: nn.Module) -> tuple[nn.Module, str, nn.Conv2d]:
    """First convolution of a network in registration order.

    Parameters
    ----------
    model
        A network.

    Returns
    -------
    tuple
        The module that holds it, its name there, and the convolution.

    Raises
    ------
    ValueError
        Without a convolution.

    Examples
    --------
    >>> first_conv(SmallResNet(8))[1]
    'conv1'
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                return parent, name, child
    raise ValueError(f"{type(model).__name__} has no convolution")


def replace_first_conv(model: nn.Module, channels: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    """Replace the first convolution of a network by one of another shape.

    Parameters
    ----------
    model
        A network; it is changed.
    channels
        Number of input channels.
    kernel, stride, padding
        Of the new convolution, along both axes, in pixels.

    Returns
    -------
    Conv2d
        The new convolution, randomly initialized, with as many output channels as the old one.

    Examples
    --------
    >>> replace_first_conv(SmallResNet(8), 1, 5, 2, 2).weight.shape
    torch.Size([16, 1, 5, 5])
    """
    parent, name, old = first_conv(model)
    new = nn.Conv2d(channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    setattr(parent, name, new)
    return new


def set_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one for another number of input channels, if it differs.

    Parameters
    ----------
    model
        A network; it is changed.
    channels
        Number of channels of the images.

    Examples
    --------
    >>> model = SmallResNet(8)
    >>> set_input_channels(model, 1)
    >>> model.conv1.in_channels
    1
    """
    _, _, old = first_conv(model)
    if old.in_channels != channels:
        replace_first_conv(model, channels, old.kernel_size[0], old.stride[0], int(old.padding[0]))


def _resnet(model: nn.Module, channels: int, size: int) -> None:
    replace_first_conv(model, channels, 3, 1, 1)
    model.maxpool = nn.Identity()


def _mobilenet(model: nn.Module, channels: int, size: int) -> None:
    set_input_channels(model, channels)
    first_conv(model)[2].stride = (1, 1)


def _vgg(model: nn.Module, channels: int, size: int) -> None:
    set_input_channels(model, channels)
    features, classes = model.get_submodule("features"), _last_linear(model).out_features
    pools = [name for name, layer in features.named_children() if isinstance(layer, nn.MaxPool2d)]
    for name in pools[max(0, size.bit_length() - 1) :]:
        setattr(features, name, nn.Identity())
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, classes)
    nn.init.normal_(model.classifier.weight, 0, 0.01)
    nn.init.zeros_(model.classifier.bias)


def _alexnet(model: nn.Module, channels: int, size: int) -> None:
    replace_first_conv(model, channels, 3, 1, 1)
    features = model.get_submodule("features")
    for name, layer in list(features.named_children()):
        if isinstance(layer, nn.MaxPool2d):
            setattr(features, name, nn.MaxPool2d(2))
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.get_submodule("classifier").add_module("1", nn.Linear(256, 4096))


def _squeezenet(model: nn.Module, channels: int, size: int) -> None:
    replace_first_conv(model, channels, 3, 1, 1)
    features = model.get_submodule("features")
    pool = next(name for name, layer in features.named_children() if isinstance(layer, nn.MaxPool2d))
    setattr(features, pool, nn.Identity())


def _convnext(model: nn.Module, channels: int, size: int) -> None:
    patch = max(1, size // 16)
    stem = replace_first_conv(model, channels, patch, patch, 0)
    nn.init.trunc_normal_(stem.weight, std=0.02)


def _last_linear(model: nn.Module) -> nn.Linear:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


ARCHITECTURES: dict[str, Callable[[nn.Module, int, int], None]] = {
    "resnet18": _resnet,
    "resnet34": _resnet,
    "resnet50": _resnet,
    "vgg16_bn": _vgg,
    "mobilenet_v2": _mobilenet,
    "convnext_tiny": _convnext,
    "alexnet": _alexnet,
    "squeezenet1_0": _squeezenet,
    "squeezenet1_1": _squeezenet,
}
"""name of a network of torchvision → what adapts it to (channels, image size)"""
