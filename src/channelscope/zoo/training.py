"""Resumable, deterministic training and fine-tuning."""

import copy
import json
import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from channelscope.data.augmentation import augment
from channelscope.data.images import ImageSplits
from channelscope.errors import DataError, FormatError, MismatchError, NumericError
from channelscope.evaluation import loss_and_accuracy
from channelscope.network.module_state import device_of, weights_hash
from channelscope.storage import atomic_file
from channelscope.zoo.history import LOG, Epoch, History
from channelscope.zoo.loading import available
from channelscope.zoo.models import ModelInfo
from channelscope.zoo.schedule import MOMENTUM, WEIGHT_DECAY, Schedule
from channelscope.zoo.weight_files import load_weights, save_weights

RESUME = "resume.safetensors"


def train(
    model: nn.Module,
    images: ImageSplits,
    out: str | Path,
    schedule: Schedule | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> History:
    """History of training a network; the epoch with the best validation accuracy is tested once.

    Files in `out`: epoch_000.safetensors (the initialization), the checkpoints of the schedule, trained.safetensors (the
    best epoch, or the last where fewer than 100 validation images do not tell the two apart), and training.json. A run that was
    interrupted goes on after its last whole epoch when it is called again with the same network, images and schedule; on a CPU
    the result is the same to the bit, as is that of a second run. On a CUDA device products are taken in bfloat16. The network
    is left with the weights of trained.safetensors, in evaluation mode.

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
        Whether to show a progress bar.

    Returns
    -------
    History
        Losses and accuracies of all epochs.

    Raises
    ------
    DataError
        Without training or validation images.
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
    >>> [epoch.epoch for epoch in history.epochs], history.test_images
    ([0, 1], 359)
    """
    schedule = schedule or Schedule()
    for split in (images.train, images.validation):
        if len(split) < 2:
            raise DataError(f"{images.source.data}: expected {split.name} images, received {len(split)}; the set cannot be trained on")
    history = _start_or_continue(model, images, Path(out), schedule)
    device = available(device)
    model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), schedule.lr, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    history = _restore(history, model, optimizer)
    if len(history.epochs) <= schedule.epochs:
        with _progress_bar(progress) as bar:
            task = bar.add_task("training", total=schedule.epochs, completed=len(history.epochs) - 1, message="")
            for epoch in range(len(history.epochs), schedule.epochs + 1):
                record = _epoch(model, optimizer, images, schedule, epoch)
                history = replace(history, epochs=(*history.epochs, record))
                _save_epoch(history, model, optimizer, schedule)
                message = f"loss {record.train_loss:.3f}  validation {record.validation_accuracy:.1%} of {len(images.validation):,}"
                bar.update(task, advance=1, message=message)
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


def _start_or_continue(model: nn.Module, images: ImageSplits, folder: Path, schedule: Schedule) -> History:
    """The run of that folder: a new one with its initialization measured, or the one that was interrupted."""
    card = vars(model).get("card")
    name = card.name if isinstance(card, ModelInfo) else type(model).__name__
    settings = {"schedule": asdict(schedule), "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "images": images.describe()}
    new = History(folder, name, weights_hash(model), settings, ())
    if (folder / LOG).exists():
        old = History.read(folder)
        for what, there, here in (
            ("network", old.network, new.network),
            ("initialization", old.start, new.start),
            *((key, old.settings.get(key), value) for key, value in settings.items()),
        ):
            if there != here:
                raise MismatchError(f"{folder} holds another training run: its {what} is {there}, this one's {here}; choose another folder")
        return old
    loss, accuracy = loss_and_accuracy(model, images.validation)
    new = replace(new, epochs=(Epoch(0, 0.0, math.nan, math.nan, loss, accuracy, 0.0),))
    save_weights(model.state_dict(), new.checkpoint(0))
    save_weights(model.state_dict(), new.trained)
    new.write()
    return new


def _restore(history: History, model: nn.Module, optimizer: torch.optim.SGD) -> History:
    """Put weights and momentum of the last whole epoch into place, with what was logged up to it."""
    path = history.folder / RESUME
    if not path.exists():
        return history  # nothing but the initialization was done, or everything
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            records = json.loads((file.metadata() or {})["epochs"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: damaged ({error}); delete the folder and train again") from error
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in state:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(state[f"momentum.{name}"])
    history = replace(history, epochs=tuple(Epoch(**record) for record in records))
    _write_log_and_best(history, model)
    return history


def _epoch(model: nn.Module, optimizer: torch.optim.SGD, images: ImageSplits, schedule: Schedule, epoch: int) -> Epoch:
    """One pass over the training images in the order that seed and epoch give."""
    started, device = time.perf_counter(), device_of(model)
    draw = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
    steps = torch.randperm(len(images.train), generator=draw).tensor_split(-(-len(images.train) // schedule.batch_size))
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    labels = images.train.labels
    model.train()
    rate = schedule.lr
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))  # dropout and stochastic depth
        for step, places in enumerate(steps):
            rate = schedule.rate((epoch - 1 + step / len(steps)) / schedule.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pixels = augment(images.train.pixels(places).to(device), schedule.pad, schedule.flip, draw)
            batch_loss, batch_correct = _step(model, optimizer, images.train.normalized(pixels), labels[places].to(device))
            loss, correct = loss + batch_loss * len(places), correct + batch_correct
    total = len(images.train)
    if not math.isfinite(float(loss)):
        raise NumericError(f"epoch {epoch}: the loss is {float(loss)}; start again in another folder with a smaller lr than {schedule.lr}")
    validation = loss_and_accuracy(model, images.validation)
    return Epoch(epoch, rate, float(loss) / total, int(correct) / total, *validation, time.perf_counter() - started)


def _step(model: nn.Module, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimizer; mean loss of the batch and its number of correct images, on the device."""
    on_gpu = x.device.type == "cuda"
    if on_gpu:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=on_gpu):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.detach().argmax(1) == y).sum()


def _save_epoch(history: History, model: nn.Module, optimizer: torch.optim.SGD, schedule: Schedule) -> None:
    """Write the checkpoint, then the resume file, then log and best weights, so that at most one epoch is lost."""
    state, epoch = model.state_dict(), history.epochs[-1].epoch
    if schedule.keeps(epoch):
        save_weights(state, history.checkpoint(epoch))
    tensors = {f"model.{name}": value for name, value in state.items()}
    for name, value in model.named_parameters():
        if "momentum_buffer" in optimizer.state[value]:
            tensors[f"momentum.{name}"] = optimizer.state[value]["momentum_buffer"]
    records = json.dumps([asdict(record) for record in history.epochs])
    save_weights(tensors, history.folder / RESUME, {"epochs": records})
    _write_log_and_best(history, model)


def _write_log_and_best(history: History, model: nn.Module) -> None:
    if history.best == history.epochs[-1].epoch:
        save_weights(model.state_dict(), history.trained)
    history.write()


def _progress_bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def finetune(
    model: nn.Module, images: ImageSplits, out: str | Path, schedule: Schedule, device: str | torch.device = "cpu", progress: bool = True
) -> nn.Module:
    """Fine-tuned copy of a network, after the last epoch of a schedule, in evaluation mode; the network itself stays as it was.

    The last epoch is taken, not the best: pretrained networks have often been trained on the validation images, so their
    validation accuracy before fine-tuning is not meaningful. An interrupted run resumes when it is called again.

    Parameters
    ----------
    model
        A trained network.
    images, out, schedule, device, progress
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
    history = train(tuned, images, out, schedule, device, progress)
    return load_weights(tuned, history.checkpoint(schedule.epochs)).eval()
