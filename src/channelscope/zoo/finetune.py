"""finetune: a trained network, trained on."""

import copy
from pathlib import Path

import torch
from torch import nn

from channelscope.zoo.data import Images
from channelscope.zoo.schedule import Schedule
from channelscope.zoo.train import train
from channelscope.zoo.weights import load_weights


def finetune(
    model: nn.Module, images: Images, out: str | Path, schedule: Schedule, device: str | torch.device = "cpu", progress: bool = True
) -> nn.Module:
    """A copy of a network after the last epoch of a schedule, in eval mode; the network stays as it is.

    Not the epoch that does best on the validation images, which `train` chooses: a network that comes with its weights has often
    been trained on these very images, and would look best before it is touched.

    Raises   what `train` raises; an interrupted run goes on when it is called again.
    """
    tuned = copy.deepcopy(model).requires_grad_(True)
    history = train(tuned, images, out, schedule, device, progress)
    return load_weights(tuned, history.checkpoint(schedule.epochs)).eval()
