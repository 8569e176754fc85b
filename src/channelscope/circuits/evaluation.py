"""How closely a circuit follows its feature on held-out images, over images × positions, and the tables of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from channelscope import tables
from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import CircuitOptions, baseline_scores, criterion_named
from channelscope.circuits.feature import LocatedFeature, feature_values, value_range
from channelscope.circuits.kernel_scores import Batch, KernelScores
from channelscope.circuits.selection import kernel_count, top_k
from channelscope.display import Facts, Shown
from channelscope.errors import ShapeError
from channelscope.formulas.intervals import Interval, bootstrap_counts
from channelscope.network.channel_graph import Merge
from channelscope.progress import track
from channelscope.subset import Subset
from channelscope.tables.quantities import Column
from channelscope.types import Float, Tensor

BOOTSTRAP_DRAWS = 1000
"""Bootstrap samples of the images behind an interval."""

ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Variance over mean square below which values count as equal."""


@dataclass(frozen=True, eq=False, repr=False)
class Fidelity(Shown):
    """Sums per image from which both measures follow; fidelities on disjoint images add up."""

    sums: Float[Tensor, "images 7"]
    """float64: positions, Σy, Σŷ, Σy², Σŷ², Σyŷ, Σ(ŷ − y)²"""

    def facts(self) -> Facts:
        """Correlation and normalized error with their intervals."""
        return f"Fidelity({self.images:,} images)", [("r", str(self.r)), ("error", str(self.error))]

    @classmethod
    def of(cls, feature: Float[Tensor, "images positions"], guess: Float[Tensor, "images positions"]) -> "Fidelity":
        """Fidelity of ŷ to y.

        Parameters
        ----------
        feature
            The feature y, (images, positions).
        guess
            What stands for it, ŷ, of the same shape.

        Raises
        ------
        ShapeError
            If the shapes differ.

        Examples
        --------
        >>> fidelity = Fidelity.of(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]]))
        >>> fidelity.r.value, fidelity.error.value
        (1.0, 0.5)
        """
        if feature.shape != guess.shape:
            raise ShapeError(f"fidelity: expected two tensors of one shape, received {tuple(feature.shape)} and {tuple(guess.shape)}")
        y, g = feature.double().cpu(), guess.double().cpu()
        return cls(torch.stack([part.sum(1) for part in (torch.ones_like(y), y, g, y * y, g * g, y * g, (g - y).square())], 1))

    def __add__(self, other: "Fidelity") -> "Fidelity":
        """Over the images of both."""
        return Fidelity(torch.cat([self.sums, other.sums]))

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.sums)

    @property
    def r(self) -> Interval:
        """Pearson's correlation; nan where either side is constant. A wrong gain does not change it."""
        return self._interval(correlation)

    @property
    def error(self) -> Interval:
        """Normalized squared error Σ(ŷ − y)²/Σ(y − ȳ)²: 0 is exact, 1 is what the feature's mean reaches, and more is worse."""
        return self._interval(normalized_error)

    def _interval(self, measure) -> Interval:
        value = float(measure(self.sums.sum(0)))
        low = high = float("nan")
        if self.images > 1:
            draws = measure(bootstrap_counts(self.images, BOOTSTRAP_DRAWS) @ self.sums)
            draws = draws[~draws.isnan()]
            if 2 * len(draws) >= BOOTSTRAP_DRAWS:
                low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
        return Interval(value, low, high, self.images, f"bootstrap over {self.images} images, {BOOTSTRAP_DRAWS:,} draws")


def correlation(sums: Float[Tensor, "... 7"]) -> Float[Tensor, "..."]:
    """Pearson's r from the sums of a `Fidelity`; nan where either side does not vary.

    Parameters
    ----------
    sums
        (..., 7): positions, Σy, Σŷ, Σy², Σŷ², Σyŷ, Σ(ŷ − y)².

    Returns
    -------
    Tensor
        (...,), from −1 to 1.

    Examples
    --------
    Of y = (0, 2) and ŷ = (0, −1).

    >>> float(correlation(torch.tensor([2.0, 2.0, -1.0, 4.0, 1.0, -2.0, 9.0])))
    -1.0

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (evaluation); checked by tests/pencil_circuits.py::fidelity.
    """
    n, y, g, yy, gg, yg, _ = sums.unbind(-1)
    across, own, guess = yg - y * g / n, yy - y * y / n, gg - g * g / n
    varies = (own > ROUNDING * yy) & (guess > ROUNDING * gg)
    return torch.where(varies, across / (own.clamp(min=0) * guess.clamp(min=0)).sqrt(), torch.nan).clamp(-1, 1)


def normalized_error(sums: Float[Tensor, "... 7"]) -> Float[Tensor, "..."]:
    """Σ(ŷ − y)²/Σ(y − ȳ)² from the sums of a `Fidelity`; nan where the feature does not vary.

    Parameters
    ----------
    sums
        (..., 7): positions, Σy, Σŷ, Σy², Σŷ², Σyŷ, Σ(ŷ − y)².

    Returns
    -------
    Tensor
        (...,), at least 0.

    Examples
    --------
    Of y = (0, 2) and ŷ = (0, −1).

    >>> float(normalized_error(torch.tensor([2.0, 2.0, -1.0, 4.0, 1.0, -2.0, 9.0])))
    4.5

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (evaluation); checked by tests/pencil_circuits.py::fidelity.
    """
    n, y, _, yy, _, _, off = sums.unbind(-1)
    own = yy - y * y / n
    return torch.where(own > ROUNDING * yy, off / own, torch.nan)


@dataclass(frozen=True, eq=False, repr=False)
class HeldOutImages(Shown):
    """Images that circuits are evaluated on, with the positions that count and the feature's values there."""

    feature: LocatedFeature
    """the feature and its network"""
    batches: list[Batch]
    """images, and the positions that count in each by the unmasked network"""
    feature_values: list[Float[Tensor, "images chosen"]]
    """values of the feature, batch by batch"""

    def facts(self) -> Facts:
        """The feature and how many images."""
        return f"HeldOutImages({self.images:,} images for {self.feature.feature})", []

    @classmethod
    @torch.no_grad()
    def of(cls, feature: LocatedFeature, images: Tensor | Iterable) -> "HeldOutImages":
        """The images, after one pass of the network.

        Parameters
        ----------
        feature
            The feature and its network.
        images
            Images (images, C, H, W), or batches of them.

        Raises
        ------
        SampleError
            Without images, or if the feature is constant on all of them.

        Examples
        --------
        >>> from channelscope.circuits import locate_feature
        >>> from channelscope.zoo import toys
        >>> toy = toys.independent_channels()
        >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
        >>> held_out = HeldOutImages.of(feature, toy.batches)
        >>> held_out.images, held_out.fidelity(Circuit.full(feature)).error.value
        (256, 0.0)
        """
        found = list(feature_values(feature, images))
        value_range(feature, [seen for *_, seen in found])
        return cls(feature, [(pictures, positions) for pictures, positions, *_ in found], [values for _, _, values, _ in found])

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(each) for each, _ in self.batches)

    @torch.no_grad()
    def fidelity(self, circuit: Subset) -> Fidelity:
        """Fidelity of the network that has only these kernels; with `~circuit`, of the network without them."""
        with self.feature.ablated((~circuit).masks):
            guesses = [self.feature.feature_map(images).gather(1, positions) for images, positions in self.batches]
        found = [Fidelity.of(values, guess) for values, guess in zip(self.feature_values, guesses, strict=True)]
        return sum(found[1:], found[0])


PAPER, OURS = "Hamblin, Konkle, Alvarez 2022", "this library"

R = Column("", 3, "Pearson correlation of circuit and feature over held-out images × positions", PAPER, -1.0, 1.0)

ERROR = Column("", 3, "Σ(ŷ − y)²/Σ(y − ȳ)² on held-out images: 0 exact, 1 the feature's mean", OURS, 0.0)


def _count(meaning: str, source: str = PAPER) -> Column:
    return Column("kernels", 0, meaning, source, 0.0)


def _share(meaning: str, source: str = PAPER) -> Column:
    return Column("fraction", 3, meaning, source, 0.0, 1.0)


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


CIRCUIT_COLUMNS: Mapping[str, Column] = {
    "feature": _text("what the circuit computes"),
    "criterion": _text("how kernels were scored"),
    "kernels": _count("kernels of the circuit"),
    "relevant": _count("kernels on a path from the images to the feature"),
    "asked": _count("kernels selected, before dead ends were dropped", OURS),
    "kept": _share("kernels selected over relevant kernels"),
    "made_for": _share("share of the relevant kernels that the scores were made for; nan where they hold for every size", OURS),
    "scored": Column("images", 0, "images that kernels were scored on", OURS, 0.0),
    "r": R,
    "error": ERROR,
    "rest_error": Column("", 3, "error of what is left when the circuit is removed (completeness: 1 or more)", OURS, 0.0),
    "random_r": Column("", 3, "r of as many random kernels, median of three draws; a constant counts as 0", OURS, -1.0, 1.0),
    "random_error": Column("", 3, "error of as many random kernels, median of three draws", OURS, 0.0),
    "stability": _share("intersection over union with the circuits of bootstrapped images", OURS),
    "r_area": Column(
        "", 3, "mean of r over the logarithm of the size, from .001 to .9 of the kernels; no circuit counts as 0", OURS, -1.0, 1.0
    ),
    "excitatory": _count("kernels of the circuit whose summed effect raises the feature", OURS),
    "inhibitory": _count("kernels of the circuit whose summed effect lowers the feature", OURS),
    "input": _text("channel that the kernel reads, as layer:channel; several where it reads their sum"),
    "saliency": Column("", 4, "score of the kernel, divided by the largest in the circuit", OURS, 0.0, 1.0),
    "effect": Column(
        "", 4, "summed effect with its sign, divided by the largest in the circuit; nan where no sign is measured", OURS, -1.0, 1.0
    ),
    "reads": _count("kernels of the circuit that make the channel", OURS),
    "feeds": _count("kernels of the circuit that read the channel", OURS),
    "cluster": Column("", 0, "group of the feature's strongest images, from 0", PAPER, 0.0),
    "judged_on": Column("", 0, "group whose images the circuit was judged on", PAPER, 0.0),
    "scored_on": _text("images that the circuit's kernels were scored on"),
    "other": Column("", 0, "the other group", PAPER, 0.0),
    "shared": _share("kernels of both circuits over kernels of either"),
    "image": Column("", 0, "index of the image in its data set's fixed shuffle", OURS, 0.0),
    "activation": Column("", 4, "the feature at the position of its maximum", OURS),
    "position": _text("row,column of the feature's maximum"),
    "peak_error": Column("", 3, "Σ|ŷ − y|/Σ|y| at each image's original maximum: 0 exact, 1 silence, nan where all are 0", PAPER, 0.0),
    "median_r": Column("", 3, "median of |r| over features", PAPER, 0.0, 1.0),
    "median_error": Column("", 3, "median of the error over the features that have a circuit of that size", OURS, 0.0),
    "n_error": Column("features", 0, "features that have a circuit of that size, behind the median of the error", OURS, 0.0),
    "best": Column("", 0, "whether the criterion's median |r| is the highest, or not worse than the highest beyond chance", OURS),
    "behind": Column("", 3, "median over features of the best criterion's |r| minus this one's", OURS),
}
"""every column of the tables about circuits by name"""

CURVE_FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
"""shares of the relevant kernels at which a circuit is judged"""

CONTROL_SEEDS = 3
"""random circuits behind a control"""


def choose_size(options: CircuitOptions, scores: KernelScores, images: HeldOutImages, seed: int = 0) -> float | None:
    """The smallest size at which a circuit follows its feature better than every random circuit of that size.

    Better: the lower end of the interval of r is above the r of three random circuits, the error is below theirs, and below 1,
    which the feature's mean reaches. To judge the chosen circuit, take other images than those it was chosen on.

    Parameters
    ----------
    options
        How the circuit is chosen.
    scores
        Scores of the kernels.
    images
        Images on which sizes are compared.
    seed
        Seed of the random circuits.

    Returns
    -------
    float or None
        One of CURVE_FRACTIONS, a share of the relevant kernels; None if no size is better.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature, score_kernels
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> scores = score_kernels(feature, toy.batches)
    >>> choose_size(CircuitOptions(), scores, HeldOutImages.of(feature, toy.batches))  # exact; random circuits are not
    0.2

    References
    ----------
    This library; random circuits as a control: Hamblin, Konkle, Alvarez 2022.
    """
    feature = scores.feature
    for share in sorted(CURVE_FRACTIONS):
        if share * feature.relevant_count < feature.shortest_path:
            continue
        found = images.fidelity(options.circuit(scores, float(share)))
        chance = _random_circuits(images, kernel_count(feature, float(share)), seed)
        others = max(float(np.nan_to_num(each.r.value)) for each in chance)
        if found.r.low > others and found.error.value < min(1.0, *(each.error.value for each in chance)):
            return share
    return None


def _random_circuits(images: HeldOutImages, kernels: int, seed: int) -> list[Fidelity]:
    """Fidelity of random circuits of one size."""
    feature = images.feature
    return [
        images.fidelity(remove_dead_ends(top_k(baseline_scores(feature, "random", seed + draw), kernels), feature))
        for draw in range(1, 1 + CONTROL_SEEDS)
    ]


def evaluate_circuit(
    options: CircuitOptions, parts: list[KernelScores], held_out: HeldOutImages, seed: int = 0, signs: KernelScores | None = None
) -> dict[str, pd.DataFrame]:
    """Tables of how closely a circuit follows its feature on held-out images.

    Parameters
    ----------
    options
        How the circuit is chosen.
    parts
        Scores of groups of images, from `options.shard_scores`.
    held_out
        Images that the circuit is evaluated on.
    seed
        Seed of random circuits and of bootstraps.
    signs
        Sum of the scores with signed effects, where the criterion measures none.

    Returns
    -------
    dict[str, pd.DataFrame]
        `circuit`, one row: size, r, error, error of what is left without it, random circuits of its size, stability over images;
        `circuit_curve`, one row a size; `circuit_layers`, one row a layer; `circuit_channels`, one row a channel of the
        circuit; `circuit_kernels`, one row a kernel.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> options = CircuitOptions(keep="6")
    >>> found = evaluate_circuit(options, options.shard_scores(feature, toy.batches), HeldOutImages.of(feature, toy.batches))
    >>> found["circuit"][["kernels", "relevant", "error"]].round(3).values.tolist()
    [[6.0, 30.0, 0.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (evaluation).
    """
    scores = options.total_scores(parts)
    circuit, feature = options.circuit(scores), scores.feature
    curve = _curve(options, scores, held_out)
    short = [
        share for share in CURVE_FRACTIONS if share not in set(curve["kept"])
    ]  # no path from the images is that short: r counts as 0 there
    whole = area_over_log_size([*curve["kept"], *short], [*curve["r"], *[0.0] * len(short)])
    found = {
        "circuit": pd.DataFrame([_summary(options, parts, circuit, held_out, seed) | {"r_area": whole}]),
        "circuit_curve": curve,
        "circuit_layers": _layers(circuit, signs or scores),
        "circuit_channels": _channels(circuit, feature),
        "circuit_kernels": kernel_table(circuit, signs or scores),
    }
    facts = {"feature": str(feature.feature), "criterion": options.criterion, "held-out images": held_out.images, "seed": seed}
    return {name: tables.table(frame, name, CIRCUIT_COLUMNS, facts) for name, frame in found.items()}


def _summary(options: CircuitOptions, parts: list[KernelScores], circuit: Circuit, held_out: HeldOutImages, seed: int) -> dict[str, Any]:
    feature, asked = held_out.feature, options.kernels(held_out.feature)
    stability = options.stability(parts, circuit, seed)
    chance = _random_circuits(held_out, asked, seed)
    return {
        "feature": str(feature.feature),
        "criterion": options.criterion,
        "kernels": circuit.count,
        "asked": asked,
        "relevant": feature.relevant_count,
        "kept": asked / feature.relevant_count,
        "scored": sum(part.images for part in parts),
        "images": held_out.images,
        **fidelity_row(held_out, circuit),
        "rest_error": held_out.fidelity(~circuit).error.value,
        "random_r": float(np.median(np.nan_to_num([each.r.value for each in chance]))),
        "random_error": float(np.median([each.error.value for each in chance])),
        "stability": float(stability.mean()) if len(stability) else float("nan"),
        **dict(zip(("stability_low", "stability_high"), _fidelity_interval(stability), strict=True)),
    }


def fidelity_row(held_out: HeldOutImages, circuit: Circuit) -> dict[str, float]:
    """r and error of a circuit with their 95 % intervals, as columns of a table.

    Parameters
    ----------
    held_out
        Images that the circuit is evaluated on.
    circuit
        Kernels that are kept.

    Returns
    -------
    dict[str, float]
        r, r_low, r_high, error, error_low, error_high.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> row = fidelity_row(HeldOutImages.of(feature, toy.batches), Circuit.full(feature))
    >>> row["error"], row["error_high"]
    (0.0, 0.0)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (evaluation).
    """
    found = held_out.fidelity(circuit)
    r, error = found.r, found.error
    values = {"r": r.value, "r_low": r.low, "r_high": r.high}
    return values | {"error": error.value, "error_low": error.low, "error_high": error.high}


def _fidelity_interval(draws: torch.Tensor) -> list[float]:
    return draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist() if len(draws) else [float("nan")] * 2


def _curve(options: CircuitOptions, scores: KernelScores, held_out: HeldOutImages) -> pd.DataFrame:
    """Circuits of every size, selected from the same scores; `made_for` is the size of scores that are valid for one size only."""
    rows = []
    made_for = (
        options.kernels(held_out.feature) / held_out.feature.relevant_count
        if criterion_named(options.criterion).needs_size
        else float("nan")
    )
    for share in track(CURVE_FRACTIONS, "evaluation of circuits, sizes"):
        if share * held_out.feature.relevant_count < held_out.feature.shortest_path:
            continue  # no path from the images is that short
        circuit = options.circuit(scores, float(share))
        rows.append(
            {"kept": share, "made_for": made_for, "kernels": circuit.count, **fidelity_row(held_out, circuit), "images": held_out.images}
        )
    names = ["kept", "made_for", "kernels", "r", "r_low", "r_high", "error", "error_low", "error_high", "images"]
    return pd.DataFrame(rows, columns=names)


def area_over_log_size(kept: Sequence[float], r: Sequence[float]) -> float:
    """Area under r over ln(kept), divided by the span of ln(kept): the mean of r over log sizes.

    Sizes at which r is undefined count as 0, because such a circuit computes a constant. Areas are comparable over the same sizes:
    `evaluate_circuit` takes all of CURVE_FRACTIONS, and 0 where no path from the images is that short.

    Parameters
    ----------
    kept
        Fractions of kernels, above 0, in any order.
    r
        Correlation at each of them.

    Returns
    -------
    float
        nan for fewer than two sizes.

    Examples
    --------
    >>> round(area_over_log_size([0.01, 0.1, 1.0], [0.0, 1.0, 1.0]), 6)
    0.75

    References
    ----------
    Trapezoid rule over ln(kept).
    """
    order = np.argsort(kept)
    x, y = np.log(np.asarray(kept, dtype=float)[order]), np.nan_to_num(np.asarray(r, dtype=float)[order], nan=0.0)
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float("nan")


def _layers(circuit: Circuit, scores: KernelScores) -> pd.DataFrame:
    rows = []
    for depth, layer in enumerate(circuit):
        marks, relevant = circuit[layer], circuit.relevant[layer]
        signs = None if scores.signed_values is None else scores.signed_values[layer][marks]
        rows.append(
            {
                "site": layer,
                "depth": depth,
                "relevant": int(relevant.sum()),
                "kernels": int(marks.sum()),
                "kept": float(marks.sum() / relevant.sum()),
                "excitatory": float("nan") if signs is None else float((signs > 0).sum()),
                "inhibitory": float("nan") if signs is None else float((signs < 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def _channels(circuit: Circuit, feature: LocatedFeature) -> pd.DataFrame:
    """Every channel of the circuit, as layer and number."""
    feeds = np.zeros(feature.channel_graph.node_count, dtype=np.int64)
    for call in feature.channel_graph.calls:
        if call.layer in circuit:
            np.add.at(feeds, call.sources[circuit[call.layer].numpy()], 1)
    for part in reversed(feature.channel_graph.operations):
        if isinstance(part, Merge):
            np.add.at(feeds, part.members, feeds[part.outputs][:, None])
    rows = []
    for call in feature.channel_graph.calls:
        if call.layer not in circuit:
            continue
        reads = circuit[call.layer].sum(1).numpy()
        for channel in np.flatnonzero(reads):
            row = {"site": call.layer, "channel": int(channel), "reads": int(reads[channel]), "feeds": int(feeds[call.outputs[channel]])}
            rows.append(row | {"feature": str(feature.feature)})
    return pd.DataFrame(rows, columns=["site", "channel", "reads", "feeds", "feature"])


def kernel_table(circuit: Circuit, scores: KernelScores) -> pd.DataFrame:
    """One row for each kernel of a circuit, the largest score first.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    scores
        Their scores, and signed effects if there are any.

    Returns
    -------
    pd.DataFrame
        site, channel, input (the channel that is read), saliency (score over the largest), effect (signed, over the largest).

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> rows = kernel_table(Circuit.full(feature), baseline_scores(feature, "magnitude"))
    >>> rows[["site", "channel", "input", "saliency"]].head(2).values.tolist()
    [['conv', 4, 'image:4', 1.0], ['conv', 3, 'image:3', 0.8]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; `effect` is the signed gate sum.
    """
    feature, rows = scores.feature, []
    names = feature.channel_graph.names()
    for call in feature.channel_graph.calls:
        if call.layer not in circuit:
            continue
        for row, column in circuit[call.layer].nonzero().tolist():
            signed = float("nan") if scores.signed_values is None else float(scores.signed_values[call.layer][row, column])
            values = {"saliency": float(scores[call.layer][row, column]), "effect": signed}
            rows.append({"site": call.layer, "channel": row, "input": names[call.sources[row, column]], **values})
    frame = pd.DataFrame(rows, columns=["site", "channel", "input", "saliency", "effect"])
    for column in ("saliency", "effect"):
        largest = frame[column].abs().max()
        frame[column] = frame[column] / largest if largest > 0 else frame[column]
    return frame.sort_values("saliency", ascending=False, kind="stable", ignore_index=True)
