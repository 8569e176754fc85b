"""The residual networks for small images of He, Zhang, Ren, Sun 2016 (ResNet-20, 32, 44, 56, 110)."""

from torch import Tensor, nn


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps the size at stride 1; no bias, for a batch normalization follows."""
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

    Option B shortcuts (projections) instead of the paper's zero-padded identities: every channel then has a convolution that
    makes it, so all of them can be scored, removed and repaired. They add 2,752 weights to ResNet-20.

    Source   He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition, section 4.2
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
