"""The network of the tutorials."""

from torch import nn


def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalization and activation."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Small(nn.Module):
    """Five convolutions for pictures of 8 × 8 pixels: 88,000 weights."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.layer1 = block(1, 24)
        self.layer2 = block(24, 32)
        self.layer3 = block(32, 48, stride=2)
        self.layer4 = block(48, 64)
        self.layer5 = block(64, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        """Logits (images, classes)."""
        x = self.layer5(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.head(x.mean((2, 3)))
