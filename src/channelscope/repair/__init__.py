"""Repair without training: re-fitted consumers, peers standing in, re-estimated normalizations."""

from channelscope.repair.repair import Report, repair

__all__ = ["Report", "repair"]
