"""Resumable, deterministic training and fine-tuning."""

import copy
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from channelscope.data.images import ImageSplits
from channelscope.data.splits import augment
from channelscope.errors import FormatError, MismatchError, NumericError, check_choice
from channelscope.evaluation import loss_and_accuracy
from channelscope.network.graph import memory_format
from channelscope.network.module_state import channels_last, device_of, restored_momentum, weights_hash
from channelscope.network.operations import tracking_norms
from channelscope.progress import Bar, log_numbers, progress_bar
from channelscope.storage import atomic_file
from channelscope.zoo.loading import available
from channelscope.zoo.models import ModelInfo
from channelscope.zoo.precision import PRECISIONS, TrainingPrecision, faster_precision, loss_and_logits
from channelscope.zoo.training_run import LOG, MOMENTUM, WEIGHT_DECAY, Epoch, History, Schedule
from channelscope.zoo.weight_files import load_weights, save_weights

RESUME = "resume.safetensors"

OPTIMIZER_STATE = {"momentum_buffer": "momentum", "exp_avg": "mean_gradient", "exp_avg_sq": "mean_square", "step": "steps"}
"""What an optimizer keeps of each parameter, and its name in the resume file."""

SAVE_SECONDS = 300
"""Time between two writings of the resume file within an epoch."""

USUAL_MOMENTUM, FORGOTTEN = 0.1, 3.0
"""PyTorch's own share of a step in the running statistics of BatchNorm, and the sum of these shares over an epoch that the statistics
need: exp(−3), 5 %, of what was before the epoch is then left."""


def train(
    model: nn.Module,
    images: ImageSplits,
    out: str | Path,
    schedule: Schedule | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    precision: TrainingPrecision = "auto",
) -> History:
    """History of training a network; the epoch with the best validation accuracy is tested once.

    Files in `out`: epoch_000.safetensors (the initialization), the checkpoints of the schedule, trained.safetensors (the
    best epoch, or the last where fewer than 100 validation images do not tell the two apart), and training.json. A run that was
    interrupted goes on where it was at most five minutes before, when it is called again with the same network, images and schedule;
    on a CPU the result is the same to the bit, as is that of a second run in the same precision. The network is left with the weights
    of trained.safetensors, in evaluation mode. Running statistics of BatchNorm that a network lets follow by less than
    min(.1, 3/steps of an epoch) at each step follow by that much while it is trained.

    Parameters
    ----------
    model
        The network, initialized; it is changed.
    images
        Splits of a data set.
    out
        Folder of the run.
    schedule
        Epochs, learning rate, batches and augmentation.
    device
        Device of the training.
    progress
        Whether to show a line of progress; where standard error is no terminal, a line per epoch.
    precision
        float32; bfloat16, in which the layers' products are taken by autocast, with channels last in memory (as images are on a CPU
        in float32 too, where the network gives the same so); or auto: whichever is
        faster in a trial of two seconds on this device (takes less processor time, on a CPU), float32 for short runs. The choice is
        stored with the run, as `history.precision`. Weights, statistics of normalization, losses and the test are float32 in any
        case; the validation after each epoch, which chooses among the epochs, is in the precision of the training.

    Returns
    -------
    History
        Losses and accuracies of all epochs.

    Raises
    ------
    DataError
        Without training or validation images, from `ImageSplits.require_training`.
    InputError
        For another precision.
    MismatchError
        If `out` holds another run.
    NumericError
        If the loss becomes nan or infinite.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.zoo.loading import load
    >>> model, images = load("resnet20(width=2)", data="digits")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     history = train(model, images, folder, Schedule(epochs=1, batch_size=512), progress=False)
    >>> [epoch.epoch for epoch in history.epochs], history.test_images, history.precision
    ([0, 1], 359, 'float32')
    """
    schedule = schedule or Schedule()
    check_choice("precision", precision, PRECISIONS)
    images.require_training()
    device = available(device)
    history = _start_or_continue(model, images, Path(out), schedule, device, precision)
    model.to(device)
    noise = torch.rand(2, *images.image_shape, generator=torch.Generator().manual_seed(0))
    layout = memory_format(model, noise.to(device))
    run = _Run(model, _optimizer(model, schedule), images, schedule, history, layout)
    _restore(run)
    if len(run.history.epochs) <= schedule.epochs:
        with _progress_line(progress, run):
            for epoch in range(len(run.history.epochs), schedule.epochs + 1):
                record = _epoch(run, epoch)
                run.history = replace(run.history, epochs=(*run.history.epochs, record))
                _save_epoch(run)
                run.line.epoch_ended(record)
                numbers = {name: value for name, value in vars(record).items() if name != "epoch"}
                log_numbers("train", epoch, **numbers)
    history = run.history
    if history.kept != history.best:
        with atomic_file(history.trained) as half:
            shutil.copyfile(history.checkpoint(history.kept), half)
    load_weights(model, history.trained)
    model.eval()
    if not history.test_images and len(images.test):
        loss, accuracy = loss_and_accuracy(model, images.test)
        history = replace(history, test_loss=loss, test_accuracy=accuracy, test_images=len(images.test))
        history.write()
    (history.folder / RESUME).unlink(missing_ok=True)
    return history


@dataclass
class _Begun:
    """An epoch that was interrupted: its next step, its sums, its random states, and the seconds it has taken."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]


class _Line:
    """The progress of a training: the epoch, images a second in it, and what the epoch before came to; steps are images shown."""

    def __init__(self, schedule: Schedule, images: int, validation: int, done: int, bar: Bar):
        self.schedule, self.images, self.validation, self.bar = schedule, images, validation, bar
        self.sizes = _image_sizes(schedule)
        self.left = sum(self.sizes[done:]) * images
        self.shown, self.started = 0.0, time.perf_counter()
        self.message = ""

    def advance(self, epoch: int, shown: int, seconds: float, new: int) -> None:
        """After a step with `new` images; `shown` in this epoch, in `seconds`."""
        steps = new * self.sizes[epoch - 1]
        self.shown, self.left = self.shown + steps, self.left - steps
        self.bar(steps)
        self.bar.describe(f"training epoch {epoch}/{self.schedule.epochs}", f"{self.message}{shown / seconds:,.0f} images/s")

    def epoch_ended(self, record: Epoch) -> None:
        """Put the epoch's numbers behind the bar, or on a line of their own where there is no terminal."""
        message = f"loss {record.train_loss:.3f}  validation {record.validation_accuracy:.1%} of {self.validation:,}"
        pace = (time.perf_counter() - self.started) / max(self.shown, 1.0)
        speed = f"{self.images / record.seconds:,.0f} images/s  {timedelta(seconds=round(pace * self.left))} left"
        self.bar.line(f"training epoch {record.epoch}/{self.schedule.epochs}  {speed}  {message}")
        self.message = f"{message}  "


def _image_sizes(schedule: Schedule) -> list[float]:
    """Positions of an image in each epoch, as a share of those of a whole one."""
    return [0.25 if schedule.shrunk(epoch) else 1.0 for epoch in range(1, schedule.epochs + 1)]


@dataclass
class _Run:
    """What the steps of a run share."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: ImageSplits
    schedule: Schedule
    history: History
    layout: torch.memory_format
    begun: _Begun | None = None
    line: _Line = field(init=False)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer of all parameters."""
    decay, parameters = WEIGHT_DECAY[schedule.optimizer], list(model.parameters())
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, schedule.lr, MOMENTUM, weight_decay=decay, nesterov=True)
    vectors = {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0}
    weights = {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": decay}
    return torch.optim.AdamW([weights, vectors], schedule.lr, (MOMENTUM, 0.999))


@contextmanager
def _progress_line(shown: bool, run: _Run) -> Iterator[None]:
    images, validation, done = len(run.images.train), len(run.images.validation), len(run.history.epochs) - 1
    with progress_bar("training", images * sum(_image_sizes(run.schedule)[done:]), shown) as bar:
        run.line = _Line(run.schedule, images, validation, done, bar)
        yield


def _start_or_continue(
    model: nn.Module, images: ImageSplits, folder: Path, schedule: Schedule, device: torch.device, precision: TrainingPrecision
) -> History:
    """The run of that folder: a new one with its initialization measured, or the one that was interrupted."""
    card = vars(model).get("card")
    name = card.name if isinstance(card, ModelInfo) else type(model).__name__
    decay = WEIGHT_DECAY[schedule.optimizer]
    settings = {"schedule": asdict(schedule), "momentum": MOMENTUM, "weight_decay": decay, "images": images.describe()}
    new = History(folder, name, weights_hash(model), settings, ())
    if (folder / LOG).exists():
        return _matching(History.read(folder), new, device, precision)
    if precision == "auto":
        shape = (schedule.batch_size, *images.image_shape)
        precision = faster_precision(model.to(device), shape, schedule.epochs * len(images.train))
    settings["precision"] = precision
    loss, accuracy = loss_and_accuracy(model, images.validation)
    new = replace(new, epochs=(Epoch(0, 0.0, math.nan, math.nan, loss, accuracy, 0.0),))
    save_weights(model.state_dict(), new.checkpoint(0))
    save_weights(model.state_dict(), new.trained)
    new.write()
    return new


def _matching(old: History, new: History, device: torch.device, precision: TrainingPrecision) -> History:
    """The run that was begun, if it is the one that is asked for; logs of earlier versions lack the settings that came later."""
    settings = dict(old.settings)
    if "schedule" in settings:
        settings["schedule"] = asdict(Schedule()) | settings["schedule"]
    settings.setdefault("precision", "bfloat16" if device.type == "cuda" else "float32")
    for what, there, here in (
        ("network", old.network, new.network),
        ("initialization", old.start, new.start),
        *((key, settings.get(key), value) for key, value in new.settings.items()),
        ("precision", settings["precision"], settings["precision"] if precision == "auto" else precision),
    ):
        if there != here:
            raise MismatchError(f"{old.folder} holds another training run: its {what} is {there}, this one's {here}; choose another folder")
    return replace(old, settings=settings)


def _restore(run: _Run) -> None:
    """Put weights, momentum and the place within the epoch where the run was saved last, with what was logged up to then."""
    path = run.history.folder / RESUME
    if not path.exists():
        return  # nothing but the initialization was done, or everything
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            records = json.loads(metadata["epochs"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: damaged ({error}); delete the folder and train again") from error
    run.model.load_state_dict(_part(state, "model."))
    for name, parameter in run.model.named_parameters():
        for key, saved in OPTIMIZER_STATE.items():
            if (value := state.get(f"{saved}.{name}")) is not None:
                run.optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
    if "step" in metadata:
        run.begun = _Begun(int(metadata["step"]), float(metadata["seconds"]), _part(state, "epoch."))
    run.history = replace(run.history, epochs=tuple(Epoch(**record) for record in records))
    if run.begun is None:
        _write_log_and_best(run.history, run.model)


def _part(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _epoch(run: _Run, epoch: int) -> Epoch:
    """One pass over the training images in the order that seed and epoch give, or the rest of one that was interrupted."""
    model, split, schedule, device = run.model, run.images.train, run.schedule, device_of(run.model)
    started = saved = time.perf_counter()
    draw = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
    steps = torch.randperm(len(split), generator=draw).tensor_split(-(-len(split) // schedule.batch_size))
    rates = [schedule.rate((epoch - 1 + step / len(steps)) / schedule.epochs) for step in range(len(steps))]
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        channels_last(model, run.history.precision == "bfloat16"),
        _statistics_of_an_epoch(model, len(steps)),
    ):
        torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))  # dropout and stochastic depth
        begun, run.begun = run.begun or _Begun(0, 0.0, {}), None
        if begun.tensors:
            loss, correct = begun.tensors["loss"].to(device), begun.tensors["correct"].to(device)
            _set_random_states(begun.tensors, draw, device)
        model.train()
        for step in range(begun.step, len(steps)):
            batch_loss, batch_correct = _step(run, steps[step], rates[step], epoch, draw)
            loss, correct = loss + batch_loss * len(steps[step]), correct + batch_correct
            now, shown = time.perf_counter(), sum(map(len, steps[begun.step : step + 1]))
            run.line.advance(epoch, shown, now - started, len(steps[step]))
            if now - saved >= SAVE_SECONDS and step + 1 < len(steps):
                tensors = {"loss": loss, "correct": correct, **_random_states(draw, device)}
                _save_resume(run, _Begun(step + 1, begun.seconds + now - started, tensors))
                saved = now
    if not math.isfinite(float(loss)):
        raise NumericError(f"epoch {epoch}: the loss is {float(loss)}; start again in another folder with a smaller lr than {schedule.lr}")
    validation = loss_and_accuracy(model, run.images.validation, run.history.precision)
    seconds = begun.seconds + time.perf_counter() - started
    return Epoch(epoch, rates[-1], float(loss) / len(split), int(correct) / len(split), *validation, seconds)


@contextmanager
def _statistics_of_an_epoch(model: nn.Module, steps: int) -> Iterator[None]:
    """While inside, the running statistics of BatchNorm forget within an epoch what was before, however slow the network makes them.

    MobileNetV3 and MNASNet keep 99 and 99.97 % of them at each step, for epochs of thousands of steps. After twelve they still are those
    of the initialization, and a network that has learned is evaluated at chance.
    """
    norms = [norm for norm in tracking_norms(model) if norm.momentum is not None]
    with restored_momentum(norms):
        for norm in norms:
            norm.momentum = max(norm.momentum, min(USUAL_MOMENTUM, FORGOTTEN / steps))
        yield


def _random_states(draw: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    states = {"draw": draw.get_state(), "random": torch.get_rng_state()}
    return states | ({"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_states(states: dict[str, Tensor], draw: torch.Generator, device: torch.device) -> None:
    draw.set_state(states["draw"])
    torch.set_rng_state(states["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)


def _step(run: _Run, places: Tensor, rate: float, epoch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One step of the optimizer; mean loss of the batch and its number of correct images, on the device."""
    split, schedule, device = run.images.train, run.schedule, device_of(run.model)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    pixels = augment(split.pixels(places).to(device), schedule.pad, schedule.flip, draw, schedule.erase)
    x, y = split.normalized(pixels), split.labels[places].to(device)
    if schedule.shrunk(epoch):
        x = F.interpolate(x, scale_factor=0.5, mode="area")
    loss, logits = loss_and_logits(run.model, x.contiguous(memory_format=run.layout), y, run.history.precision, schedule.smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return loss.detach(), (logits.detach().argmax(1) == y).sum()


def _save_epoch(run: _Run) -> None:
    """Write the checkpoint, then the resume file, then log and best weights, so that little is lost."""
    epoch = run.history.epochs[-1].epoch
    if run.schedule.keeps(epoch):
        save_weights(run.model.state_dict(), run.history.checkpoint(epoch))
    _save_resume(run, None)
    _write_log_and_best(run.history, run.model)


def _save_resume(run: _Run, begun: _Begun | None) -> None:
    """Write all that the next step depends on."""
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    for name, value in run.model.named_parameters():
        of_parameter = run.optimizer.state[value]
        tensors |= {f"{saved}.{name}": of_parameter[key] for key, saved in OPTIMIZER_STATE.items() if key in of_parameter}
    metadata = {"epochs": json.dumps([asdict(record) for record in run.history.epochs])}
    if begun is not None:
        tensors |= {f"epoch.{name}": value for name, value in begun.tensors.items()}
        metadata |= {"step": str(begun.step), "seconds": str(begun.seconds)}
    save_weights(tensors, run.history.folder / RESUME, metadata)


def _write_log_and_best(history: History, model: nn.Module) -> None:
    if history.best == history.epochs[-1].epoch:
        save_weights(model.state_dict(), history.trained)
    history.write()


def finetune(
    model: nn.Module,
    images: ImageSplits,
    out: str | Path,
    schedule: Schedule,
    device: str | torch.device = "cpu",
    progress: bool = True,
    precision: TrainingPrecision = "auto",
) -> nn.Module:
    """Fine-tuned copy of a network, after the last epoch of a schedule, in evaluation mode; the network itself stays as it was.

    The last epoch is taken, not the best: pretrained networks have often been trained on the validation images, so their
    validation accuracy before fine-tuning is not meaningful. An interrupted run resumes when it is called again.

    Parameters
    ----------
    model
        A trained network.
    images, out, schedule, device, progress, precision
        As for `train`.

    Returns
    -------
    nn.Module
        The copy.

    Raises
    ------
    ChannelscopeError
        What `train` raises.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope.zoo.loading import load
    >>> model, images = load("resnet20(width=2)", data="digits")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tuned = finetune(model, images, folder, Schedule(epochs=1, batch_size=512), progress=False)
    >>> torch.equal(tuned.fc.weight, model.fc.weight)
    False
    """
    tuned = copy.deepcopy(model).requires_grad_(True)
    history = train(tuned, images, out, schedule, device, progress, precision)
    return load_weights(tuned, history.checkpoint(schedule.epochs)).eval()
