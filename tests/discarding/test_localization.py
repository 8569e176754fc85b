"""Boxes from maps: against flood filling, at any scale, and overlaps that are areas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding import localization as room
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.smoothing import gaussian_blur
from channelscope.errors import DataError, ShapeError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(room.QUANTILES))
def test_boxes_agree_with_flood_filling_and_with_any_scale(seed, level):
    plane = gaussian_blur(torch.rand(12, 15, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 1)
    found = room.largest_component_box(plane, level)
    assert found == pencil.box(plane.numpy(), level)
    assert found == room.largest_component_box(7 * plane + 3, level)


def test_a_square_is_found():
    plane = torch.zeros(20, 20)
    plane[4:9, 6:12] = 1
    plane[15, 15] = 1
    assert room.largest_component_box(plane, 0.95) == (6.0, 4.0, 12.0, 9.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=8))
def test_overlap_counts_pixels(numbers):
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in (numbers[:4], numbers[4:])]
    planes = torch.zeros(2, 10, 10, dtype=torch.bool)
    for plane, (x0, y0, x1, y1) in zip(planes, boxes, strict=True):
        plane[y0:y1, x0:x1] = True
    expected = float((planes[0] & planes[1]).sum() / (planes[0] | planes[1]).sum())
    assert room.box_iou(*boxes) == pytest.approx(expected)
    assert room.box_iou(*boxes) == room.box_iou(*boxes[::-1])


def test_the_best_of_several_boxes_counts():
    assert room.best_iou((0, 0, 4, 4), [(10, 10, 12, 12), (0, 0, 4, 8)]) == 0.5


@pytest.mark.parametrize("boxes", [[], [(3, 3, 3, 9)]])
def test_an_image_without_a_box_is_refused(boxes):
    with pytest.raises(DataError, match="has no box"):
        room.best_iou((0, 0, 4, 4), boxes)


def test_the_threshold_fits_the_objects_size():
    maps = torch.zeros(3, 20, 20)
    for place, one in enumerate(maps):
        one[:10, :10] = 1 + torch.rand(10, 10, generator=torch.Generator().manual_seed(place)) * 1e-3
    level = room.best_quantile(maps, [[(0, 0, 10, 10)]] * 3)
    assert 0.7 <= level <= 0.75
    with pytest.raises(ShapeError, match="each of 3 maps, received 2"):
        room.best_quantile(maps, [[(0, 0, 1, 1)]] * 2)


def test_an_overlap_of_exactly_one_half_counts_as_found():
    """A flat map gives the whole image as its box, of which the first object is one half."""
    maps, boxes = {"cid": torch.ones(2, 4, 4)}, [[(0, 0, 2, 4)], [(0, 0, 4, 4)]]
    frame = room.localization_table(maps, boxes, maps, boxes, CIDOptions())
    assert (frame.iou[0], frame.found[0]) == (0.75, 1.0)


def test_maps_are_blurred_by_four_pixels():
    maps = torch.zeros(1, 41, 41)
    maps[0, 20, 20] = 1
    rows = room.smoothed(maps).sum(2)[0]
    variance = float((rows * (torch.arange(41) - 20.0).square()).sum() / rows.sum())
    assert abs(variance**0.5 - 4) < 0.1


def test_a_constant_map_stays_constant_up_to_the_border():
    torch.testing.assert_close(room.smoothed(torch.full((2, 9, 30), 3.0)), torch.full((2, 9, 30), 3.0))
