"""score: the saliency of every kernel by any criterion, through one interface."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch

from channelscope.circuits import contributions
from channelscope.circuits.contributions import Geometry
from channelscope.circuits.gates import Training, learn
from channelscope.circuits.saliency import Batch, Pass, Rule, Saliency, among, measure, prepared
from channelscope.circuits.select import count, schedule, top
from channelscope.circuits.target import Target, batches
from channelscope.errors import InputError
from channelscope.types import Tensor


@dataclass(frozen=True)
class Criterion:
    """A way to score kernels."""

    name: str
    """name in tables and on the command line"""
    rule: Rule | None
    """layer inputs, output gradients and geometry → sums over the batch; None where no image is needed or gates are learned"""
    iterated: bool
    """whether kernels are dropped in ten rounds, scored again each time; the result is for one size"""
    meaning: str
    """what the number is"""
    source: str
    """where the definition comes from"""

    @property
    def sized(self) -> bool:
        """Whether the saliency is made for one number of kernels."""
        return self.iterated or self.name == "learned"


PLAIN = Pass()
PAPER, OURS = "Hamblin, Konkle, Alvarez 2022", "this library"
SCHEDULED = f"{OURS}, on the schedule of de Jorge et al. 2021"
CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("gate", contributions.gate, False, "Σ over images of |Σ over positions of A·G|", OURS),
        Criterion("actgrad", contributions.actgrad, False, "Σ over images of the mean over positions of |A·G|", PAPER),
        Criterion("snip", contributions.snip, False, "Σ over images of the kernel's mean |w·dJ/dw|", "Lee, Ajanthan, Torr 2019"),
        Criterion("snip_batch", partial(contributions.snip, per_batch=True), False, "mean |w·dJ/dw|, summed by batch first", PAPER),
        Criterion("force", contributions.snip, True, "SNIP on the FORCE schedule", "de Jorge et al. 2021"),
        Criterion("iterated_gate", contributions.gate, True, "gate on the FORCE schedule", SCHEDULED),
        Criterion("iterated_actgrad", contributions.actgrad, True, "ActGrad on the FORCE schedule", SCHEDULED),
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


def score(
    target: Target,
    images: Tensor | Iterable,
    criterion: str = "gate",
    keep: float | int | None = None,
    *,
    how: Pass = PLAIN,
    seed: int = 0,
    training: Training | None = None,
) -> Saliency:
    """Saliency of every relevant kernel of a feature.

    keep       size of the circuit, for criteria that are made for one size (force, iterated_…, learned)
    how        how gradients are measured: reduction over positions, path, and the circuit inside which kernels are scored
    seed       of random
    training   of learned

    Raises   InputError for an unknown criterion or a missing size; SampleError without images.
    Source   each criterion cites its own
    """
    kind = named(criterion)
    if kind.sized and keep is None:
        raise InputError(f"criterion {criterion} scores kernels for one circuit size: pass keep")
    if criterion in ("magnitude", "random"):
        found = control(target, criterion, seed)
        return found if how.inside is None else replace(found, values=among(how.inside.marks, found.values), inside=how.inside)
    if criterion == "snip_batch":  # sums each batch as it is given
        given = batches(images, target.device)
    elif criterion == "learned":  # takes a step a batch, whatever batches it is given
        given = target.batches(torch.cat(list(target.batches(images))))
    else:
        given = target.batches(images)
    ready = prepared(target, given)
    if criterion == "learned":
        size = count(target, keep)  # type: ignore[arg-type]
        return learn(target, ready, size, measure(target, ready, "gate", contributions.gate, how), training, how.inside)
    if kind.iterated:
        return iterated(target, ready, kind, count(target, keep), how)  # type: ignore[arg-type]
    return measure(target, ready, criterion, kind.rule, how)  # type: ignore[arg-type]


def signed(saliency: Saliency, images: Tensor | Iterable) -> Saliency:
    """The saliency with signed effects: those it has, or the gate criterion's, which take one more pass.

    Source   this library (the sign of Σ A·G)
    """
    if saliency.signed is not None:
        return saliency
    return replace(saliency, signed=score(saliency.target, images, "gate").signed)


def named(criterion: str) -> Criterion:
    """The criterion of that name.

    Raises   InputError with the names there are.
    Source   Hamblin, Konkle, Alvarez 2022
    """
    if criterion not in CRITERIA:
        raise InputError(f"unknown criterion '{criterion}': expected one of {', '.join(CRITERIA)}")
    return CRITERIA[criterion]


def iterated(target: Target, ready: list[Batch], kind: Criterion, keep: int, how: Pass) -> Saliency:
    """Scores of the last of ten rounds, each measured in the network that the round before has left; the dropped may return.

    The rounds begin with all relevant kernels, or with those of the circuit that kernels are scored inside.

    Source   de Jorge et al. 2021 (FORCE); with other criteria than SNIP, this library
    """
    marks, found = None, None
    for size in schedule(target.kernels if how.inside is None else how.inside.count, keep):
        found = measure(target, ready, kind.name, kind.rule, how, marks)  # type: ignore[arg-type]
        marks = target.everything()
        chosen = top(found, size)
        marks = {layer: chosen[layer] | ~target.relevant[layer] for layer in marks}
    assert found is not None
    return found


def control(target: Target, criterion: str, seed: int = 0) -> Saliency:
    """Magnitude or random scores: no image is looked at.

    Source   Hamblin, Konkle, Alvarez 2022 (controls)
    """
    noise = torch.Generator().manual_seed(seed)
    make: dict[str, Callable[[str], Tensor]] = {
        "magnitude": lambda layer: contributions.magnitude(Geometry.of(target.graph.modules[layer])).cpu(),
        "random": lambda layer: torch.rand(target.relevant[layer].shape, generator=noise, dtype=torch.float64),
    }
    values = {layer: torch.where(marks, make[criterion](layer), 0.0) for layer, marks in target.relevant.items()}
    return Saliency(target, criterion, values, 0)
