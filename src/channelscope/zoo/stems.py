"""torchvision's architectures with first layers for small images.

At 224 pixels these networks reduce the image 4-fold before anything is learned from it; at 32 that would leave nothing.
The trunk is never changed. What is, for images of at most 64 pixels:

    resnet18, 34, 50      first convolution 3×3 stride 1 instead of 7×7 stride 2, no max-pool
    mobilenet_v2          first convolution stride 1 instead of 2
    vgg16_bn              max-pools that would leave less than one position are dropped (8×8 images: the last two); the
                          classifier is one linear layer on the 512 averaged channels instead of three on 7×7 positions
    alexnet               first convolution 3×3 stride 1 instead of 11×11 stride 4, 2×2 instead of 3×3 max-pools, the classifier
                          reads the 256 averaged channels instead of 6×6 positions
    squeezenet1_0, 1_1    first convolution 3×3 stride 1 instead of stride 2 (7×7 in 1.0), no first max-pool
    convnext_tiny         patches of image_size/16 pixels (2×2 at 32) instead of 4×4
"""

from collections.abc import Callable

from torch import nn

from channelscope.zoo.torchvision_cpu import models


def first_conv(model: nn.Module) -> tuple[nn.Module, str, nn.Conv2d]:
    """The first convolution in registration order: its parent, its name there, and itself."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                return parent, name, child
    raise ValueError(f"{type(model).__name__} has no convolution")


def new_stem(model: nn.Module, channels: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    """Replace the first convolution by one of another shape with as many output channels, and return it."""
    parent, name, old = first_conv(model)
    new = nn.Conv2d(channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    setattr(parent, name, new)
    return new


def recolor(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for images with that many channels, unless it takes them already."""
    _, _, old = first_conv(model)
    if old.in_channels != channels:
        new_stem(model, channels, old.kernel_size[0], old.stride[0], int(old.padding[0]))


def _resnet(model: nn.Module, channels: int, size: int) -> None:
    new_stem(model, channels, 3, 1, 1)
    model.maxpool = nn.Identity()


def _mobilenet(model: nn.Module, channels: int, size: int) -> None:
    recolor(model, channels)
    first_conv(model)[2].stride = (1, 1)


def _vgg(model: nn.Module, channels: int, size: int) -> None:
    recolor(model, channels)
    features, classes = model.get_submodule("features"), _last_linear(model).out_features
    pools = [name for name, layer in features.named_children() if isinstance(layer, nn.MaxPool2d)]
    for name in pools[max(0, size.bit_length() - 1) :]:
        setattr(features, name, nn.Identity())
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, classes)
    nn.init.normal_(model.classifier.weight, 0, 0.01)
    nn.init.zeros_(model.classifier.bias)


def _alexnet(model: nn.Module, channels: int, size: int) -> None:
    new_stem(model, channels, 3, 1, 1)
    features = model.get_submodule("features")
    for name, layer in list(features.named_children()):
        if isinstance(layer, nn.MaxPool2d):
            setattr(features, name, nn.MaxPool2d(2))
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.get_submodule("classifier").add_module("1", nn.Linear(256, 4096))


def _squeezenet(model: nn.Module, channels: int, size: int) -> None:
    new_stem(model, channels, 3, 1, 1)
    features = model.get_submodule("features")
    pool = next(name for name, layer in features.named_children() if isinstance(layer, nn.MaxPool2d))
    setattr(features, pool, nn.Identity())


def _convnext(model: nn.Module, channels: int, size: int) -> None:
    patch = max(1, size // 16)
    stem = new_stem(model, channels, patch, patch, 0)
    nn.init.trunc_normal_(stem.weight, std=0.02)


def _last_linear(model: nn.Module) -> nn.Linear:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], Callable[[nn.Module, int, int], None]]] = {
    "resnet18": (models.resnet18, _resnet),
    "resnet34": (models.resnet34, _resnet),
    "resnet50": (models.resnet50, _resnet),
    "vgg16_bn": (models.vgg16_bn, _vgg),
    "mobilenet_v2": (models.mobilenet_v2, _mobilenet),
    "convnext_tiny": (models.convnext_tiny, _convnext),
    "alexnet": (models.alexnet, _alexnet),
    "squeezenet1_0": (models.squeezenet1_0, _squeezenet),
    "squeezenet1_1": (models.squeezenet1_1, _squeezenet),
}
"""name → torchvision's constructor, and what adapts it to (channels, image size)"""
