"""Networks and images: by name, by path, trained or toys whose answers are known."""

from channelscope.net.identity import weights_hash
from channelscope.zoo import toys
from channelscope.zoo.data import Images, ImageSource, read_images
from channelscope.zoo.example import fix_inputs, fixed_inputs
from channelscope.zoo.finetune import finetune
from channelscope.zoo.history import Epoch, History
from channelscope.zoo.loading import load
from channelscope.zoo.masks import masks
from channelscope.zoo.models import Card, card, names, network
from channelscope.zoo.schedule import Schedule, recipe, tuning
from channelscope.zoo.split import Split
from channelscope.zoo.train import train
from channelscope.zoo.weights import load_weights, read_weights, save_weights

__all__ = [
    "Card",
    "Epoch",
    "History",
    "ImageSource",
    "Images",
    "Schedule",
    "Split",
    "card",
    "finetune",
    "fix_inputs",
    "fixed_inputs",
    "load",
    "load_weights",
    "masks",
    "names",
    "network",
    "read_images",
    "read_weights",
    "recipe",
    "save_weights",
    "toys",
    "train",
    "tuning",
    "weights_hash",
]
