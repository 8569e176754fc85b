"""Ranking: a score's values, one number per channel and site, with everything needed to read and use them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from channelscope.errors import ShapeError
from channelscope.site import Site

Keeps = Literal["high", "low"]


@dataclass(frozen=True)
class Ranking:
    """One number per channel and site; plain data.

    Undefined channels are nan and an exact copy may be inf; `notes` says why, never a zero in their place.
    """

    name: str
    """the score's name, options included, such as 'overlap' or 'mixture(capture, overlap, 0.3)'"""
    unit: str
    """nats, MACs, a fraction, or '' for a pure number"""
    keeps: Keeps
    """which end of the values a pruner keeps"""
    values: Mapping[str, np.ndarray]
    """site name → float64 array (channels,)"""
    sites: tuple[Site, ...]
    """the sites in execution order"""
    input_shape: tuple[int, ...]
    """shape of one input image (C, H, W), as profiled"""
    notes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """site name → channel → the reason for a nan or inf"""
    family: str = ""
    """local, target, both, size, gradient, published or control"""
    source: str = ""
    """where the definition comes from"""
    comparable_across_layers: bool = False
    """whether values of different layers can be compared as they are; if not, cut() normalizes them within layers"""

    def __post_init__(self) -> None:
        """Refuse values that do not match the sites."""
        for site in self.sites:
            if site.name not in self.values:
                raise ShapeError(f"ranking '{self.name}' has no values for site {site.name}")
            got = self.values[site.name].shape
            if got != (site.channels,):
                raise ShapeError(f"ranking '{self.name}' at {site.name}: expected {site.channels} values, received shape {got}")

    def __getitem__(self, site: str) -> np.ndarray:
        """Values of one site."""
        return self.values[site]

    def importance(self, site: str) -> np.ndarray:
        """Values of one site turned so that larger always means keep; nan stays nan."""
        return self.values[site] if self.keeps == "high" else -self.values[site]
