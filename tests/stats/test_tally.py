"""A tally is sums over images: it adds, and its accuracy, loss and intervals are the textbook's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_stats
from channelscope.errors import DataError, InputError
from channelscope.stats.tally import Tally, margin

SEEDS = st.integers(0, 10_000)


def answers(n, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator) * 3, torch.randint(classes, (n,), generator=generator)


def test_sums_are_the_definition():
    logits, labels = answers(30)
    losses = pencil_stats.cross_entropy(logits.double().tolist(), labels.tolist())
    margins = pencil_stats.margin(logits.tolist(), labels.tolist())
    tally = Tally.of(logits, labels)
    assert tally.images == 30
    assert tally.accuracy == pytest.approx(np.mean([m > 0 for m in margins]))
    assert tally.loss == pytest.approx(np.mean(losses))
    assert tally.loss_standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(30))
    assert tally.margin == pytest.approx(np.mean(margins))
    assert tally.margin_squares == pytest.approx(np.sum(np.square(margins)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), SEEDS)
def test_the_tally_of_a_union_is_the_sum(sizes, seed):
    logits, labels = answers(sum(sizes), seed=seed)
    parts = [Tally.of(a, b) for a, b in zip(logits.split(sizes), labels.split(sizes), strict=True)]
    total = sum(parts, Tally())
    whole = Tally.of(logits, labels)
    backwards = sum(reversed(parts), Tally())
    for field in vars(whole):
        assert getattr(total, field) == pytest.approx(getattr(whole, field))
        assert getattr(backwards, field) == pytest.approx(getattr(whole, field))


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 10), (500, 1000), (1, 3)])
def test_the_accuracy_interval_is_wilsons(correct, n):
    low, high = Tally(images=n, correct=correct).accuracy_interval()
    expected = pencil_stats.wilson(correct, n)
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= low <= correct / n <= high <= 1


def test_a_wider_level_gives_a_wider_interval():
    tally = Tally(images=50, correct=30)
    inner, outer = tally.accuracy_interval(0.8), tally.accuracy_interval(0.99)
    assert outer[0] < inner[0] < inner[1] < outer[1]


def test_the_interval_covers_what_it_promises():
    generator = np.random.default_rng(0)
    hits = 0
    for correct in generator.binomial(200, 0.7, size=2000):
        low, high = Tally(images=200, correct=float(correct)).accuracy_interval()
        hits += low <= 0.7 <= high
    assert 0.93 < hits / 2000 < 0.97


def test_nothing_evaluated_is_nan_not_zero():
    empty = Tally()
    assert all(
        math.isnan(value) for value in (empty.accuracy, empty.loss, empty.margin, empty.loss_standard_error, *empty.accuracy_interval())
    )
    assert math.isnan(Tally(images=1, loss_sum=2.0, loss_squares=4.0).loss_standard_error)


def test_the_margin_is_to_the_best_other_class():
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [3.0, 3.0, 0.0]])
    assert margin(logits, torch.tensor([1, 0, 0])).tolist() == [3.0, -4.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_margin_is_the_pencils(seed):
    logits, labels = answers(9, 5, seed)
    np.testing.assert_allclose(margin(logits, labels), pencil_stats.margin(logits.tolist(), labels.tolist()), rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_labels_outside_the_classes_are_refused(label):
    logits, labels = answers(6)
    labels[2] = label
    with pytest.raises(DataError, match=r"0 … 3 .* received"):
        Tally.of(logits, labels)


def test_large_logits_overflow_nothing():
    tally = Tally.of(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))
    assert tally.loss == pytest.approx(2e4)
    assert tally.accuracy == 0


def test_a_tally_reads_as_one_line():
    text = str(Tally(images=1000, correct=900, loss_sum=300.0, loss_squares=150.0))
    assert text.startswith("accuracy 90.0% [88.0%, 91.7%], loss 0.300 ± ")
    assert text.endswith("1,000 images")


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (torch.zeros(4, 5, 16, 16), "received 4 × 5 × 16 × 16: accuracy is of one class per image, not of a map"),
        (torch.zeros(4, 1), "a network with one output has no margin"),
        (torch.zeros(3, 5), "logits of shape 4 images × classes .at least 2., received 3 × 5"),
        ({"out": torch.zeros(4, 5)}, "received a dict: return its logits alone"),
    ],
)
def test_what_is_not_one_row_of_logits_per_image_is_refused(logits, said):
    with pytest.raises(InputError, match=said):
        Tally.of(logits, torch.zeros(4, dtype=torch.long))
