"""Comparison: rounding is no difference; anything else is."""

import pytest
import torch

from channelscope.network.tracing.recording import other_image, same

ONE = torch.tensor([1.0, 2.0])

EQUAL = {
    "rounding": (ONE, ONE + 1e-6),
    "nothing": (None, None),
    "nested": ({"a": [ONE, 3]}, {"a": [ONE.clone(), 3]}),
    "not a number": (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
}
DIFFERENT = {
    "value": (ONE, ONE + 0.1),
    "shape": (ONE, ONE[None]),
    "type of numbers": (ONE, ONE.double()),
    "one part": ({"a": ONE, "b": ONE}, {"a": ONE, "b": -ONE}),
    "a key": ({"a": ONE}, {"b": ONE}),
    "length": ([ONE], [ONE, ONE]),
    "number": ((ONE, 3), (ONE, 4)),
    "kind": (ONE, [ONE]),
}


@pytest.mark.parametrize(("a", "b"), EQUAL.values(), ids=EQUAL)
def test_the_same(a, b):
    assert same(a, b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_another(a, b):
    assert not same(a, b)
    assert not same(b, a)


@pytest.mark.parametrize("make", [torch.zeros, torch.rand, torch.ones], ids=["blank", "noise", "constant"])
def test_the_other_image_is_another(make):
    batch = make(3, 2, 4, 4)
    image = other_image(batch)
    assert image.shape == (1, 2, 4, 4)
    assert not torch.isclose(image, batch[:1]).any()
    assert torch.equal(other_image(batch), image)


def test_whole_numbers_stay_whole_numbers_that_occur():
    tokens = torch.tensor([[3, 1, 2], [0, 0, 0]])
    assert other_image(tokens).tolist() == [[2, 3, 1]]
    assert other_image(torch.tensor([5.0])).tolist() == [5]
