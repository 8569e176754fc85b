"""Score: a formula applied to every site of a profile; the registry of all of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from channelscope.errors import InputError, at, no_such
from channelscope.ranking import Keeps, Ranking
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.stats.profile import Profile
from channelscope.types import Tensor

Family = Literal["local", "target", "both", "size", "gradient", "published", "control"]

Formula = Callable[..., Tensor]

Undefined = Callable[[LayerStatistics, int], str]
"""Layer, channel → why the channel has no value"""


@dataclass(frozen=True)
class Score:
    """A named number per channel. Calling it on a profile gives a `Ranking`.

    Options are the convention's fields (target, shrinkage, preset, …) and the formula's own keyword arguments.
    """

    name: str
    """name in tables and on the command line"""
    family: Family
    """which question it answers"""
    unit: str
    """unit of its values"""
    keeps: Keeps
    """which end a pruner keeps; declared once"""
    source: str
    """where the definition comes from"""
    formula: Formula
    """Layer, options → (channels,)"""
    undefined: Undefined | None = None
    """why a channel is nan that varies at its read point, where that can be said"""

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The formula's own documentation."""
        return self.formula.__doc__

    def __call__(self, profile: Profile, **options) -> Ranking:
        """Values of every channel of every site, with the reasons where they are nan or inf."""
        convention, own = ScoreOptions.split(options, self.options)
        values: dict[str, np.ndarray] = {}
        notes: dict[str, Mapping[int, str]] = {}
        for site in profile.sites:
            with at(site.name):
                layer = LayerStatistics(profile, site, profile.record(site), convention)
                values[site.name], notes[site.name] = self.layer_values(layer, **own)
        return Ranking(
            name=self.name + (f"({', '.join(f'{key}={value}' for key, value in options.items())})" if options else ""),
            unit=self.unit,
            keeps=self.keeps,
            values=values,
            sites=profile.sites,
            input_shape=profile.input_shape,
            notes={name: note for name, note in notes.items() if note},
            family=self.family,
            source=self.source,
        )

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the formula's own options."""
        return tuple(inspect.signature(self.formula).parameters)[1:]

    def layer_values(self, layer: LayerStatistics, **own) -> tuple[np.ndarray, dict[int, str]]:
        """Values and notes of one layer."""
        values = self.formula(layer, **own).double().numpy()
        return values, layer.notes(values, self.undefined)


REGISTRY: dict[str, Score] = {}
"""Every score by name, family by family."""


def register(family: Family, unit: str, keeps: Keeps, source: str, undefined: Undefined | None = None) -> Callable[[Formula], Score]:
    """Declare a formula as a score under its own name.

    References
    ----------
    How scores are declared is this library's; each cites its own.
    """

    def declare(formula: Formula) -> Score:
        score = Score(formula.__name__, family, unit, keeps, source, formula, undefined)
        families = get_args(Family)
        ordered = sorted([*REGISTRY.values(), score], key=lambda each: families.index(each.family))
        REGISTRY.clear()
        REGISTRY.update((each.name, each) for each in ordered)
        return score

    return declare


def lookup(names: str | Iterable[str]) -> list[Score]:
    """Scores by name; InputError for an unknown name, with the nearest one.

    References
    ----------
    None needed: a look-up.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in REGISTRY:
            raise InputError(no_such("score", name, REGISTRY))
    return [REGISTRY[name] for name in wanted]
