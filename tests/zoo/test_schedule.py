"""The schedule: a half cosine, checkpoints, and the recipes."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pencil_zoo as pencil
from channelscope.errors import InputError
from channelscope.zoo.schedule import DIGITS, MOMENTUM, WEIGHT_DECAY, Schedule, default_schedule, finetuning_schedule


def test_the_reference_training():
    assert Schedule() == Schedule(epochs=200, lr=0.1, batch_size=128, pad=4, flip=True, every=1, seed=0)
    assert MOMENTUM == 0.9
    assert pytest.approx(5e-4) == WEIGHT_DECAY


@given(st.floats(0.001, 10), st.integers(1, 1000), st.data())
def test_the_rate_is_half_a_cosine(lr, total, data):
    done = data.draw(st.integers(0, total))
    assert Schedule(lr=lr).rate(done / total) == pytest.approx(pencil.cosine(lr, done, total), abs=1e-12)


def test_the_rate_falls_from_lr_to_zero():
    schedule = Schedule(lr=0.3)
    rates = [schedule.rate(k / 50) for k in range(51)]
    assert rates[0] == 0.3
    assert rates[25] == pytest.approx(0.15)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


@given(st.integers(1, 40), st.integers(1, 50))
def test_first_and_last_checkpoints_are_always_kept(epochs, every):
    schedule = Schedule(epochs=epochs, every=every)
    kept = [epoch for epoch in range(epochs + 1) if schedule.keeps(epoch)]
    assert kept[0] == 0
    assert kept[-1] == epochs
    assert set(range(0, epochs + 1, every)) <= set(kept)
    assert len(kept) <= epochs // every + 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"pad": -1},
        {"every": 0},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"warmup": 1},
        {"smoothing": -0.1},
        {"erase": math.nan},
        {"small": 1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        Schedule(**wrong)


def test_the_recipe_of_the_digits_is_short_and_never_mirrors():
    assert default_schedule("resnet20", "digits") == DIGITS
    assert not DIGITS.flip
    assert DIGITS.pad == 1
    assert DIGITS.epochs < 20


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("timm:resnet18", 0.1),
        ("resnet56(width=8)", 0.1),
        ("torchvision:vgg16_bn", 0.05),
        ("squeezenet1_0", 0.01),
        ("timm:mobilenetv2_100", 0.01),
        ("torchvision:vgg11_bn", 0.05),
        ("nets.py:Own", 0.1),
    ],
)
def test_the_recipe_of_a_network_is_its_learning_rate(network, rate):
    assert default_schedule(network, "cifar100") == dataclasses.replace(Schedule(), lr=rate)
    assert default_schedule(network, "digits") == dataclasses.replace(DIGITS, lr=rate)


@pytest.mark.parametrize(
    ("network", "rate", "small"),
    [("resnet18", 0.2, 0.4), ("vgg16_bn", 0.1, 0), ("mobilenet_v2", 0.1, 0.4), ("mobilenet_v2(width_mult=0.5)", 0.1, 0.4)],
)
def test_the_recipe_of_the_papers_networks_is_short(network, rate, small):
    found = default_schedule(network, "cifar100")
    assert found == Schedule(epochs=30, lr=rate, warmup=0.15, smoothing=0.1, erase=0.25, small=small)
    assert default_schedule(network, "digits").epochs == DIGITS.epochs
    plain = finetuning_schedule(network, "cifar100", 2)
    assert (plain.warmup, plain.smoothing, plain.erase, plain.small) == (0, 0, 0, 0)


def test_the_warm_up_is_a_line_and_a_half_cosine_follows():
    schedule = Schedule(epochs=10, lr=0.5, warmup=0.2)
    assert [schedule.rate(k / 100) for k in (0, 5, 10, 15)] == pytest.approx([0.02, 0.14, 0.26, 0.38])
    assert [schedule.rate(0.2 + 0.8 * k / 8) for k in range(9)] == pytest.approx([pencil.cosine(0.5, k, 8) for k in range(9)])


@pytest.mark.parametrize(("small", "epochs", "shrunk"), [(0, 5, 0), (0.4, 5, 2), (0.9, 5, 4), (0.99, 3, 2), (0.9, 1, 0)])
def test_small_images_come_first_and_never_last(small, epochs, shrunk):
    schedule = Schedule(epochs=epochs, small=small)
    assert [schedule.shrunk(epoch) for epoch in range(1, epochs + 1)] == [True] * shrunk + [False] * (epochs - shrunk)


def test_every_option_is_explained():
    fields = [field.name for field in dataclasses.fields(Schedule)]
    assert fields == ["epochs", "lr", "batch_size", "pad", "flip", "every", "seed", "warmup", "smoothing", "erase", "small"]
    assert "References" in (Schedule.__doc__ or "")
