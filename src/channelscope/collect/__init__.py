"""One pass over the calibration images."""

from channelscope.collect.collect import collect

__all__ = ["collect"]
