"""Edges and color: measured on pictures where they are known."""

import pytest
import torch

from channelscope.discarding.cid import NUMBERS, CIDOptions, CIDResult
from channelscope.discarding.concentration import colorfulness, edge_color_correlation, edge_strength
from channelscope.discarding.noise import Cells
from channelscope.discarding.pixel_network import LayerOutput
from discarding import small


def test_a_step_has_an_edge_and_gray_has_no_color():
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 0.5
    found = edge_strength(picture)[0]
    assert found[:, 3:5].eq(0.25).all()
    assert found[:, :3].eq(0).all()
    assert colorfulness(picture).eq(0).all()


def test_color_is_the_distance_from_gray():
    picture = torch.zeros(1, 3, 2, 2)
    picture[:, 0] = 0.9
    assert float(colorfulness(picture)[0, 0, 0]) == pytest.approx(0.9 * 2**0.5 / 3)
    assert edge_strength(picture).eq(0).all()


def discarded(sigma, layer="a"):
    count = len(sigma)
    numbers = {name: torch.zeros(count) for name in NUMBERS}
    return CIDResult(LayerOutput(layer, layer, 1), torch.arange(count), sigma, numbers, torch.ones(count).bool(), 20, 6, 0.1)


def test_a_map_that_keeps_edges_says_so():
    view, batches, cells = small.view(), small.batches(4, 2), Cells.of((8, 8))
    parts = []
    for images, *_ in batches:
        strength = cells.sum_by_cell(edge_strength(view.denormalize(images)))
        parts += [discarded(1 / (1 + strength)), discarded(1 + strength, "b")]
    frame = edge_color_correlation(view, batches, parts, CIDOptions(side=8)).set_index(["layer", "of"])
    assert frame.rho["a", "edges"] == pytest.approx(1)
    assert frame.rho["b", "edges"] == pytest.approx(-1)
    assert abs(frame.rho["a", "color"]) < 0.5
    assert (frame.n == 4).all()
    assert frame.attrs["provenance"]["convention"] == CIDOptions(side=8).convention()


def test_cells_of_unequal_size_do_not_look_like_edges():
    """The layer's noise grows with the mean edge strength per pixel, which a large cell does not have more of."""
    view, batches, cells = small.view(), small.batches(2, 2), Cells.of((8, 8), 3)
    strength = edge_strength(view.denormalize(batches[0][0])).double()
    members = [torch.outer(cells.row_of_cell == row, cells.column_of_cell == column) for row in range(3) for column in range(3)]
    sigma = 1 + torch.stack([torch.stack([one[inside].mean() for inside in members]) for one in strength])
    frame = edge_color_correlation(view, batches, [discarded(sigma)], CIDOptions(side=3)).set_index("of")
    assert frame.rho["edges"] == pytest.approx(-1)


def test_a_flat_map_has_no_rank_correlation():
    view, batches = small.view(), small.batches(2, 2)
    frame = edge_color_correlation(view, batches, [discarded(torch.ones(2, 64))], CIDOptions())
    assert frame.n.tolist() == [0, 0]
    assert frame.rho.isna().all()
