"""Fine-tuning: the last epoch counts, whatever the validation images, which the network may have learned by heart, say of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope import zoo
from channelscope.data.images import read_images
from channelscope.data.sources import ImageSource
from channelscope.evaluation import loss_and_accuracy
from channelscope.network import module_state
from channelscope.zoo.training_run import FINETUNE_LR_DIVISOR, History, Schedule
from image_files import made

SHORT = Schedule(epochs=2, lr=0.5, batch_size=8, pad=0, flip=False, every=2)


@pytest.fixture(scope="module")
def images():
    return read_images(ImageSource(batch_size=16), found=made([row % 3 for row in range(60)], classes=3, part="train"))


@pytest.fixture(scope="module")
def learned(images):
    """A network that was trained on the validation images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(images.image_shape).numel(), 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        for pixels, labels, _ in images.validation:
            optimizer.zero_grad()
            F.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
    return model.requires_grad_(False)


def test_the_last_epoch_is_kept_though_the_validation_images_say_otherwise(learned, images, tmp_path):
    before = module_state.weights_hash(learned)
    tuned = zoo.finetune(learned, images, tmp_path, SHORT, progress=False)
    history = History.read(tmp_path)
    assert loss_and_accuracy(learned, images.validation)[1] == 1
    assert history.best == 0
    assert module_state.weights_hash(tuned) == module_state.weights_hash(zoo.load_weights(learned, history.checkpoint(2))) != before
    assert not tuned.training


def test_the_network_given_stays_as_it_is(images, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(images.image_shape).numel(), 3)).requires_grad_(False)
    before = module_state.weights_hash(model)
    tuned = zoo.finetune(model, images, tmp_path, SHORT, progress=False)
    assert module_state.weights_hash(model) == before != module_state.weights_hash(tuned)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_its_schedule_takes_smaller_steps():
    whole, part = zoo.default_schedule("vgg11", "cifar"), zoo.finetuning_schedule("vgg11", "cifar", 7, seed=3)
    assert part.lr == pytest.approx(whole.lr / FINETUNE_LR_DIVISOR)
    assert (part.epochs, part.every, part.seed) == (7, 7, 3)
    assert zoo.finetuning_schedule("vgg11", "cifar", 7, slower=1).lr == whole.lr
