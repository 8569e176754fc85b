"""Criteria by name and the score of every kernel of a feature by any of them, learned gates among them; CircuitOptions."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from functools import reduce as fold
from operator import add
from typing import Literal

import numpy as np
import torch

from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.feature import LocatedFeature, image_batches
from channelscope.circuits.kernel_scores import (
    Batch,
    GradientOptions,
    KernelCriterion,
    KernelScores,
    Path,
    Reduce,
    actgrad,
    broadcast_mask,
    gate_scores,
    magnitude,
    masked_scores,
    score_batches,
    snip,
    with_positions,
)
from channelscope.circuits.selection import connected_top_k, geometric_schedule, kernel_count, top_k
from channelscope.errors import BudgetError, InputError, check_choice
from channelscope.formulas.intervals import bootstrap_counts
from channelscope.network.module_state import eval_mode
from channelscope.network.patches import LayerKernels
from channelscope.progress import track
from channelscope.types import Float, Tensor

TEMPERATURE = 2 / 3

STRETCH = (-0.1, 1.1)

NOISE_MARGIN = torch.finfo(torch.float32).eps
"""Distance of the noise from 0 and 1, where its log-odds are infinite."""

MAX_INITIAL_LOG_ALPHA = 4.0
"""Largest distance of a gate's first log-odds from zero."""

DEFAULT = GradientOptions()

PAPER, OURS = "Hamblin, Konkle, Alvarez 2022", "this library"

SCHEDULED = f"{OURS}, on the schedule of de Jorge et al. 2021"

SHARDS = 16
"""Groups of images whose saliencies are kept apart, for bootstraps over images."""

DRAWS = 50
"""Bootstrap samples behind a stability."""


@dataclass(frozen=True)
class GateTraining:
    """How gates are learned."""

    steps: int = 200
    """gradient steps of Adam, one batch each"""
    rate: float = 0.2
    """learning rate, falling to zero along a cosine"""
    penalty: float = 1.0
    """weight of the open kernels beyond the budget, as a multiple of the budget"""
    seed: int = 0
    """of the gates' noise"""


def hard_concrete(log_alpha: Float[Tensor, "..."], noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A hard-concrete gate: a number from 0 to 1, exactly 0 or 1 with positive probability.

        s = σ((ln u − ln(1 − u) + ln α)/β),  m = min(1, max(0, s (ζ − γ) + γ))

    Parameters
    ----------
    log_alpha
        Ln α, any shape.
    noise
        U, uniform in (0, 1), of the same shape.

    Returns
    -------
    Tensor
        The gate m, of the same shape.

    Examples
    --------
    >>> hard_concrete(torch.tensor([0.0, 4.0, -4.0]), torch.tensor([0.5, 0.5, 0.5])).tolist()
    [0.5, 1.0, 0.0]

    References
    ----------
    Louizos, Welling, Kingma 2018; checked by tests/pencil_circuits.py::opening.
    """
    s = torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / TEMPERATURE)
    low, high = STRETCH
    return (s * (high - low) + low).clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Probability that a gate is not zero: σ(ln α − β ln(−γ/ζ)).

    Parameters
    ----------
    log_alpha
        Ln α, any shape.

    Returns
    -------
    Tensor
        Of the same shape; its sum is the expected L0.

    Examples
    --------
    At ln α = β ln(−γ/ζ) a gate is open half of the time.

    >>> round(float(open_probability(torch.tensor(2 / 3 * math.log(1 / 11)))), 4)
    0.5

    References
    ----------
    Louizos, Welling, Kingma 2018; checked by tests/pencil_circuits.py::openness.
    """
    low, high = STRETCH
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-low / high))


def learned_gates(
    feature: LocatedFeature,
    batches: list[Batch],
    keep: int,
    start: KernelScores,
    training: GateTraining | None = None,
    inside: Circuit | None = None,
) -> KernelScores:
    """Scores by gates that minimize the feature's normalized error plus a penalty on open gates beyond `keep`.

        Σ(ŷ − y)²/Σ(y − ȳ)² + λ · max(0, E[L0] − k)/k

    The error is that of each batch over the variance of all images, so that its mean over equal batches is the normalized error.
    Open gates cost nothing up to k, because the circuit has k kernels; the definition with λ · E[L0] has no size. Gates begin at the log
    of the start score over its k-th largest value, at most 4 from 0: closed gates are then open with probability .08, so that more than k
    are open at first, every gate has a gradient, and the penalty closes the rest.

    Parameters
    ----------
    feature
        The feature and its network.
    batches
        Images with the positions that count, from `with_positions`; one optimizer step each, in turn.
    keep
        Number k of kernels.
    start
        Scores that the gates begin from.
    training
        Steps, learning rate, penalty λ and seed.
    inside
        Circuit whose kernels may be open; all other gates are closed and do not count in E[L0].

    Returns
    -------
    KernelScores
        Probability that each gate is open.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature, score_kernels, top_k
    >>> from channelscope.circuits.kernel_scores import with_positions
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> batches, start = with_positions(feature, [toy.batches[0][0]]), score_kernels(feature, toy.batches)
    >>> scores = learned_gates(feature, batches, 6, start, GateTraining(steps=5))
    >>> top_k(scores, 6)["conv"].nonzero().tolist()
    [[0, 0], [2, 2], [4, 4]]

    References
    ----------
    This library, with the gates of Louizos, Welling, Kingma 2018.
    """
    training = training or GateTraining()
    values = start.flatten()
    threshold = float(values.sort(descending=True).values[keep - 1])
    log_alpha = (
        (values / threshold).log().clamp(-MAX_INITIAL_LOG_ALPHA, MAX_INITIAL_LOG_ALPHA)
        if threshold > 0
        else torch.where(values > 0, MAX_INITIAL_LOG_ALPHA, -MAX_INITIAL_LOG_ALPHA)
    )
    log_alpha = log_alpha.to(feature.device, torch.get_default_dtype()).requires_grad_()
    optimizer = torch.optim.Adam([log_alpha], lr=training.rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    generator = torch.Generator().manual_seed(training.seed)
    counted = torch.cat([(feature.relevant if inside is None else inside.masks)[layer][m] for layer, m in feature.relevant.items()])
    own = {
        layer: weight if inside is None else weight * broadcast_mask(inside[layer], weight)
        for layer, weight in feature.original_weights().items()
    }
    with eval_mode(feature.model), torch.enable_grad():
        target_values = [_chosen(feature, images, positions, None) for images, positions in batches]
        spread = torch.cat([values.flatten() for values in target_values]).var(correction=0)
        for step in range(training.steps):
            images, positions = batches[step % len(batches)]
            noise = torch.rand(log_alpha.shape, generator=generator).clamp_(NOISE_MARGIN, 1 - NOISE_MARGIN).to(log_alpha)
            weights = _gated(feature, own, hard_concrete(log_alpha, noise))
            wanted = target_values[step % len(batches)]
            error = (_chosen(feature, images, positions, weights) - wanted).square().mean() / spread
            l0_penalty = (open_probability(log_alpha[counted]).sum() / keep - 1).clamp(min=0)
            (log_alpha.grad,) = torch.autograd.grad(error + training.penalty * l0_penalty, log_alpha)
            optimizer.step()
            scheduler.step()
    found = _ranked(feature, log_alpha.detach(), start)
    return found if inside is None else replace(found, values=masked_scores(inside.masks, found.values), inside=inside)


def _chosen(feature: LocatedFeature, images: Tensor, positions: Tensor, weights: dict[str, Tensor] | None) -> Tensor:
    with torch.set_grad_enabled(weights is not None):
        return feature.feature_map(images, weights).gather(1, positions)


def _gated(feature: LocatedFeature, own: dict[str, Tensor], gates: Tensor) -> dict[str, Tensor]:
    """Weights with every relevant kernel multiplied by its gate; the others stay."""
    weights, begin = {}, 0
    for layer, marks in feature.relevant.items():
        marks = marks.to(gates.device)
        size = int(marks.sum())
        spread = torch.ones(marks.shape, device=gates.device, dtype=gates.dtype).masked_scatter(marks, gates[begin : begin + size])
        weights[layer] = own[layer] * spread.view(*marks.shape, *[1] * (own[layer].dim() - 2))
        begin += size
    return weights


def _ranked(feature: LocatedFeature, log_alpha: Tensor, start: KernelScores) -> KernelScores:
    flat, values, begin = open_probability(log_alpha.double()).cpu(), {}, 0
    for layer, marks in feature.relevant.items():
        size = int(marks.sum())
        values[layer] = torch.zeros(marks.shape, dtype=torch.float64).masked_scatter_(marks, flat[begin : begin + size])
        begin += size
    return KernelScores(feature, "learned", values, start.images, start.signed_values)


@dataclass(frozen=True)
class Criterion:
    """A way to score kernels."""

    name: str
    """name in tables and on the command line"""
    function: KernelCriterion | None
    """layer inputs, output gradients and geometry → sums over the batch; None where no image is needed or gates are learned"""
    iterative: bool
    """whether kernels are dropped in ten rounds, scored again each time; the result is for one size"""
    meaning: str
    """what the number is"""
    source: str
    """where the definition comes from"""

    @property
    def needs_size(self) -> bool:
        """Whether the scores hold for one number of kernels only."""
        return self.iterative or self.name == "learned"


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("gate", gate_scores, False, "Σ over images of |Σ over positions of A·G|", OURS),
        Criterion("actgrad", actgrad, False, "Σ over images of the mean over positions of |A·G|", PAPER),
        Criterion("snip", snip, False, "Σ over images of the kernel's mean |w·dJ/dw|", "Lee, Ajanthan, Torr 2019"),
        Criterion("snip_batch", partial(snip, per_batch=True), False, "mean |w·dJ/dw|, summed by batch first", PAPER),
        Criterion("force", snip, True, "SNIP on the FORCE schedule", "de Jorge et al. 2021"),
        Criterion("iterated_gate", gate_scores, True, "gate on the FORCE schedule", SCHEDULED),
        Criterion("iterated_actgrad", actgrad, True, "ActGrad on the FORCE schedule", SCHEDULED),
        Criterion(
            "learned",
            None,
            False,
            "openness of gates trained on the feature's error",
            f"{OURS}, with the gates of Louizos, Welling, Kingma 2018",
        ),
        Criterion("magnitude", None, False, "mean |w| of the kernel", "control"),
        Criterion("random", None, False, "uniform noise, seeded", "control"),
    )
}
"""every criterion by name"""


def score_kernels(
    feature: LocatedFeature,
    images: Tensor | Iterable,
    criterion: str = "gate",
    keep: float | int | None = None,
    *,
    gradient: GradientOptions = DEFAULT,
    seed: int = 0,
    training: GateTraining | None = None,
) -> KernelScores:
    """The score of every kernel that a feature depends on, by one criterion.

    Parameters
    ----------
    feature
        The feature and its network.
    images
        Images (images, C, H, W), or batches of them.
    criterion
        A key of `CRITERIA`.
    keep
        Size of the circuit, a number of kernels or a fraction; needed by criteria made for one size (force, iterated_…, learned).
    gradient
        How gradients are measured: reduction over positions, path, and the circuit inside which kernels are scored.
    seed
        Seed of `random`.
    training
        Options of `learned`.

    Returns
    -------
    KernelScores
        One number for each kernel, at least 0, summed over images.

    Raises
    ------
    InputError
        For an unknown criterion or a missing size.
    SampleError
        Without images.

    Examples
    --------
    The logit is x₀ + 3 x₂ + x₄: each image contributes 16 times the weights, from a bias of 16 and planes with mean 0.

    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> scores = score_kernels(feature, toy.batches)
    >>> (scores["fc"][1] / scores.images).round(decimals=3).tolist()
    [16.0, 0.0, 48.0, 0.0, 16.0]

    References
    ----------
    Each criterion cites its own.
    """
    kind = criterion_named(criterion)
    if kind.needs_size and keep is None:
        raise InputError(f"criterion {criterion} scores kernels for one circuit size: pass keep")
    if criterion in ("magnitude", "random"):
        found = baseline_scores(feature, criterion, seed)
        return (
            found
            if gradient.inside is None
            else replace(found, values=masked_scores(gradient.inside.masks, found.values), inside=gradient.inside)
        )
    if criterion == "snip_batch":  # sums each batch as it is given
        given = image_batches(images, feature.device)
    elif criterion == "learned":  # takes a step a batch, whatever batches it is given
        given = feature.image_batches(torch.cat(list(feature.image_batches(images))))
    else:
        given = feature.image_batches(images)
    ready = with_positions(feature, given)
    if criterion == "learned":
        size = kernel_count(feature, keep)  # type: ignore[arg-type]
        return learned_gates(feature, ready, size, score_batches(feature, ready, "gate", gate_scores, gradient), training, gradient.inside)
    if kind.iterative:
        return iterative_scores(feature, ready, kind, kernel_count(feature, keep), gradient)  # type: ignore[arg-type]
    return score_batches(feature, ready, criterion, kind.function, gradient)  # type: ignore[arg-type]


def with_signs(scores: KernelScores, images: Tensor | Iterable) -> KernelScores:
    """The scores with signed effects: those that they have, or those of the gate criterion, which take one more pass.

    Parameters
    ----------
    scores
        Scores by any criterion.
    images
        Images (images, C, H, W), or batches of them; used if the criterion measures no sign.

    Returns
    -------
    KernelScores
        The same values, with `signed_values`.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> scores = with_signs(baseline_scores(feature, "magnitude"), toy.batches)
    >>> scores["fc"][1].round(decimals=1).tolist(), scores.signed_values["fc"][1].sign().tolist()
    ([1.0, 0.0, 1.0, 0.0, 0.2], [1.0, 0.0, 1.0, 0.0, 1.0])

    References
    ----------
    This library (the sign of Σ A·G).
    """
    if scores.signed_values is not None:
        return scores
    return replace(scores, signed_values=score_kernels(scores.feature, images, "gate").signed_values)


def criterion_named(criterion: str) -> Criterion:
    """The criterion with this name.

    Parameters
    ----------
    criterion
        A key of `CRITERIA`.

    Returns
    -------
    Criterion
        Name, function, meaning and source.

    Raises
    ------
    InputError
        For an unknown name, with all that exist.

    Examples
    --------
    >>> criterion_named("gate").meaning
    'Σ over images of |Σ over positions of A·G|'

    References
    ----------
    Hamblin, Konkle, Alvarez 2022.
    """
    check_choice("criterion", criterion, CRITERIA)
    return CRITERIA[criterion]


def iterative_scores(feature: LocatedFeature, ready: list[Batch], kind: Criterion, keep: int, gradient: GradientOptions) -> KernelScores:
    """Scores of the last of ten rounds, each measured in the network that the round before has left.

    The rounds begin with all relevant kernels, or with those of the circuit that kernels are scored inside. Kernels that a round
    drops are scored again in the next one and may return.

    Parameters
    ----------
    feature
        The feature and its network.
    ready
        Batches of images with the positions that count, from `with_positions`.
    kind
        An iterative criterion.
    keep
        Number of kernels at the end.
    gradient
        How gradients are measured.

    Returns
    -------
    KernelScores
        Valid for circuits of `keep` kernels.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> ready = with_positions(feature, feature.image_batches(toy.batches))
    >>> scores = iterative_scores(feature, ready, criterion_named("force"), 6, DEFAULT)
    >>> top_k(scores, 6)["conv"].nonzero().tolist()
    [[0, 0], [2, 2], [4, 4]]

    References
    ----------
    De Jorge et al. 2021 (FORCE); with other criteria than SNIP, this library.
    """
    marks, found = None, None
    for size in geometric_schedule(feature.relevant_count if gradient.inside is None else gradient.inside.count, keep):
        found = score_batches(feature, ready, kind.name, kind.function, gradient, marks)  # type: ignore[arg-type]
        marks = feature.full_mask()
        chosen = top_k(found, size)
        marks = {layer: chosen[layer] | ~feature.relevant[layer] for layer in marks}
    assert found is not None
    return found


def baseline_scores(feature: LocatedFeature, criterion: str, seed: int = 0) -> KernelScores:
    """Magnitude or random scores, which need no images.

    Parameters
    ----------
    feature
        The feature and its network.
    criterion
        `magnitude` or `random`.
    seed
        Seed of `random`.

    Returns
    -------
    KernelScores
        0 at kernels that the feature does not depend on; `images` is 0.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> baseline_scores(feature, "magnitude")["conv"][2].tolist()
    [0.0, 0.0, 3.0, 0.0, 0.0]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (controls).
    """
    noise = torch.Generator().manual_seed(seed)
    make: dict[str, Callable[[str], Tensor]] = {
        "magnitude": lambda layer: magnitude(LayerKernels.of(feature.graph.modules[layer])).cpu(),
        "random": lambda layer: torch.rand(feature.relevant[layer].shape, generator=noise, dtype=torch.float64),
    }
    values = {layer: torch.where(marks, make[criterion](layer), 0.0) for layer, marks in feature.relevant.items()}
    return KernelScores(feature, criterion, values, 0)


AUTO = "auto"
"""in the place of a size: the command `circuit` takes what `evaluation.choose_size` finds"""

USUAL_SIZE = 0.1
"""share of the relevant kernels where no size is given or can be chosen"""


@dataclass(frozen=True)
class CircuitOptions:
    """How a circuit is chosen."""

    criterion: str = "gate"
    """gate, actgrad, snip, snip_batch, force, iterated_gate, iterated_actgrad, learned, magnitude or random"""
    keep: str = AUTO
    """size: a fraction of the relevant kernels (0.1) or a number of them (210); auto: the smallest better than random, else 0.1"""
    reduce: Reduce = "sum"
    """how the feature's positions become one value per image"""
    layer_norm: Literal["none", "l1", "l2"] = "none"
    """divide the scores of each layer by their sum (l1) or Euclidean norm (l2)"""
    path: Path | None = None
    """average gradients while all kernels (gates) or the images (inputs) are scaled from 0 to 1"""
    live: bool = False
    """keep only kernels on live paths, grown from the feature, so that no layer is left out"""
    dead_ends: Literal["backward", "full", "none"] = "backward"
    """kernels that lead nowhere: backward drops them (exact), full drops also those nothing leads to (as published), none"""

    def __post_init__(self) -> None:
        """Check the values."""
        criterion_named(self.criterion)
        if not isinstance(self.keep, str):  # a number, as a text without an exponent
            object.__setattr__(self, "keep", np.format_float_positional(self.keep) if isinstance(self.keep, float) else str(self.keep))
        parse_keep(self.keep)

    def kernels(self, feature: LocatedFeature) -> int:
        """Size of the circuit.

        Raises
        ------
        BudgetError
            With the smallest size there is, if no path from the images to the feature fits.
        """
        wanted = kernel_count(feature, parse_keep(self.keep))
        if self.keep == AUTO:
            return max(wanted, feature.shortest_path)
        if wanted < feature.shortest_path:
            raise BudgetError(
                f"feature {feature.feature}: keep={self.keep} is {wanted} of {feature.relevant_count:,} kernels, and no path from the "
                f"images is that short; the smallest circuit has {feature.shortest_path} kernels "
                f"(a fraction of {feature.shortest_path / feature.relevant_count:.2g})"
            )
        return wanted

    def shard_scores(
        self, feature: LocatedFeature, images: Tensor | Iterable, seed: int = 0, inside: Circuit | None = None
    ) -> list[KernelScores]:
        """Scores of groups of images, which add up.

        Up to 16 groups; the batches as given for snip_batch; a single one where a criterion needs all images at once.

        Parameters
        ----------
        feature
            The feature and its network.
        images
            Images (images, C, H, W), or batches of them.
        seed
            Seed of `random`.
        inside
            Score in the network that has only these of the relevant kernels; all others get 0.

        Returns
        -------
        list[KernelScores]
            One for each group.
        """
        if self.criterion in ("magnitude", "random"):
            return [self._scored(feature, images, seed, inside)]
        if self.criterion == "snip_batch":
            return [self._scored(feature, batch, seed, inside) for batch in image_batches(images, feature.device)]
        batches = list(feature.image_batches(images))
        if criterion_named(self.criterion).needs_size:
            return [self._scored(feature, batches, seed, inside)]
        together = torch.cat(batches)
        step = max(1, -(-len(together) // SHARDS))
        return [self._scored(feature, group, seed, inside) for group in track(together.split(step), "kernel scores, groups of images")]

    def scores(self, feature: LocatedFeature, images: Tensor | Iterable, seed: int = 0) -> KernelScores:
        """Scores over all images at once, normalized by layer as the options say."""
        return self._scored(feature, images, seed, None).normalized_by_layer(self.layer_norm)

    def _scored(self, feature: LocatedFeature, images: Tensor | Iterable, seed: int, inside: Circuit | None) -> KernelScores:
        size = self.kernels(feature)
        return score_kernels(feature, images, self.criterion, size, gradient=GradientOptions(self.reduce, self.path, inside), seed=seed)

    def total_scores(self, shard_scores: list[KernelScores]) -> KernelScores:
        """The sum of the scores of groups of images, normalized by layer as the options say."""
        return fold(add, shard_scores).normalized_by_layer(self.layer_norm)

    def circuit(self, scores: KernelScores, keep: int | float | None = None) -> Circuit:
        """The circuit of these scores, without dead ends; of another size if `keep` is given."""
        feature = scores.feature
        wanted = self.kernels(feature) if keep is None else keep
        return remove_dead_ends((connected_top_k if self.live else top_k)(scores, wanted), feature, self.dead_ends)

    def stability(self, shard_scores: list[KernelScores], circuit: Circuit, seed: int = 0) -> Float[Tensor, "draws"]:
        """Intersection over union of the circuit with circuits of bootstrapped images; empty where there is one group of images.

        Parameters
        ----------
        shard_scores
            Scores of groups of images, which are drawn with replacement.
        circuit
            The circuit of all images.
        seed
            Seed of the draws.

        Returns
        -------
        Tensor
            Float64 (50,), or (0,).
        """
        if len(shard_scores) < 2:
            return torch.zeros(0, dtype=torch.float64)
        shares = []
        for weights in bootstrap_counts(len(shard_scores), DRAWS, seed).tolist():
            resample = [part for part, times in zip(shard_scores, weights, strict=True) for _ in range(int(times))]
            shares.append(circuit.iou(self.circuit(self.total_scores(resample)))[""])
        return torch.tensor(shares, dtype=torch.float64)


def parse_keep(text: str) -> float | int:
    """The number that a text means: '0.1' is a fraction of the relevant kernels, '210' a number of kernels, 'auto' 0.1 before a choice.

    Parameters
    ----------
    text
        A fraction with a decimal point, a whole number, or auto.

    Returns
    -------
    float or int
        A float is a fraction, an int a number of kernels.

    Raises
    ------
    BudgetError
        If it is neither.

    Examples
    --------
    >>> parse_keep("0.1"), parse_keep("210"), parse_keep("auto")
    (0.1, 210, 0.1)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: sizes are fractions of relevant kernels kept.
    """
    if text == AUTO:
        return USUAL_SIZE
    if re.fullmatch(r"\d+", text.strip()):
        return int(text)
    if re.fullmatch(r"\d*\.\d+|\d+\.", text.strip()):
        return float(text)
    raise BudgetError(f"keep: expected a fraction such as 0.1 or a number of kernels such as 210, or auto, received '{text}'")
