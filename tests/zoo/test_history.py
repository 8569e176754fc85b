"""The log of a training run: written whole, read back the same, refused when damaged."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelscope.errors import FormatError
from channelscope.zoo.history import LOG, Epoch, History

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
