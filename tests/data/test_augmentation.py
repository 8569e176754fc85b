"""Crops and flips of a batch equal the loop over its pixels, and are drawn fairly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_zoo as pencil
from channelscope.data.images import read_images
from channelscope.data.splits import AugmentedBatches, augment


def batch(count=4, channels=3, height=6, width=5, seed=0):
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def choices(count, pad, flip, seed):
    """What the generator chooses, drawn again in the same order: offsets, then mirrors."""
    source = drawn(seed)
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=source)
    mirrored = (torch.rand(count, 1, generator=source) < 0.5).flatten() if flip else torch.zeros(count, dtype=torch.bool)
    return list(zip(top.flatten().tolist(), left.flatten().tolist(), strict=True)), mirrored.tolist()


shapes = st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(2, 7), st.integers(2, 7))


@given(shapes, st.integers(0, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_the_loop_over_pixels(shape, pad, flip, seed):
    pixels = batch(*shape)
    found = augment(pixels, pad, flip, drawn(seed))
    offsets, mirrored = choices(len(pixels), pad, flip, seed)
    expected = pencil.augmented(pixels.numpy(), offsets, mirrored, pad)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.dtype == torch.uint8


def test_nothing_asked_nothing_done_and_nothing_drawn():
    pixels, source = batch(), drawn()
    before = source.get_state()
    assert augment(pixels, 0, False, source) is pixels
    assert torch.equal(source.get_state(), before)


def test_the_batch_itself_is_not_changed():
    pixels = batch()
    before = pixels.clone()
    augment(pixels, 2, True, drawn())
    assert torch.equal(pixels, before)


def test_the_same_generator_state_gives_the_same_result_and_another_does_not():
    pixels = batch(32)
    one, two, other = (augment(pixels, 2, True, drawn(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_half_of_the_images_are_mirrored():
    pixels = batch(2000, 1, 1, 2)
    found = augment(pixels, 0, True, drawn())
    mirrored = (found == pixels.flip(3)).flatten(1).all(1) & (found != pixels).flatten(1).any(1)
    asymmetric = (pixels != pixels.flip(3)).flatten(1).any(1)
    assert float(mirrored.sum() / asymmetric.sum()) == pytest.approx(0.5, abs=0.05)


def test_every_offset_is_drawn_equally_often():
    """A single bright pixel in the middle lands on each of (2·pad + 1)² places."""
    pixels = torch.zeros(4500, 1, 5, 5, dtype=torch.uint8)
    pixels[:, :, 2, 2] = 255
    found = augment(pixels, 1, False, drawn()).float().mean((0, 1)) / 255
    assert float(found[1:4, 1:4].sum()) == pytest.approx(1)
    np.testing.assert_allclose(found[1:4, 1:4].numpy(), 1 / 9, atol=0.02)


def test_what_comes_in_is_black():
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    found = augment(white, 3, False, drawn())
    assert set(found.unique().tolist()) == {0, 255}
    assert (found[:, :, 3:5, 3:5] == 255).all(), "the center cannot leave"


def test_channels_move_together():
    pixels = batch(20, 1).expand(-1, 3, -1, -1)
    found = augment(pixels, 2, True, drawn())
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])


@given(shapes, st.floats(0.1, 0.99), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_erased_square_is_the_loop_over_pixels(shape, erase, seed):
    pixels = batch(*shape)
    count, _, height, width = pixels.shape
    found = augment(pixels, 0, False, drawn(seed), erase)
    source = drawn(seed)
    middle_y, middle_x = (torch.randint(length, (count, 1), generator=source).flatten().tolist() for length in (height, width))
    expected = pencil.erased(pixels.numpy(), middle_y, middle_x, round(erase * min(height, width)))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_the_square_is_drawn_after_crop_and_flip():
    pixels = batch(8)
    plain, source = augment(pixels, 2, True, drawn()), drawn()
    both = augment(pixels, 2, True, source, 0.5)
    covered = (both == 0).all(1) & (plain != 0).any(1)
    assert covered.flatten(1).sum(1).max() == 4
    assert torch.equal(both[~covered[:, None].expand_as(both)], plain[~covered[:, None].expand_as(plain)])


def test_augmented_batches_are_all_images_in_a_new_order_in_every_pass():
    split = read_images("digits").test.take(10).with_batch_size(4)
    plain = split.normalized(split.pixels(torch.arange(10))).flatten(1)
    batches = AugmentedBatches(split, pad=0, flip=False, seed=3)
    first, second = (torch.cat(list(batches)).flatten(1) for _ in range(2))
    again = torch.cat(list(AugmentedBatches(split, pad=0, flip=False, seed=3))).flatten(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for images in (first, second):
        assert sorted(images.tolist()) == sorted(plain.tolist())
    assert not torch.equal(torch.cat(list(AugmentedBatches(split, pad=1, flip=True, seed=3))).flatten(1), first)
