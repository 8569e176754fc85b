"""Score: a formula applied to every site of a profile; and the registry of scores."""

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

    Options are the fields of `ScoreOptions` (target, shrinkage, preset, …) and the formula's own keyword arguments.

    Examples
    --------
    >>> from channelscope import collect, scores
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> ranking = scores.capture(collect(toy.model, toy.batches), noise=1.0)
    >>> ranking.name, ranking["conv"].round(3).tolist()
    ('capture(noise=1.0)', [0.347, 0.805, 1.151, 1.417, 1.629])
    """

    name: str
    """name in tables and on the command line"""
    family: Family
    """which question it answers"""
    unit: str
    """unit of its values"""
    keeps: Keeps
    """high or low: the values that pruning keeps"""
    source: str
    """citation of the definition"""
    formula: Formula
    """Layer, options → (channels,)"""
    undefined: Undefined | None = None
    """layer, channel → why a channel that varies at its preactivation has no value"""

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The formula's own documentation."""
        return self.formula.__doc__

    def __call__(self, profile: Profile, **options) -> Ranking:
        """Ranking of every channel of every site, with the reasons where values are nan or inf.

        Parameters
        ----------
        profile
            The profile of a network.
        **options
            Fields of `ScoreOptions`, and the formula's own keyword arguments.

        Returns
        -------
        Ranking
            One number per channel of each site.

        Raises
        ------
        InputError
            For an option that does not exist, or statistics that the profile lacks.
        SampleError
            For too few images.
        """
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
        """Names of the formula's own keyword arguments."""
        return tuple(inspect.signature(self.formula).parameters)[1:]

    def layer_values(self, layer: LayerStatistics, **own) -> tuple[np.ndarray, dict[int, str]]:
        """Values of one layer's channels, float64, and the reasons where they are nan or inf.

        Parameters
        ----------
        layer
            Statistics of the layer.
        **own
            The formula's own keyword arguments.

        Returns
        -------
        tuple
            (channels,) array, and channel → reason.
        """
        values = self.formula(layer, **own).double().numpy()
        return values, layer.notes(values, self.undefined)


REGISTRY: dict[str, Score] = {}
"""Every score by name, family by family."""


def register(family: Family, unit: str, keeps: Keeps, source: str, undefined: Undefined | None = None) -> Callable[[Formula], Score]:
    """Decorator that turns a formula into a score and adds it to the registry under the formula's name.

    Parameters
    ----------
    family
        Question that the score answers.
    unit
        Unit of its values, such as nats; empty where there is none.
    keeps
        high or low: the values that pruning keeps.
    source
        Citation of the definition.
    undefined
        Layer, channel → why a channel that varies has no value.

    Returns
    -------
    Callable
        Formula (layer statistics, keyword arguments → one number per channel) → `Score`.

    Examples
    --------
    >>> import torch
    >>> @register(family="control", unit="", keeps="high", source="an example")
    ... def depth(layer):
    ...     return torch.full((layer.channels,), float(layer.site.depth))
    >>> REGISTRY.pop("depth").name
    'depth'

    References
    ----------
    None: each score cites its own.
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
    """Scores of the registry, by name.

    Parameters
    ----------
    names
        One name, or several.

    Returns
    -------
    list
        The scores, in the order of the names.

    Raises
    ------
    InputError
        For an unknown name; the nearest one is in the message.

    Examples
    --------
    >>> from channelscope import scores
    >>> [score.unit for score in lookup(["capture", "support"])]
    ['nats', 'fraction']

    References
    ----------
    None: a look-up.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in REGISTRY:
            raise InputError(no_such("score", name, REGISTRY))
    return [REGISTRY[name] for name in wanted]
