"""Ranking: a score's values, one number per channel and site, with everything needed to read and use them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np

from channelscope.display import Facts, Shown, spread
from channelscope.errors import ShapeError, SiteError, no_such
from channelscope.site import Site

Keeps = Literal["high", "low"]


@dataclass(frozen=True, repr=False)
class Ranking(Shown):
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

    def facts(self) -> Facts:
        """Name, unit, and the range of each site's values."""
        channels, notes = sum(site.channels for site in self.sites), sum(len(each) for each in self.notes.values())
        unit = f" [{self.unit}]" if self.unit else ""
        counted = f"{channels:,} channels at {len(self.sites)} sites, {notes:,} with a note"
        ranges = ((site.name, f"{site.channels} channels, {spread(self.values[site.name])}") for site in self.sites)
        return f"Ranking({self.name}{unit}, {self.keeps} is kept: {counted})", ranges

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

    def plot(self, layers: list[str] | None = None, title: str | None = None, interactive: bool = False) -> Any:
        """Axes with the values of each layer's channels and their median; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, layers=layers, title=title, interactive=interactive)

    def importance(self, site: str) -> np.ndarray:
        """Values of one site turned so that larger always means keep; nan stays nan."""
        return self[site] if self.keeps == "high" else -self[site]

    def top(self, n: int, site: str | None = None) -> list[tuple[str, int, float]]:
        """The channels that pruning would keep longest, best first.

        Values of different sites are compared as they are, which means something for few scores: see `comparable_across_layers`.

        Parameters
        ----------
        n
            How many.
        site
            One site; by default all.

        Returns
        -------
        list
            (site, channel, value) of at most n channels; those without a value are left out.

        Raises
        ------
        SiteError
            For a name that is no site's, with the nearest names.

        Examples
        --------
        >>> site = Site("conv", "conv", 3, (3, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))
        >>> ranking = Ranking("overlap", "nats", "low", {"conv": np.array([0.5, np.nan, 0.25])}, (site,), (3, 8, 8))
        >>> ranking.top(2)
        [('conv', 2, 0.25), ('conv', 0, 0.5)]
        """
        names = [each.name for each in self.sites] if site is None else [site]
        found = [(name, channel, float(value)) for name in names for channel, value in enumerate(self[name]) if not np.isnan(value)]
        return sorted(found, key=lambda each: each[2], reverse=self.keeps == "high")[:n]

    def to_frame(self) -> Any:
        """The ranking as a pandas frame: one row per channel, with its site, depth, value and the reason where it has none.

        `tables.write(ranking.to_frame(), path)` writes it as CSV, Parquet or JSON.

        Returns
        -------
        DataFrame
            Columns site, depth, channel, the score's name, and note.

        Examples
        --------
        >>> site = Site("conv", "conv", 2, (2, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))
        >>> values, notes = {"conv": np.array([0.5, np.nan])}, {"conv": {1: "silent"}}
        >>> Ranking("overlap", "nats", "low", values, (site,), (3, 8, 8), notes).to_frame()
           site  depth  channel  overlap    note
        0  conv      0        0      0.5
        1  conv      0        1      NaN  silent
        """
        rows = []
        for site in self.sites:
            notes, values = self.notes.get(site.name, {}), self[site.name].tolist()
            rows += [(site.name, site.depth, channel, value, notes.get(channel, "")) for channel, value in enumerate(values)]
        return import_module("pandas").DataFrame(rows, columns=["site", "depth", "channel", self.name, "note"])
