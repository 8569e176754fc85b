"""A distilled network is nearer to the original on other images, or stays as it was."""

import math

import pytest
import torch
from torch import nn

from channelscope.errors import DataError, InputError, NumericError
from channelscope.network.module_state import weights_hash
from channelscope.pruning.distillation import distill


def net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * width, 4))


def noise(count: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).split(16))


def test_the_student_comes_nearer_and_both_networks_stay_as_they_were():
    teacher, student = net(8, 0).train(), net(4, 1)
    hashes = weights_hash(teacher), weights_hash(student)
    found = distill(student, teacher, noise(128, 0), noise(64, 1), epochs=8, lr=0.01, progress=False)
    assert found.gained
    assert found.after < 0.8 * found.before
    assert found.images == 128
    assert (weights_hash(teacher), weights_hash(student)) == hashes
    assert teacher.training
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert torch.equal(found.model[1].running_mean, student[1].running_mean)


def test_the_divergence_is_that_of_the_class_probabilities():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    found = distill(student, teacher, images, images, epochs=1, progress=False)
    x = torch.cat(images)
    p, q = teacher(x).detach().softmax(1), student(x).detach().softmax(1)
    assert found.before == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_one_step_is_adam_on_the_softened_divergence():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(16, 3)
    found = distill(student, teacher, images, images, epochs=1, lr=1e-3, temperature=3.0, progress=False)
    x, copied = images[0], net(4, 1).eval()
    p, q = (teacher(x) / 3).softmax(1).detach(), (copied(x) / 3).softmax(1)
    (9 * (p * (p / q).log()).sum(1).mean()).backward()
    change = found.model[5].weight - student[5].weight
    assert torch.allclose(change, -1e-3 * copied[5].weight.grad.sign(), atol=1e-5)


def test_a_student_that_would_get_worse_stays_as_it_was():
    teacher, student = net(8, 0).eval(), net(4, 1).eval()
    found = distill(student, teacher, noise(16, 0), noise(64, 1), epochs=3, lr=3.0, progress=False)
    assert not found.gained
    assert weights_hash(found.model) == weights_hash(student)


def test_labels_are_not_read():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    first = distill(student, teacher, images, images, progress=False)
    labeled = [(x, torch.full((len(x),), -7)) for x in images]
    assert weights_hash(distill(student, teacher, labeled, labeled, progress=False).model) == weights_hash(first.model)


def test_what_cannot_be_distilled_is_refused():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    with pytest.raises(InputError, match="not a generator"):
        distill(student, teacher, iter(images), images)
    with pytest.raises(InputError, match="received 0 epochs"):
        distill(student, teacher, images, images, epochs=0)
    with pytest.raises(InputError, match="T -1"):
        distill(student, teacher, images, images, temperature=-1)
    with pytest.raises(DataError, match="expected images, received none"):
        distill(student, teacher, [], images)
    with pytest.raises(DataError, match="validation images, received none"):
        distill(student, teacher, images, [])
    with torch.no_grad():
        student[5].bias[0] = math.nan
    with pytest.raises(NumericError, match="nan at step 1 of epoch 1"):
        distill(student, teacher, images, images, progress=False)
