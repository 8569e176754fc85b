"""Site: one layer of a network whose output channels are measured and removed."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["conv", "grouped", "depthwise", "linear"]


STORED_NAMES = {
    "channel_axis": "axis",
    "preactivation": "read",
    "activation": "cut",
    "in_channels": "inputs",
    "kernel_size": "kernel",
    "batchnorm": "norm",
    "activation_is_affine": "affine",
}
"""What files of format 2 call a field."""


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer and its output channels; plain data, no tensor.

    Statistics are read at the layer's own output (`preactivation`), interventions act at the tensor that its consumers read
    (`activation`): after the normalization and activation that belong to the channel.

    Examples
    --------
    >>> site = Site("conv", "conv", 2, (2, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))
    >>> site.positions, Site.from_dict(site.as_dict()) == site
    (64, True)
    """

    name: str
    """module path in the network, such as layer1.0.conv1"""
    kind: Kind
    """conv, grouped (1 < groups), depthwise (one input channel per group), or linear"""
    channels: int
    """number of output channels"""
    shape: tuple[int, ...]
    """shape of the output for one image, without the batch axis"""
    channel_axis: int
    """which axis of `shape` holds the channels: 0 for C×H×W, the last for token or channels-last layouts"""
    preactivation: str
    """graph node of the layer's own output"""
    activation: str
    """graph node of the tensor its consumers see"""
    depth: int
    """position in execution order among the sites, from 0"""
    in_channels: int
    """number of input channels"""
    kernel_size: tuple[int, ...]
    """spatial size of the kernel; () for linear layers"""
    groups: int = 1
    """groups of the convolution"""
    batchnorm: str | None = None
    """module path of the batch normalization between read and cut point, if there is one"""
    activation_is_affine: bool = False
    """whether the cut point is the read point scaled and shifted per channel, with no activation between"""

    windows: int = 1
    """windows that an image is cut into before the layer, one after the other along the first axis; `shape` is that of one"""

    @property
    def positions(self) -> int:
        """Number of positions per image: the product of the non-channel axes, over all windows."""
        total = self.windows
        for axis, size in enumerate(self.shape):
            if axis != self.channel_axis:
                total *= size
        return total

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {STORED_NAMES.get(name, name): value for name, value in asdict(self).items() if (name, value) != ("windows", 1)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Site":
        """Inverse of `as_dict`; lists become tuples again."""
        names = {stored: name for name, stored in STORED_NAMES.items()}
        plain: dict[str, Any] = {names.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**plain)
