"""The schedule: a half cosine, checkpoints, and the recipes. The log of a run: written whole, read back the same, refused when damaged."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pencil_zoo as pencil
from channelscope.errors import FormatError, InputError
from channelscope.zoo.training_run import (
    DIGITS,
    LOG,
    MOMENTUM,
    WEIGHT_DECAY,
    Epoch,
    History,
    Schedule,
    default_schedule,
    finetuning_schedule,
    usual_optimizer,
)


def test_the_reference_training():
    assert Schedule() == Schedule(epochs=200, lr=0.1, batch_size=128, pad=4, flip=True, every=1, seed=0)
    assert MOMENTUM == 0.9
    assert dict(WEIGHT_DECAY) == {"sgd": pytest.approx(5e-4), "adamw": 0.05}


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
    ("network", "rate"), [("resnet56(width=8)", 0.1), ("vgg11", 0.05), ("squeezenet1_0", 0.01), ("mobilenet_v3", 0.03)]
)
def test_the_recipe_of_a_network_is_its_learning_rate(network, rate):
    assert default_schedule(network, "cifar100") == dataclasses.replace(Schedule(), lr=rate)
    assert default_schedule(network, "digits") == dataclasses.replace(DIGITS, lr=rate)


@pytest.mark.parametrize(
    ("network", "rate"), [("timm:resnet18", 0.03), ("torchvision:vgg16_bn", 0.03), ("timm:squeezenet1_0", 0.01), ("nets.py:Own", 0.03)]
)
def test_networks_of_others_begin_slowly(network, rate):
    assert default_schedule(network, "folder:photos") == dataclasses.replace(Schedule(), lr=rate, warmup=0.1)
    assert default_schedule(network, "digits") == dataclasses.replace(DIGITS, lr=rate, warmup=0.1)


@pytest.mark.parametrize(
    ("network", "rate", "erase", "small"),
    [("resnet18", 0.2, 0.25, 0.4), ("vgg16_bn", 0.1, 0.25, 0), ("mobilenet_v2", 0.1, 0, 0), ("mobilenet_v2(width_mult=0.5)", 0.1, 0, 0)],
)
def test_the_recipe_of_the_papers_networks_is_short(network, rate, erase, small):
    found = default_schedule(network, "cifar100")
    assert found == Schedule(epochs=30, lr=rate, warmup=0.15, smoothing=0.1, erase=erase, small=small)
    assert default_schedule(network, "digits").epochs == DIGITS.epochs
    plain = finetuning_schedule(network, "cifar100", 2)
    assert (plain.warmup, plain.smoothing, plain.erase, plain.small) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("network", "rate"), [("resnet20", 0.001), ("resnet18", 0.001), ("timm:convnext_atto", 0.002), ("torchvision:vit_b_16", 0.001)]
)
@pytest.mark.parametrize("data", ["digits", "cifar100"])
def test_adamw_has_its_own_rate_and_a_warm_up_whatever_the_network(network, rate, data):
    found, usual = default_schedule(network, data, "adamw"), default_schedule(network, data)
    assert found == dataclasses.replace(usual, optimizer="adamw", lr=rate, warmup=max(usual.warmup, 0.1))
    tuning = finetuning_schedule(network, data, 3, optimizer="adamw")
    assert (tuning.optimizer, tuning.lr, tuning.warmup) == ("adamw", pytest.approx(rate / 10), 0)


@pytest.mark.parametrize("make", [default_schedule, lambda *names, **options: finetuning_schedule(*names, 1, **options)])
def test_another_optimizer_is_refused_with_the_ones_there_are(make):
    with pytest.raises(InputError, match="no optimizer is called adam; near matches: adamw; there are: sgd, adamw"):
        make("resnet20", "digits", optimizer="adam")
    with pytest.raises(InputError, match="no optimizer is called SGD; near matches: sgd; there are: sgd, adamw"):
        Schedule(optimizer="SGD")


class LayerNorm2d(nn.Module):
    """One's own norm over channels."""


@pytest.mark.parametrize(
    ("layers", "optimizer"),
    [
        ([], "sgd"),
        ([nn.BatchNorm2d(2)], "sgd"),
        ([nn.GroupNorm(1, 2)], "sgd"),
        ([nn.LayerNorm(2)], "adamw"),
        ([nn.RMSNorm(2)], "adamw"),
        ([LayerNorm2d()], "adamw"),
        ([nn.Sequential(nn.LayerNorm(2)), nn.BatchNorm1d(2)], "sgd"),
    ],
)
def test_the_usual_optimizer_goes_by_the_norms(layers, optimizer):
    assert usual_optimizer(nn.Sequential(nn.Linear(2, 2), *layers)) == optimizer


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
    assert fields == ["epochs", "lr", "batch_size", "pad", "flip", "every", "seed", "warmup", "smoothing", "erase", "small", "optimizer"]
    assert "References" in (Schedule.__doc__ or "")


numbers = st.floats(0, 10, allow_nan=False)
accuracies = st.lists(st.integers(0, 5).map(lambda k: k / 5), min_size=1, max_size=8)


def history(folder, accuracies=(0.1, 0.5, 0.4), **options):
    epochs = [Epoch(0, 0.0, math.nan, math.nan, 2.3, accuracies[0], 0.0)]
    epochs += [Epoch(k, 0.1 / k, 1.0 / k, 0.2 * k, 1.1 / k, value, 3.5) for k, value in enumerate(accuracies) if k]
    return History(folder, "resnet20", "ab" * 32, {"schedule": {"lr": 0.1}}, tuple(epochs), **options)


def same(one, two):
    """Equal but for nan, which equals nothing."""
    assert repr(one) == repr(two)


def test_it_comes_back(tmp_path):
    written = history(tmp_path, test_loss=0.3, test_accuracy=0.9, test_images=77)
    written.write()
    same(History.read(tmp_path), written)


def test_it_comes_back_unfinished(tmp_path):
    written = history(tmp_path)
    written.write()
    found = History.read(tmp_path)
    same(found, written)
    assert math.isnan(found.test_accuracy)
    assert math.isnan(found.epochs[0].train_loss)


def test_the_file_is_json_without_nan_and_says_the_best_epoch(tmp_path):
    history(tmp_path).write()
    text = (tmp_path / LOG).read_text()
    assert "NaN" not in text
    data = json.loads(text)
    assert data["best"] == 1
    assert data["format"] == 1
    assert data["epochs"][0]["train_loss"] is None
    assert "folder" not in data
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


@given(accuracies)
def test_the_best_epoch_is_the_earliest_of_the_most_accurate(values):
    best = history(None, values).best
    assert values[best] == max(values)
    assert all(value < values[best] for value in values[:best])


def test_paths_of_a_run(tmp_path):
    run = history(tmp_path)
    assert run.trained == tmp_path / "trained.safetensors"
    assert run.checkpoint(7) == tmp_path / "epoch_007.safetensors"
    assert run.checkpoints == {}
    for epoch in (0, 2, 5):
        run.checkpoint(epoch).write_bytes(b"")
    assert run.checkpoints == {0: run.checkpoint(0), 2: run.checkpoint(2)}, "epoch 5 is not of this run"


def test_a_missing_log_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"training\.json: expected the log of a training run, found nothing there"):
        History.read(tmp_path)


def damage_version(data):
    data["format"] = 2


def damage_epochs(data):
    del data["epochs"]


def damage_record(data):
    data["epochs"][0]["speed"] = 3


@pytest.mark.parametrize(
    ("damage", "said"), [(damage_version, "expected format 1, found 2"), (damage_epochs, "KeyError"), (damage_record, "TypeError")]
)
def test_a_damaged_log_is_refused(tmp_path, damage, said):
    history(tmp_path).write()
    data = json.loads((tmp_path / LOG).read_text())
    damage(data)
    (tmp_path / LOG).write_text(json.dumps(data))
    with pytest.raises(FormatError, match=said):
        History.read(tmp_path)


def test_a_truncated_log_is_refused(tmp_path):
    history(tmp_path).write()
    text = (tmp_path / LOG).read_text()
    (tmp_path / LOG).write_text(text[: len(text) // 2])
    with pytest.raises(FormatError, match="damaged log"):
        History.read(tmp_path)


def test_every_field_is_explained():
    for kind in (Epoch, History):
        assert kind.__doc__
        assert dataclasses.fields(kind)


def counted(values, validation):
    made = history(None, values)
    return dataclasses.replace(made, settings={"images": {"splits": {"validation": validation}}})


@pytest.mark.parametrize(
    ("values", "validation", "kept"),
    [
        ((0.5, 0.25, 0.25), 4, 2),  # one image more is no difference
        ((0.5, 0.75, 0.5), 4, 2),
        ((0.0, 1.0, 0.0), 4, 1),  # four of four against none
        ((0.1, 0.9, 0.6), 50, 1),  # .3 is 3.5 standard errors of .087
        ((0.1, 0.9, 0.8), 50, 2),  # .1 is 1.4 of .071
        ((0.1, 0.81, 0.8), 100, 1),
        ((0.5, 0.5, 0.5), 4, 2),
    ],
)
def test_few_validation_images_keep_the_last_epoch_unless_they_tell_two_apart(values, validation, kept):
    assert counted(values, validation).kept == kept


def test_without_a_count_the_best_is_kept():
    assert history(None, (0.1, 0.5, 0.4)).kept == 1
