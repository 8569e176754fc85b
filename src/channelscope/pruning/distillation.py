"""distill: a smaller network learns the outputs of the original one on images without labels."""

import copy
import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from channelscope.data.batches import images_of
from channelscope.errors import DataError, InputError, NumericError, check_choice
from channelscope.evaluation import logits_in
from channelscope.network.cost import cost
from channelscope.network.graph import memory_format
from channelscope.network.module_state import channels_last, device_of, eval_mode, restored_momentum
from channelscope.network.operations import tracking_norms
from channelscope.progress import log_numbers, progress_bar
from channelscope.zoo.precision import PRECISIONS, TrainingPrecision, faster_precision, logits_to_learn
from channelscope.zoo.training_run import Schedule

BEYOND_CHANCE = 2
"""Standard errors by which the loss may rise: two networks are then not told apart, and the taught one is kept."""

RATE, LARGEST_STEP = 0.5 / 1000, 1 / 80
"""First learning rate of Adam, which is about how far a step moves each weight, and the share of the root mean square of a layer's
weights up to which it may be: those of wide layers are small."""

EPOCHS, FAR, FAR_EPOCHS = 16, 0.45, 40
"""Usual passes over the images, and those where less than this fraction of the teacher's multiply-adds is left: the farther the cut, the
longer it takes to learn (docs/results/repair.md)."""


@dataclass(frozen=True)
class DistillationPlan:
    """How long, how fast and how softly a network is taught.

    Examples
    --------
    >>> DistillationPlan(epochs=8).temperature
    4.0
    """

    epochs: int | None = None
    """passes over the images; None takes 16, and 40 for a student with less than .45 of the teacher's multiply-adds"""
    lr: float | None = None
    """first learning rate of Adam; None takes .0005, or 1/80 of the root mean square of a layer's weights where that is less"""
    temperature: float = 4.0
    """T, by which the logits are divided"""
    mirror: bool = False
    """whether what is taught is the teacher's mean log-probability for an image and its mirror image; for images that may be mirrored"""
    batch_statistics: bool = True
    """whether BatchNorm normalizes with the batch's own statistics in all epochs but the last, before which they are estimated anew"""
    precision: TrainingPrecision = "auto"
    """of both networks' products: float32, bfloat16, or auto, which takes what is faster in a trial of two seconds on this device"""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range and another precision."""
        if (self.epochs is not None and self.epochs < 1) or (self.lr is not None and not self.lr > 0) or not self.temperature > 0:
            raise InputError(
                "expected at least one epoch, and a rate and a temperature above zero; received "
                f"{self.epochs} epochs, lr {self.lr}, T {self.temperature}"
            )
        check_choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Distillation:
    """A distilled network, and its distance from the teacher before and after."""

    model: nn.Module
    """the student after the last epoch in evaluation mode, or as it was where `harmed` is True"""
    before: float
    """mean loss of the student on the validation images, T² times the divergence of its softened class probabilities from those that it
    is taught, in nats"""
    after: float
    """the same after the last epoch"""
    error: float
    """standard error of their difference over the images"""
    images: int
    """images of one epoch"""
    epochs: int
    """passes over them"""
    precision: str
    """float32 or bfloat16: what the products were taken in"""

    @property
    def harmed(self) -> bool:
        """Whether the loss on the validation images rose by more than two standard errors."""
        return not self.after - self.before <= BEYOND_CHANCE * self.error

    def __repr__(self) -> str:
        """The losses before and after."""
        return f"Distillation({self.images:,} images, {self.epochs:,} epochs, loss {self.before:.4g} → {self.after:.4g} nats)"


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable,
    validation: Iterable,
    plan: DistillationPlan | None = None,
    progress: bool = True,
) -> Distillation:
    """A copy of a smaller network that was trained on the softened outputs of the original one; labels are not read.

    The loss is T² KL(softmax(t/T) ‖ softmax(s/T)), minimized by Adam with a rate that falls to zero along half a cosine (from epoch to
    epoch where the batches do not say how many they are). Both networks are in evaluation mode but for the student's BatchNorms, which
    normalize with the batch's statistics until the last epoch; a batch of one image is normalized with the running ones. If the loss
    of the copy on the validation images is higher than the student's beyond chance, the student is returned as it was.

    Parameters
    ----------
    student
        Network that returns logits (images, classes); it stays as it is.
    teacher
        The original network.
    batches
        Images to learn from, in any form that `collect` takes; iterated once per epoch, so a generator does not suffice.
    validation
        Other images, on which the gain is measured.
    plan
        Epochs, learning rate, temperature and precision.
    progress
        Whether a progress bar is drawn.

    Returns
    -------
    Distillation
        The network and its divergence from the teacher before and after.

    Raises
    ------
    InputError
        For a generator.
    DataError
        If there are no images.
    NumericError
        If the loss becomes nan or infinite, with the step.

    Examples
    --------
    >>> teacher, student = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> images = [torch.randn(32, 1, 2, 2, generator=torch.Generator().manual_seed(0))]
    >>> found = distill(student, teacher, images, images, DistillationPlan(epochs=20, lr=0.05))
    >>> found.after < found.before, found.images
    (True, 32)

    References
    ----------
    Hinton, Vinyals & Dean 2015, section 2; Ioffe & Szegedy 2015 for the batch's statistics.
    """
    if isinstance(batches, Iterator) or isinstance(validation, Iterator):
        raise InputError("distill reads the images once per epoch: pass a list of batches or a data loader, not a generator")
    plan = plan or DistillationPlan()
    model, device = copy.deepcopy(student).requires_grad_(True), device_of(student)
    judged = [images_of(batch).to(device) for batch in validation]
    if not sum(map(len, judged)):
        raise DataError("distill: expected validation images, received none")
    layouts = {memory_format(network, judged[0]) for network in (teacher, model)}
    layout = layouts.pop() if len(layouts) == 1 else torch.contiguous_format
    judged = [x.contiguous(memory_format=layout) for x in judged]
    epochs = plan.epochs or _usual_epochs(model, teacher, judged[0])
    precision, images = _precision(model, plan, epochs, batches, judged[0]), 0
    with eval_mode(teacher), eval_mode(model):
        expected = [_answers(teacher, x, plan, "float32") for x in judged]
        before = _validation_losses(model, judged, expected, plan.temperature)
        with progress_bar("distilling, epochs", epochs, progress) as advance, channels_last(model, precision == "bfloat16"):
            norms = tracking_norms(model) if plan.batch_statistics else []
            lesson = _Lesson(model, teacher, _optimizer(model, plan.lr), plan, epochs, precision, norms, layout)
            for epoch in range(epochs):
                if epoch and epoch == epochs - 1:
                    lesson.estimate_statistics(batches)
                images, loss = _epoch(lesson, batches, epoch)
                log_numbers("distill", epoch + 1, loss=loss)
                advance()
        after = _validation_losses(model, judged, expected, plan.temperature)
    error = float((after - before).std(correction=0)) / max(len(after) - 1, 1) ** 0.5  # 0 for one image
    losses = float(before.mean()), float(after.mean())
    found = Distillation(model.eval().requires_grad_(False), *losses, error, images, epochs, precision)
    return replace(found, model=copy.deepcopy(student).eval().requires_grad_(False)) if found.harmed else found


@dataclass(frozen=True)
class _Lesson:
    """What the steps share."""

    model: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer
    plan: DistillationPlan
    epochs: int
    precision: str
    norms: list[Any]
    """BatchNorms that normalize with the batch's statistics in all epochs but the last"""
    layout: torch.memory_format
    """order of the images in memory"""

    def images(self, batch: Any) -> torch.Tensor:
        """Images of a batch, as both networks are given them."""
        return images_of(batch).to(device_of(self.model)).contiguous(memory_format=self.layout)

    def normalize_by_batch(self, wanted: bool) -> None:
        """Let the BatchNorms take their statistics from the batch, or from what they have gathered."""
        for norm in self.norms:
            norm.training = wanted

    @torch.no_grad()
    def estimate_statistics(self, batches: Iterable) -> None:
        """Set the statistics of the BatchNorms to their means over the batches of one pass, whatever their momentum is."""
        several = (x for x in map(self.images, batches if self.norms else ()) if len(x) > 1)
        with restored_momentum(self.norms):
            for place, x in enumerate(several):
                if not place:
                    self.normalize_by_batch(True)
                    for norm in self.norms:
                        norm.reset_running_stats()
                        norm.momentum = None
                logits_in(self.model, x, self.precision)
        self.normalize_by_batch(False)


def _optimizer(model: nn.Module, rate: float | None) -> torch.optim.Adam:
    """Adam with a group for each parameter, whose `first` is its learning rate at the first step."""
    groups = []
    for weights in model.parameters():
        size = float(weights.detach().square().mean().sqrt()) if weights.dim() > 1 else 0.0
        first = rate or min(RATE, LARGEST_STEP * size or math.inf)
        groups.append({"params": [weights], "lr": first, "first": first})
    return torch.optim.Adam(groups)


@torch.no_grad()
def _answers(teacher: nn.Module, x: torch.Tensor, plan: DistillationPlan, precision: str) -> torch.Tensor:
    """Softened log-probabilities (images, classes) that are taught: the teacher's, or with `mirror` of its mean answer for both views."""
    views = (x, x.flip(-1)) if plan.mirror else (x,)
    answers = [logits_in(teacher, view, precision).float().log_softmax(1) for view in views]
    return (torch.stack(answers).mean(0) / plan.temperature).log_softmax(1)


def _losses(logits: torch.Tensor, answers: torch.Tensor, soft: float) -> torch.Tensor:
    """T² KL(answers ‖ softened probabilities) of every image."""
    return soft**2 * F.kl_div((logits / soft).log_softmax(1), answers, reduction="none", log_target=True).sum(1)


@torch.no_grad()
def _validation_losses(model: nn.Module, judged: list[torch.Tensor], answers: list[torch.Tensor], soft: float) -> torch.Tensor:
    """The loss of every image, in float32."""
    return torch.cat([_losses(logits_in(model, x, "float32"), each, soft) for x, each in zip(judged, answers, strict=True)])


def _usual_epochs(student: nn.Module, teacher: nn.Module, example: torch.Tensor) -> int:
    """More passes for a student that is much smaller than its teacher."""
    return FAR_EPOCHS if cost(student, example).total_macs < FAR * cost(teacher, example).total_macs else EPOCHS


def _precision(model: nn.Module, plan: DistillationPlan, epochs: int, batches: Iterable, judged: torch.Tensor) -> str:
    """The precision that was asked for, or the faster one on batches like that one; float32 where nothing tells how many there are."""
    if plan.precision != "auto":
        return plan.precision
    if not isinstance(batches, Sized):
        return "float32"
    return faster_precision(model, judged.shape, epochs * len(batches) * len(judged))


def _epoch(lesson: _Lesson, batches: Iterable, epoch: int) -> tuple[int, float]:
    """One pass over the images; their number, and their mean loss."""
    images, total, plan = 0, 0.0, lesson.plan
    schedule = Schedule(lesson.epochs, lr=1.0)
    steps = len(batches) if isinstance(batches, Sized) else 0
    for step, batch in enumerate(batches, start=1):
        x = lesson.images(batch)
        for group in lesson.optimizer.param_groups:
            group["lr"] = group["first"] * schedule.rate((epoch + ((step - 1) / steps if steps else 0.0)) / schedule.epochs)
        wanted = _answers(lesson.teacher, x, plan, lesson.precision)
        lesson.normalize_by_batch(epoch < lesson.epochs - 1 and len(x) > 1)
        loss = _losses(logits_to_learn(lesson.model, x, lesson.precision).float(), wanted, plan.temperature).mean()
        if not bool(loss.isfinite()):
            where = f"step {step} of epoch {epoch + 1}"
            raise NumericError(f"the loss of distillation is {loss.item()} at {where}; a smaller lr may help")
        lesson.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        lesson.optimizer.step()
        images += len(x)
        total += float(loss.detach()) * len(x)
    if not images:
        raise DataError("distill: expected images, received none")
    return images, total / images
