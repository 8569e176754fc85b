"""Networks: by name or path, trained, or toys whose answers are known."""

from channelscope.zoo import toys
from channelscope.zoo.loading import bind_extra_inputs, extra_inputs, load
from channelscope.zoo.models import ModelInfo, build, model_info, network_names
from channelscope.zoo.training import finetune, train
from channelscope.zoo.training_run import Epoch, History, Schedule, default_schedule, finetuning_schedule, usual_optimizer
from channelscope.zoo.weight_files import load_weights, read_weights, save_weights

__all__ = [
    "Epoch",
    "History",
    "ModelInfo",
    "Schedule",
    "bind_extra_inputs",
    "build",
    "default_schedule",
    "extra_inputs",
    "finetune",
    "finetuning_schedule",
    "load",
    "load_weights",
    "model_info",
    "network_names",
    "read_weights",
    "save_weights",
    "toys",
    "train",
    "usual_optimizer",
]
