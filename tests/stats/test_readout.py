"""Readouts: which samples a map gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_stats
from channelscope.errors import InputError
from channelscope.stats.readout import Readout, channels_last, draw_positions

SHAPES = [((5, 4, 3), 0), ((4, 3, 5), 2), ((6, 5), 1), ((5,), 0)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("text", ["pooled", "positions(3)", "positions(all)", "positions(1000)"])
def test_samples_are_those_of_the_definition(shape, axis, text):
    maps = torch.randn(4, *shape)
    readout, positions = Readout.parse(text), int(np.prod(shape)) // shape[axis]
    where = readout.where(torch.arange(4), positions, 7)
    got = readout.samples(maps, axis, where)
    assert got.shape == (4, readout.of(positions), shape[axis])
    if text == "pooled":
        expected = np.stack([image.reshape(shape[axis], -1).mean(1) for image in np.moveaxis(maps.numpy(), axis + 1, 1)])
    else:
        expected = pencil_stats.samples(maps.numpy(), axis, None if where is None else where.tolist())
    np.testing.assert_allclose(got.flatten(0, 1), expected, rtol=1e-5, atol=1e-6)


def test_the_order_in_memory_does_not_matter():
    maps = torch.randn(3, 8, 5, 5)
    where = draw_positions(torch.arange(3), 25, 6, 0)
    usual = Readout("positions", 6).samples(maps, 0, where)
    torch.testing.assert_close(Readout("positions", 6).samples(maps.to(memory_format=torch.channels_last), 0, where), usual, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10**6), positions=st.integers(2, 60), count=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_positions_are_distinct_sorted_and_those_of_the_smallest_keys(index, positions, count, seed):
    count = min(count, positions)
    drawn = draw_positions(torch.tensor([index]), positions, count, seed)[0].tolist()
    assert drawn == pencil_stats.draw(index, positions, count, seed)
    assert len(set(drawn)) == count
    assert drawn == sorted(drawn)


def test_positions_depend_on_the_image_alone():
    whole = draw_positions(torch.arange(50), 64, 16, 3)
    order = torch.randperm(50)
    assert torch.equal(draw_positions(order, 64, 16, 3), whole[order])
    assert not torch.equal(draw_positions(torch.arange(50), 64, 16, 4), whole)


def test_every_position_is_drawn_equally_often():
    counts = torch.bincount(draw_positions(torch.arange(20_000), 25, 5, 0).flatten(), minlength=25).double()
    expected = 20_000 * 5 / 25
    assert float(((counts - expected) ** 2 / expected).sum()) < 60  # chi square with 24 degrees of freedom, p about 1e-4


@pytest.mark.parametrize("text", ["pooled", "positions(16)", "positions(all)"])
def test_text_and_back(text):
    assert str(Readout.parse(text)) == text
    assert Readout.parse(Readout.parse(text)) == Readout.parse(text)


@pytest.mark.parametrize("text", ["", "positions", "positions(0)", "positions(-3)", "all", "positions(16) ", "pooled()"])
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match=r"expected 'pooled', 'positions\(all\)' or 'positions\(16\)'"):
        Readout.parse(text)


def test_channels_last_is_a_view():
    maps = torch.randn(2, 3, 4, 5)
    assert channels_last(maps, 0).data_ptr() == maps.data_ptr()
    assert channels_last(maps, 0).shape == (2, 20, 3)
    assert channels_last(torch.randn(2, 7), 0).shape == (2, 1, 7)
