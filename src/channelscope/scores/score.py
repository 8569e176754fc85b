"""Score: a formula applied to every site of a profile, and the registry of scores; LayerStatistics: what a formula reads of one site."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch

from channelscope.errors import InputError, SampleError, at, check_choice, no_such
from channelscope.formulas.gaussian import Gaussian
from channelscope.formulas.information import correlation_information, gaussian_bias
from channelscope.formulas.regression import support
from channelscope.formulas.task_information import label_information_pair, label_information_single, pair_information
from channelscope.ranking import Keeps, Ranking
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.profile import Profile, SiteRecord
from channelscope.types import Float, Tensor

Target = Literal["margin", "correct_logit", "top_margin", "label"]

TargetReadout = Literal["pooled", "positions"]

Preset = Literal["default", "paper"]


@dataclass(frozen=True)
class ScoreOptions:
    """Choices that all scores of a table share; printed with the table.

    Examples
    --------
    >>> ScoreOptions(target="label").shrinkage is None
    True
    """

    target: str = "margin"
    """margin, correct_logit, top_margin, or label"""
    target_readout: TargetReadout = "pooled"
    """pooled: one sample per image; positions: those of the local axis, the target repeated at each (the label is always pooled)"""
    shrinkage: float | Literal["oas"] | None = None
    """of the correlation matrices: a number, oas, or none"""
    noise: float | Literal["median"] = "median"
    """noise variance of input capture: the layer's median variance, or a number"""
    preset: Preset = "default"
    """paper: the published conventions (|ρ| clipped at 0.999, division by C, ten largest excesses of fifty, repeated targets)"""

    def __post_init__(self) -> None:
        """Raise InputError for an unknown value, with the nearest known one."""
        for name, kind in (("target", Target), ("target_readout", TargetReadout), ("preset", Preset)):
            check_choice(name, vars(self)[name], get_args(kind))
        for name, word in (("shrinkage", "oas"), ("noise", "median")):
            value = vars(self)[name]
            if isinstance(value, str) and value != word:
                raise InputError(f"{name}: expected a number or '{word}', received '{value}'")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ScoreOptions":
        """Options from keyword arguments, where no other arguments are allowed.

        Parameters
        ----------
        options
            Names and values of the fields.

        Returns
        -------
        ScoreOptions
            The fields as given, the others at their defaults.

        Raises
        ------
        InputError
            If an option or its value does not exist; the nearest name is in the message.

        Examples
        --------
        >>> ScoreOptions.of({"shrinkage": "oas"}).shrinkage
        'oas'
        """
        return cls.split(options)[0]

    @classmethod
    def split(cls, options: Mapping[str, Any], own: Collection[str] = ()) -> tuple["ScoreOptions", dict[str, Any]]:
        """Options from keyword arguments, and the arguments that belong to one formula.

        Parameters
        ----------
        options
            Names and values of the fields and of the formula's own arguments.
        own
            Names of the formula's own arguments.

        Returns
        -------
        tuple
            The options, and the formula's own arguments by name.

        Raises
        ------
        InputError
            If an option or a value does not exist; the nearest name is in the message.

        Examples
        --------
        >>> options, arguments = ScoreOptions.split({"target": "label", "ceiling": 3.0}, own=["ceiling"])
        >>> options.target, arguments
        ('label', {'ceiling': 3.0})
        """
        names = [field.name for field in fields(cls)]
        for option in options:
            if option not in names and option not in own:
                raise InputError(no_such("option", option, [*own, *names]))
        convention = cls(**{key: value for key, value in options.items() if key in names})
        if convention.preset == "paper":
            convention = replace(convention, target_readout="positions")
        return convention, {key: value for key, value in options.items() if key in own}

    @property
    def paper(self) -> bool:
        """Whether the preset is `paper`."""
        return self.preset == "paper"


KEPT = 2**28
"""Bytes of the statistics that a profile keeps for further scores."""

MATRICES = 12
"""Matrices of channels × channels that a layer's statistics hold, about."""


class LayerStatistics:
    """Statistics of one site under given options, computed on first use and shared by the score formulas.

    Parameters
    ----------
    profile
        The profile of a network.
    site
        One of its sites.
    record
        Statistics of the site: of all images, or of a jackknife replicate.
    convention
        Choices that all scores share.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> profile = collect(toy.model, toy.batches)
    >>> layer = LayerStatistics(profile, profile.site("conv"), profile.record("conv"), ScoreOptions())
    >>> layer.target_correlation.square().round(decimals=2).tolist()
    [0.4, 0.0, 0.2]
    """

    __slots__ = ("__dict__", "channels", "convention", "profile", "record", "site", "weights")

    @classmethod
    def of_all(cls, profile: Profile, site: Site, convention: ScoreOptions) -> "LayerStatistics":
        """Statistics of a site over all images; what one score computes is kept with the profile for the next, up to `KEPT` bytes.

        Parameters
        ----------
        profile
            The profile of a network.
        site
            One of its sites.
        convention
            Choices that all scores share.
        """
        kept, key = profile.computed, (site.name, convention)
        if key not in kept:
            others = [each for each in kept if each[1] == convention]
            if sum(8 * MATRICES * profile.site(name).channels ** 2 for name, _ in (*others, key)) > KEPT:
                return cls(profile, site, profile.record(site), convention)
            for each in kept.keys() - set(others):  # one set of options is kept
                del kept[each]
            kept[key] = profile.record(site), {}
        record, results = kept[key]
        layer = cls(profile, site, record, convention)
        layer.__dict__ = results
        return layer

    def __init__(self, profile: Profile, site: Site, record: SiteRecord, convention: ScoreOptions):
        self.profile, self.site, self.record, self.convention = profile, site, record, convention
        self.channels = site.channels
        self.weights = profile.weight_norms[site.name]

    @property
    def images(self) -> int:
        """Number of independent samples: images, not positions."""
        return self.record.images

    @cached_property
    def gaussian(self) -> Gaussian:
        """Gaussian of the channels at the preactivation, local readout; the sample count is that of images."""
        return Gaussian.fit(_as_image_count(self.record.preactivation, self.images)[: self.channels], self.convention.shrinkage)

    @cached_property
    def variance(self) -> Float[Tensor, "channels"]:
        """Variances at the preactivation, nan where silent."""
        return self.gaussian.variance.masked_fill(self.gaussian.silent, torch.nan)

    @cached_property
    def correlation(self) -> Float[Tensor, "channels channels"]:
        """Correlations of the channels at the local readout, nan where silent."""
        return self.gaussian.correlation

    @cached_property
    def peer_support(self) -> Float[Tensor, "channels"]:
        """Share of each channel's variance that all its peers explain together, with the default ridge.

        Raises
        ------
        SampleError
            With fewer images than channels and no shrinkage.
        """
        self.require_samples_for_peers()
        return support(self.correlation)

    @property
    def joint_moments(self) -> Moments:
        """Moments of the channels and of the continuous target as last coordinate, at the target's readout, counted in images."""
        target = self.convention.target
        if target == "label":
            raise InputError(
                f"a correlation with the target needs a continuous one, received target='label': use {_either(self.profile.targets)}"
            )
        if target not in self.profile.targets:
            raise InputError(
                f"the profile has no target '{target}', it was collected without labels: use {_either(self.profile.targets)}, "
                "or collect it with labels"
            )
        column = self.channels + self.profile.targets.index(target)
        moments = self.record.pooled if self.convention.target_readout == "pooled" else self.record.preactivation
        return _as_image_count(moments[torch.tensor([*range(self.channels), column])], self.images)

    @cached_property
    def joint_gaussian(self) -> Gaussian:
        """Gaussian of the channels and the target, fitted to `joint_moments`."""
        return Gaussian.fit(self.joint_moments, self.convention.shrinkage)

    @cached_property
    def target_correlation(self) -> Float[Tensor, "channels"]:
        """Correlation of each channel with a continuous target."""
        return self.joint_gaussian.correlation[-1, :-1]

    @cached_property
    def target_readout_correlation(self) -> Float[Tensor, "channels channels"]:
        """Correlations of the channels at the target's readout."""
        if self.convention.target == "label":
            return Gaussian.fit(self.record.pooled[: self.channels], self.convention.shrinkage).correlation
        return self.joint_gaussian.correlation[:-1, :-1]

    @cached_property
    def task_information(self) -> Float[Tensor, "channels"]:
        """Information of each channel about the target [nats], without bias correction."""
        if self.convention.target == "label":
            total, within = self._label
            return label_information_single(total.diagonal(), within.diagonal())
        return correlation_information(self.target_correlation)

    @cached_property
    def pair_information(self) -> Float[Tensor, "channels channels"]:
        """Information of each pair of channels about the target [nats], without bias correction."""
        return (
            label_information_pair(*self._label)
            if self.convention.target == "label"
            else pair_information(self.target_correlation, self.target_readout_correlation)
        )

    @cached_property
    def _label(self) -> tuple[Tensor, Tensor]:
        classes = self.record.classes
        if classes is None:
            raise InputError("the label target needs labels, and the profile was collected without: use target='top_margin'")
        if self.images < 2 * self.profile.classes:
            raise SampleError(
                f"the label target needs at least {2 * self.profile.classes:,} images (two for each of {self.profile.classes:,} classes), "
                f"the profile has {self.images:,}: profile more images or use target='margin'"
            )
        pooled = self.record.pooled[: self.channels]
        silent = Gaussian.fit(pooled).silent
        mask = silent[:, None] | silent[None, :]
        return tuple(part.covariance.masked_fill(mask, torch.nan) for part in (pooled, classes.within_class_moments(pooled)))  # type: ignore[return-value]

    def bias(self, coordinates: int) -> float:
        """Bias of a Gaussian information about the target [nats], estimated from the layer's number of images.

        Parameters
        ----------
        coordinates
            Number of channels in the information: 1 for a single channel, 2 for a pair.

        Returns
        -------
        float
            k/(2n) for a continuous target; for the label that of the class-conditional Gaussians.
        """
        classes = self.profile.classes if self.convention.target == "label" else None
        return gaussian_bias(coordinates, self.images, classes)

    def require_samples_for_peers(self) -> None:
        """Raise if there are fewer images than channels and no shrinkage, too few for a regression on all peers.

        Raises
        ------
        SampleError
            With fewer images than channels and no shrinkage.
        """
        if self.images < self.channels and self.convention.shrinkage is None:
            raise SampleError(
                f"{self.images:,} images are too few to regress each of {self.channels:,} channels on its peers: "
                "profile more images or pass shrinkage='oas'"
            )

    def notes(self, values: np.ndarray, undefined: Callable[["LayerStatistics", int], str] | None = None) -> dict[int, str]:
        """Reasons for the values that are nan or inf.

        Parameters
        ----------
        values
            (channels,) values of a score.
        undefined
            Layer, channel → the reason for nan at a channel that varies.

        Returns
        -------
        dict
            Channel → reason.
        """
        silent = self.gaussian.silent.numpy()
        notes = {}
        for channel in np.flatnonzero(~np.isfinite(values)).tolist():
            if np.isinf(values[channel]):
                notes[channel] = self._copies(channel)
            else:
                reason = "the score is undefined for it" if undefined is None else undefined(self, channel)
                notes[channel] = "silent: it does not vary over the images" if silent[channel] else reason
        return notes

    def _copies(self, channel: int) -> str:
        same = torch.isinf(correlation_information(self.correlation[channel]))
        same[channel] = False
        peers = same.nonzero()[:, 0].tolist()
        if peers:
            return f"exact copy of {', '.join(map(str, peers[:5]))} (up to scale and float32 resolution)"
        return "determines the target up to float32 resolution"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(f"target='{word}'" for word in words)


def _as_image_count(moments: Moments, images: int) -> Moments:
    """The same covariance, counted as that many samples: positions of one image are not independent."""
    return Moments(float(images), moments.mean, moments.scatter * (images / moments.count)) if moments.count else moments


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
                layer = LayerStatistics.of_all(profile, site, convention)
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
