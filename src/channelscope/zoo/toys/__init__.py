"""Toys: tiny networks and images whose answers are known exactly, for tests of everything above."""

from channelscope.zoo.toys.coupled import depthwise_block, residual_pair, shared_activation
from channelscope.zoo.toys.linear import dead_channel, exact_copy, independent_channels, label_channel, suppressor_pair, xor_pair
from channelscope.zoo.toys.toy import Toy

TOYS = (
    exact_copy,
    dead_channel,
    independent_channels,
    suppressor_pair,
    label_channel,
    xor_pair,
    residual_pair,
    depthwise_block,
    shared_activation,
)
"""every toy, for tests that want them all"""

__all__ = [
    "TOYS",
    "Toy",
    "dead_channel",
    "depthwise_block",
    "exact_copy",
    "independent_channels",
    "label_channel",
    "residual_pair",
    "shared_activation",
    "suppressor_pair",
    "xor_pair",
]
