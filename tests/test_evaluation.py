"""evaluate: what is labeled is judged, in every form of batch, and what is no classifier's output is refused."""

import pytest
import torch
from torch import nn

from channelscope import zoo
from channelscope.data.images import read_images
from channelscope.errors import DataError, FormatError, InputError
from channelscope.evaluation import bfloat16_gap, evaluate, evaluate_each, evaluate_networks, loss_and_accuracy
from channelscope.network.module_state import weights_hash

X = torch.eye(4).view(4, 4, 1, 1)
MODEL = nn.Flatten()  # the logits are the pixels: image i is of class i


@pytest.mark.parametrize(
    "batches",
    [
        [(X, torch.tensor([0, 1, 2, 0]))],
        [(X[:2], [0, 1]), (X[2:], torch.tensor([2.0, 0.0]), ("c", "d"))],
        [{"pixel_values": X.numpy(), "labels": torch.eye(4)[[0, 1, 2, 0]]}],
    ],
)
def test_three_of_four(batches):
    tally = evaluate(MODEL, batches)
    assert (tally.images, tally.correct) == (4, 3)
    assert tally.loss == pytest.approx(torch.nn.functional.cross_entropy(X.flatten(1), torch.tensor([0, 1, 2, 0])).item())


def test_images_without_a_label_are_left_out_and_counted():
    with pytest.warns(UserWarning, match="5 of 8 images have no label"):
        tally = evaluate(MODEL, [(X, None), (X, [0, None, 2, 0])])
    assert (tally.images, tally.correct) == (3, 2)
    with pytest.raises(DataError, match="none of the 4 images has one"):
        evaluate(MODEL, [X])
    with pytest.raises(DataError, match="the batches are empty"):
        evaluate(MODEL, [])


def test_a_map_has_no_accuracy():
    with pytest.raises(InputError, match="received 4 × 5 × 1 × 1: accuracy is of one class per image"):
        evaluate(nn.Conv2d(4, 5, 1), [(X, [0, 1, 2, 3])])
    with pytest.raises(DataError, match=r"4 images need as many labels, one class for each, received int64 of shape \(4, 1, 1\)"):
        evaluate(nn.Conv2d(4, 5, 1), [(X, torch.zeros(4, 1, 1, dtype=torch.long))])


def test_the_network_keeps_its_mode_and_its_precision():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Dropout(0.5)).double().train()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
        model[1].bias.zero_()
    assert evaluate(model, [(X, [0, 1, 2, 3])]).accuracy == 1.0
    assert model.training


def test_training_and_evaluation_refuse_a_map_alike():
    split = read_images("digits").test
    with pytest.raises(InputError, match="accuracy is of one class per image, not of a map"):
        loss_and_accuracy(nn.Conv2d(1, 10, 1), split)


def test_in_bfloat16_products_are_rounded_and_the_network_stays_as_it_was():
    """1 + 2⁻⁹ is 1 in bfloat16, so the two logits of the image tie there, and the first class is taken."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    before, layout = weights_hash(model), model[0].weight.stride()
    batches = [(torch.tensor([1.0, 1 + 2**-9]).view(1, 2, 1, 1), [1])]
    assert evaluate_each(model, batches)[1].tolist() == [True]
    tally, hits = evaluate_each(model, batches, "bfloat16")
    assert hits.tolist() == [False]
    assert (tally.images, tally.correct) == (1, 0)
    assert (weights_hash(model), model[0].weight.stride()) == (before, layout)
    assert not torch.is_autocast_enabled("cpu")


def test_the_gap_is_the_difference_on_the_first_images():
    model, images = zoo.load("resnet20(width=2)", "digits")
    first = images.test.take(50)
    expected = evaluate_each(model, first, "bfloat16")[0].accuracy - evaluate_each(model, first)[0].accuracy
    assert bfloat16_gap(model, images.test, 50) == expected


class Halves:
    """A split of four images in batches of two."""

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        return iter([(X[:2], torch.tensor([0, 1]), torch.tensor([0, 1])), (X[2:], torch.tensor([2, 0]), torch.tensor([2, 3]))])


def test_loss_and_accuracy_are_those_of_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Dropout(1.0)).train()  # in training every logit is 0
    nn.init.eye_(model[1].weight)
    loss, accuracy = loss_and_accuracy(model, Halves())  # type: ignore[arg-type]
    assert accuracy == 0.75
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(X.flatten(1), torch.tensor([0, 1, 2, 0])).item())
    assert not model.training


def test_the_images_that_are_right_come_in_order():
    tally, correct = evaluate_each(MODEL, [(X[:2], [0, 1]), (X[2:], [2, 0])])
    assert correct.tolist() == [True, True, True, False]
    assert (tally.images, tally.correct) == (4, 3)


class Scaled(nn.Module):
    """The pixels as logits, times a number that is no parameter."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x):
        self.calls += len(x) if len(x) > 2 else 0  # two images find the order in memory
        return self.factor * x.flatten(1)


def test_an_evaluation_is_reused_only_for_the_same_network_images_and_labels(tmp_path):
    stored = tmp_path / "evaluation.json"
    batches = [(X, [0, 1, 2, 0]), (X, [0, 1, 0, 0]), (2 * X, [0, 1, 2, 3])]

    def evaluated(factor, batches):
        model, other = Scaled(factor), Scaled(3.0)
        tallies, known = evaluate_networks({"original": model, "other": other}, batches, stored)
        assert tallies["original"] == evaluate(Scaled(factor), batches)
        assert tallies["other"] == evaluate(Scaled(3.0), batches)
        assert other.calls == sum(len(images) for images, _ in batches)
        return known, model.calls

    assert evaluated(1.0, batches) == (False, 12)
    assert evaluated(1.0, batches) == (True, 4)  # the first batch, which is compared
    assert evaluated(1.5, batches) == (False, 12)  # no parameter differs, but what it computes
    assert evaluated(1.5, batches) == (True, 4)
    assert evaluated(1.5, [*batches[:2], (2 * X, [0, 1, 2, 2])]) == (False, 16)  # a label
    assert evaluated(1.5, [*batches[:2], (2.5 * X, [0, 1, 2, 2])]) == (False, 16)  # an image
    assert evaluated(1.5, batches[:2]) == (False, 12)
    assert evaluated(1.5, [batches[0]]) == (False, 8)
    assert evaluate_networks({"": nn.Sequential(nn.Flatten(), nn.Linear(4, 4))}, [batches[0]], stored)[1] is False  # other weights
    stored.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"evaluation\.json is no evaluation .*: delete it"):
        evaluated(1.0, batches)


def test_each_batch_is_read_once_for_all_networks():
    read, steps = [], []
    batches = [(X, [0, 1, 2, 0])] * 3
    tallies, _ = evaluate_networks(
        {"one": Scaled(), "two": Scaled(2.0)}, (read.append(1) or each for each in batches), after_batch=lambda: steps.append(1)
    )
    assert len(read) == len(steps) == 3
    assert tallies["two"].images == 12
    with pytest.raises(DataError, match="the batches are empty"):
        evaluate_networks({"one": MODEL}, [])


class Flat(nn.Module):
    """All values of an image as logits; a view of them needs channels first."""

    def __init__(self, views):
        super().__init__()
        self.conv, self.views = nn.Conv2d(3, 2, 1), views

    def forward(self, x):
        values = self.conv(x)
        return values.view(len(x), -1) if self.views else values.flatten(1)


@pytest.mark.parametrize("views", [True, False])
def test_images_lie_channels_last_where_the_network_can_run_so(views):
    model, seen = Flat(views), []
    model.conv.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    evaluate(model, [(torch.randn(5, 3, 4, 4), [0, 1, 2, 3, 0])])
    assert seen[-1] is not views
