"""The schedule: a half cosine, checkpoints, and the recipes."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pencil_zoo as pencil
from channelscope.errors import InputError
from channelscope.zoo.schedule import DIGITS, MOMENTUM, WEIGHT_DECAY, Schedule, default_schedule


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
    "wrong", [{"epochs": 0}, {"batch_size": 1}, {"pad": -1}, {"every": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}]
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
        ("resnet18", 0.1),
        ("resnet56(width=8)", 0.1),
        ("vgg16_bn", 0.05),
        ("mobilenet_v2(width_mult=0.5)", 0.01),
        ("timm:mobilenetv2_100", 0.01),
        ("torchvision:vgg11_bn", 0.05),
        ("nets.py:Own", 0.1),
    ],
)
def test_the_recipe_of_a_network_is_its_learning_rate(network, rate):
    assert default_schedule(network, "cifar100") == dataclasses.replace(Schedule(), lr=rate)
    assert default_schedule(network, "digits") == dataclasses.replace(DIGITS, lr=rate)


def test_every_option_is_explained():
    fields = [field.name for field in dataclasses.fields(Schedule)]
    assert fields == ["epochs", "lr", "batch_size", "pad", "flip", "every", "seed"]
    assert "References" in (Schedule.__doc__ or "")
