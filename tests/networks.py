"""The networks of the equality tests: narrow for the default suite, as published under the mark slow."""

from collections.abc import Callable

import torch
from torch import nn

from channelscope.data.torchvision_cpu import models

CONV = models.convnext.CNBlockConfig


def _timm(name: str, **options) -> nn.Module:
    import timm  # after torchvision_cpu has declared what torchvision misses

    return timm.create_model(name, **options)


def _vgg() -> nn.Module:
    layers = models.vgg.make_layers([8, "M", 16, "M", 16, 24, "M"], batch_norm=True)
    head = [nn.Linear(24 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)]
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)


def _alexnet() -> nn.Module:
    model = models.alexnet()
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256 * 36, 24), nn.ReLU(inplace=True), nn.Linear(24, 10))
    return model


NARROW: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet18": (32, lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 2], num_classes=10)),
    "resnet50": (32, lambda: models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=10, width_per_group=8)),
    "vgg16_bn": (32, _vgg),
    "mobilenet_v2": (32, lambda: models.mobilenet_v2(width_mult=0.25, num_classes=10)),
    "convnext_tiny": (32, lambda: models.ConvNeXt([CONV(16, 32, 2), CONV(32, None, 3)], num_classes=10)),
    "alexnet": (80, _alexnet),
    "squeezenet1_1": (48, lambda: models.squeezenet1_1(num_classes=10)),
    "densenet121": (32, lambda: models.DenseNet(8, (3, 3, 2), 8, num_classes=10)),
    "googlenet": (48, lambda: models.googlenet(num_classes=10, aux_logits=False, init_weights=False)),
    "tf_efficientnet_lite0": (32, lambda: _timm("tf_efficientnet_lite0", num_classes=10)),
    "regnety_002": (32, lambda: _timm("regnety_002", num_classes=10)),
    "mobilenetv3_small_100": (32, lambda: _timm("mobilenetv3_small_050", num_classes=10)),
    "resnext50_32x4d": (32, lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=4)),
}

FULL: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{
        name: (128, lambda name=name: models.get_model(name, weights=None))
        for name in ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "convnext_tiny", "alexnet", "squeezenet1_0", "densenet121")
    },
    "googlenet": (128, lambda: models.googlenet(aux_logits=False, init_weights=True)),
    **{
        name: (128, lambda name=name: _timm(name))
        for name in ("tf_efficientnet_lite0", "regnety_002", "mobilenetv3_small_100", "resnext50_32x4d")
    },
}


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalizations as training leaves them and layer scales that count: at initialization, shifts and means are zero."""
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=source)
            module.running_var.uniform_(0.5, 2, generator=source)
            module.weight.data.uniform_(0.5, 1.5, generator=source)
            module.bias.data.normal_(0, 0.3, generator=source)
        if isinstance(vars(module).get("_parameters", {}).get("layer_scale"), nn.Parameter):
            module.layer_scale.data.uniform_(0.5, 1, generator=source)
    return model.eval().requires_grad_(False)


def built(name: str, table: dict[str, tuple[int, Callable[[], nn.Module]]] = NARROW) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network that the tests bite on, frozen, and its image shape."""
    size, make = table[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(make()), (3, size, size)
