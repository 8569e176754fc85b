"""Small residual networks (He, Zhang, Ren, Sun 2016: ResNet-20 to 110), and stems for small images."""

from collections.abc import Callable

from torch import Tensor, nn

from channelscope.data.torchvision_cpu import models


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
