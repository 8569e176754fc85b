"""Channels taken away one by one, with and without peers standing in (H4)."""

from channelscope.experiments.lesion.lesion import lesion
from channelscope.experiments.lesion.plan import Plan
from channelscope.experiments.lesion.stand_in import StandIn

__all__ = ["Plan", "StandIn", "lesion"]
