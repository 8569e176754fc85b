"""Cells: a partition of the plane, however its sides divide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding.noise import Cells
from channelscope.errors import InputError

planes = st.tuples(st.integers(1, 14), st.integers(1, 14))


@settings(max_examples=40, deadline=None)
@given(planes, st.integers(1, 9), st.integers(0, 2**31))
def test_sums_agree_with_a_loop(plane, side, seed):
    cells = Cells.of(plane, side)
    values = torch.rand(2, *plane, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = cells.sum_by_cell(values)
    assert sums.shape == (2, len(cells))
    for own, expected in zip(sums, values, strict=True):
        assert np.allclose(own.view(cells.grid), pencil.cell_sums(expected.numpy(), cells.grid))


@settings(max_examples=40, deadline=None)
@given(planes, st.integers(1, 9), st.integers(0, 2**31))
def test_spreading_is_the_transpose_of_summing(plane, side, seed):
    cells = Cells.of(plane, side)
    source = torch.Generator().manual_seed(seed)
    values = torch.rand(*plane, generator=source, dtype=torch.float64)
    weights = torch.rand(len(cells), generator=source, dtype=torch.float64)
    assert torch.isclose((cells.sum_by_cell(values) * weights).sum(), (values * cells.expand_to_pixels(weights)).sum())


@settings(max_examples=30, deadline=None)
@given(planes, st.integers(1, 20))
def test_every_pixel_is_in_one_cell_and_no_cell_is_empty(plane, side):
    cells = Cells.of(plane, side)
    counts = cells.sum_by_cell(torch.ones(plane))
    assert counts.min() >= 1
    assert counts.sum() == plane[0] * plane[1]
    assert counts.max() <= (-(-plane[0] // cells.grid[0])) * (-(-plane[1] // cells.grid[1]))


@settings(max_examples=30, deadline=None)
@given(planes, st.integers(1, 20))
def test_a_flat_map_has_one_mean_however_unequal_the_cells(plane, side):
    cells = Cells.of(plane, side)
    assert torch.equal(cells.mean_by_cell(torch.full((3, *plane), 0.25)), torch.full((3, len(cells)), 0.25))
    assert torch.equal(cells.pixels, cells.sum_by_cell(torch.ones(plane)))


def test_small_images_have_a_cell_per_pixel():
    cells = Cells.of((32, 32))
    assert cells.per_pixel
    assert len(cells) == 1024
    plane = torch.rand(32, 32)
    assert torch.equal(cells.sum_by_cell(plane), plane.flatten())
    assert torch.equal(cells.expand_to_pixels(cells.sum_by_cell(plane)), plane)


def test_large_images_have_a_grid_unless_told_otherwise():
    assert Cells.of((224, 224)).grid == (56, 56)
    assert Cells.of((224, 224), None).per_pixel
    assert Cells.of((40, 100), 56).grid == (40, 56)


@pytest.mark.parametrize("side", [0, -3])
def test_no_cells_are_refused(side):
    with pytest.raises(InputError, match="at least one cell"):
        Cells.of((8, 8), side)
