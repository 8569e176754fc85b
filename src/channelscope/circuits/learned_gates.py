"""Learned gates: hard-concrete gates on every kernel, trained to reproduce the feature under an L0 penalty."""

import math
from dataclasses import dataclass, replace

import torch

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.feature import LocatedFeature
from channelscope.circuits.kernel_scores import Batch, KernelScores, broadcast_mask, masked_scores
from channelscope.network.module_state import eval_mode
from channelscope.types import Float, Tensor

TEMPERATURE = 2 / 3

STRETCH = (-0.1, 1.1)

NOISE_MARGIN = torch.finfo(torch.float32).eps
"""Distance of the noise from 0 and 1, where its log-odds are infinite."""

MAX_INITIAL_LOG_ALPHA = 4.0
"""Largest distance of a gate's first log-odds from zero."""


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
