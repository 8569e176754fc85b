"""Repair without training: re-fitted layers, peers standing in, re-estimated normalizations, and a ranking made for them."""

from channelscope.repair.reconstruction import reconstruction, reconstructions
from channelscope.repair.repair import Method, Report, repair

__all__ = ["Method", "Report", "reconstruction", "reconstructions", "repair"]
