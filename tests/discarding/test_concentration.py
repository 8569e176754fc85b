"""Concentration against sums over pixels, edges and color where they are known, and boxes from maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding import concentration as room
from channelscope.discarding.cid import NUMBERS, CIDOptions, CIDResult
from channelscope.discarding.concentration import colorfulness, edge_color_correlation, edge_strength
from channelscope.discarding.jacobian import LayerOutput
from channelscope.discarding.noise import Cells, entropy, gaussian_blur
from channelscope.errors import DataError, ShapeError
from discarding import small

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


def discarded_with(sigma, layer="a"):
    count = len(sigma)
    numbers = {name: torch.zeros(count) for name in NUMBERS}
    return CIDResult(LayerOutput(layer, layer, 1), torch.arange(count), sigma, numbers, torch.ones(count).bool(), 20, 6, 0.1)


def test_a_map_that_keeps_edges_says_so():
    view, batches, cells = small.view(), small.batches(4, 2), Cells.of((8, 8))
    parts = []
    for images, *_ in batches:
        strength = cells.sum_by_cell(edge_strength(view.denormalize(images)))
        parts += [discarded_with(1 / (1 + strength)), discarded_with(1 + strength, "b")]
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
    frame = edge_color_correlation(view, batches, [discarded_with(sigma)], CIDOptions(side=3)).set_index("of")
    assert frame.rho["edges"] == pytest.approx(-1)


def test_a_flat_map_has_no_rank_correlation():
    view, batches = small.view(), small.batches(2, 2)
    frame = edge_color_correlation(view, batches, [discarded_with(torch.ones(2, 64))], CIDOptions())
    assert frame.n.tolist() == [0, 0]
    assert frame.rho.isna().all()
