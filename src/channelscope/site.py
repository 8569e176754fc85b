"""Site: one place of a network where channels live."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["conv", "grouped", "depthwise", "linear"]


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer whose output channels can be told apart; plain data, no tensor.

    Statistics are read at the layer's own output (`read`), interventions act where consumers look (`cut`):
    after the normalization and activation that belong to the channel.
    """

    name: str
    """module path in the network, such as layer1.0.conv1"""
    kind: Kind
    """conv, grouped (1 < groups), depthwise (one input channel per group), or linear"""
    channels: int
    """number of output channels"""
    shape: tuple[int, ...]
    """shape of the output for one image, without the batch axis"""
    axis: int
    """which axis of `shape` holds the channels: 0 for C×H×W, the last for token or channels-last layouts"""
    read: str
    """graph node of the layer's own output"""
    cut: str
    """graph node of the tensor its consumers see"""
    depth: int
    """position in execution order among the sites, from 0"""
    inputs: int
    """number of input channels"""
    kernel: tuple[int, ...]
    """spatial size of the kernel; () for linear layers"""
    groups: int = 1
    """groups of the convolution"""
    norm: str | None = None
    """module path of the batch normalization between read and cut point, if there is one"""
    affine: bool = False
    """whether the cut point is the read point scaled and shifted per channel, with no activation between"""

    @property
    def positions(self) -> int:
        """Number of positions per image: the product of the non-channel axes."""
        total = 1
        for axis, size in enumerate(self.shape):
            if axis != self.axis:
                total *= size
        return total

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Site":
        """Inverse of `as_dict`; lists become tuples again."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**plain)
