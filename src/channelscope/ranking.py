"""Ranking: a score's values, one number per channel and site, with everything needed to read and use them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from channelscope.errors import ShapeError, SiteError, no_such
from channelscope.site import Site

Keeps = Literal["high", "low"]

MAX_SITES = 13
"""Sites that a printed ranking shows."""


@dataclass(frozen=True)
class Ranking:
    """One number per channel and site, with the unit, the source and the reasons for undefined values; plain data.

    An undefined value is nan, that of an exact copy may be inf; `notes` has the reason.

    Examples
    --------
    >>> site = Site("conv", "conv", 2, (2, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))
    >>> ranking = Ranking("overlap", "nats", "low", {"conv": np.array([0.25, 0.5])}, (site,), (3, 8, 8))
    >>> ranking
    Ranking(overlap [nats], low is kept: 2 channels at 1 sites, 0 with a note)
      conv: 2 channels, 0.25 … 0.5
    >>> ranking.importance("conv").tolist()
    [-0.25, -0.5]
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

    def __repr__(self) -> str:
        """Name, unit, and the range of each site's values, at most fifteen lines."""
        channels, notes = sum(site.channels for site in self.sites), sum(len(each) for each in self.notes.values())
        unit = f" [{self.unit}]" if self.unit else ""
        lines = [
            f"Ranking({self.name}{unit}, {self.keeps} is kept: {channels:,} channels at {len(self.sites)} sites, {notes:,} with a note)"
        ]
        lines += [f"  {site.name}: {site.channels} channels, {_range(self.values[site.name])}" for site in self.sites[:MAX_SITES]]
        return "\n".join([*lines, f"  … {len(self.sites) - MAX_SITES} more sites"] if len(self.sites) > MAX_SITES else lines)

    def __getitem__(self, site: str) -> np.ndarray:
        """Values of one site.

        Raises
        ------
        SiteError
            For a name that is no site's, with the nearest names.
        """
        if site not in self.values:
            raise SiteError(no_such("site", site, self.values))
        return self.values[site]

    def plot(self, layers: list[str] | None = None, title: str | None = None) -> np.ndarray:
        """Axes with the values of each layer's channels and their median; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, layers=layers, title=title)

    def importance(self, site: str) -> np.ndarray:
        """Values of one site turned so that larger always means keep; nan stays nan."""
        return self[site] if self.keeps == "high" else -self[site]


def _range(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.min():.3g} … {known.max():.3g}" if len(known) else "all undefined"
