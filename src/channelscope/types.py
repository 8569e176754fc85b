"""Shape annotations: one list of the axis names used in signatures.

channels   output channels of one site            samples   rows a statistic is made of
images     images of a batch or a set             classes   classes of the label
targets    columns joined to the channels         members   channels of a hull
taps       positions of a convolution's kernel    rows, columns   anything else
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Index: TypeAlias = Tensor | list[int] | slice

__all__ = ["Bool", "Float", "Index", "Int", "Tensor"]
