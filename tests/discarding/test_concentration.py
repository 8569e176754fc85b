"""Concentration and ρ: against sums over pixels, and boxes that cannot be used."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding import concentration as room
from channelscope.discarding.cid import NUMBERS, CIDOptions, CIDResult
from channelscope.discarding.noise import Cells, entropy
from channelscope.discarding.pixel_network import LayerOutput
from channelscope.errors import DataError, ShapeError

PLANE = (6, 8)
CELLS = Cells.of(PLANE)


def drawn(seed):
    """H map, caps, and a mask with both parts."""
    source = torch.Generator().manual_seed(seed)
    cap = 0.2 + 0.2 * torch.rand(PLANE, generator=source, dtype=torch.float64)
    plane = entropy(cap * (0.1 + 0.8 * torch.rand(PLANE, generator=source, dtype=torch.float64)))
    inside = torch.rand(PLANE, generator=source) < 0.4
    inside[0, 0], inside[5, 7] = True, False
    return plane, cap, inside


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_concentration_and_rho_are_what_they_stand_for(seed):
    plane, cap, inside = drawn(seed)
    parts = CELLS.sum_by_cell(3.0 * inside), CELLS.sum_by_cell(3.0 * ~inside)
    found = room.concentration(plane.flatten(), *parts)
    assert float(found) == pytest.approx(pencil.concentration(plane.numpy(), inside.numpy()))
    constants = room.RhoConstants.of(cap.flatten(), *parts)
    expected = pencil.share_about_the_foreground(plane.numpy(), entropy(cap).numpy(), inside.numpy())
    assert constants.rho(float(plane.mean()), float(found)) == pytest.approx(expected)


def test_constants_of_a_uniform_image():
    half = torch.zeros(PLANE, dtype=torch.bool)
    half[:3] = True
    constants = room.RhoConstants.of(torch.full((48,), 0.3), CELLS.sum_by_cell(half.float()), CELLS.sum_by_cell((~half).float()))
    assert (constants.c1, constants.c2, constants.c3) == (0.5, 0.5, pytest.approx(0.0))
    assert constants.rho(-3.0, 0.0) == pytest.approx(0.5)
    assert math.isnan(constants.rho(constants.c4 + 1, 0.0))


def test_boxes_cover_pixel_centers():
    found = room.box_mask([(0, 0, 2, 1), (6.4, 4.6, 8, 6)], PLANE)
    assert found.nonzero().tolist() == [[0, 0], [0, 1], [5, 6], [5, 7]]


@pytest.mark.parametrize(
    ("box", "said"), [((9, 0, 12, 4), "outside the image of 8×6"), ((3, 3, 3, 3), "has no pixel"), ((4, 0, 2, 3), "x0 ≤ x1")]
)
def test_boxes_that_cannot_be_used(box, said):
    with pytest.raises(DataError, match=said):
        room.box_mask([box], PLANE)


def test_cells_must_match():
    with pytest.raises(ShapeError, match="4 cells and 3 counts"):
        room.concentration(torch.rand(4), torch.ones(3), torch.ones(3))


def test_knowledge_points_lie_on_or_beside():
    plane = torch.zeros(PLANE)
    inside = torch.zeros(PLANE, dtype=torch.bool)
    inside[:2] = True
    plane[0, :3], plane[5, 0], plane[5, 1] = -1, -1, -0.1
    found = room.knowledge_points(plane.flatten(), CELLS.sum_by_cell(inside.float()), CELLS.sum_by_cell((~inside).float()), 0.2)
    assert found == (3, 1)


def discarded(count=3):
    sigma = torch.rand(count, 48, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.05
    numbers = {name: torch.zeros(count) for name in NUMBERS} | {"cid": entropy(sigma).mean(1)}
    return CIDResult(LayerOutput("a", "a", 2), torch.arange(count), sigma, numbers, torch.ones(count).bool(), 20, 6, 0.1)


def test_the_table_says_where_it_is_undefined():
    boxes = {0: [(0, 0, 4, 3)], 1: [], 2: [(0, 0, 8, 6)], 3: [(20, 0, 24, 3)]}
    frame = room.concentration_table(
        [discarded(4)],
        lambda image: room.box_mask(boxes[image], PLANE),
        CELLS,
        torch.full((48,), 0.4),
        torch.ones(3, *PLANE).bool(),
        0.2,
        CIDOptions(),
    )
    assert frame.concentration.notna().tolist() == [True, False, False, False]
    assert frame.note.tolist()[0] == ""
    assert "no foreground or no background" in frame.note[1]
    assert "20 0 24 3 lies outside the image of 8×6" in frame.note[3]
    plane = discarded(4).entropy[0].view(PLANE).numpy()
    inside = room.box_mask(boxes[0], PLANE).numpy()
    assert frame.concentration[0] == pytest.approx(pencil.concentration(plane, inside), abs=1e-5)
    for table in (frame, room.concentration_by_layer(frame)):
        assert table.attrs["provenance"]["convention"] == CIDOptions().convention()
    layer = room.concentration_by_layer(frame).iloc[0]
    assert layer.n == 1
    assert math.isnan(layer.concentration_low)


def test_rho_is_about_the_map_and_not_about_the_gap_that_the_cid_contains():
    found = discarded(1)
    found.numbers["cid"] += 0.1
    inside, cap = room.box_mask([(0, 0, 4, 3)], PLANE), torch.full((48,), 0.26)
    frame = room.concentration_table([found], lambda image: inside, CELLS, cap, torch.ones(3, *PLANE).bool(), 0.2, CIDOptions())
    plane, whole = found.entropy[0].view(PLANE).double().numpy(), entropy(cap).view(PLANE).double().numpy()
    assert frame.cid[0] == pytest.approx(float(plane.mean()) + 0.1, abs=1e-5)
    assert frame.rho[0] == pytest.approx(pencil.share_about_the_foreground(plane, whole, inside.numpy()), abs=1e-5)


def test_means_over_images_have_intervals():
    inside = room.box_mask([(0, 0, 4, 3)], PLANE)
    frame = room.concentration_table(
        [discarded()], lambda image: inside, CELLS, torch.full((48,), 0.4), torch.ones(3, *PLANE).bool(), 0.2, CIDOptions()
    )
    layer = room.concentration_by_layer(frame).iloc[0]
    assert layer.concentration_low < frame.concentration.mean() < layer.concentration_high
    assert layer.c1 == pytest.approx(0.25)


def test_a_cell_divided_in_halves_counts_as_foreground():
    half, outside = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 4.0])
    assert room.knowledge_points(torch.tensor([-9.0, 0.0]), half, outside, 0.2) == (1, 0)
