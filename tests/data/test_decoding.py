"""Pictures: decoding, resizing, cropping, and boxes that move along."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pencil_zoo as pencil
from channelscope.data.decoding import ResizeCrop, decode, open_image
from channelscope.errors import DataError
from image_files import encoded, picture

sides = st.integers(8, 400)


def test_a_lossless_picture_comes_back_as_it_was():
    for kind in ("PNG", "BMP", "PPM"):
        pixels = picture(1, (9, 7))
        assert np.array_equal(decode(encoded(pixels, kind), "here", 3, ResizeCrop()), pixels.transpose(2, 0, 1))
    gray = picture(2, (9, 7), gray=True)
    assert np.array_equal(decode(encoded(gray), "here", 1, ResizeCrop()), gray[None])


def test_arrays_are_pictures_already():
    pixels = picture(3)
    assert np.array_equal(decode(pixels, "here", 3, ResizeCrop()), pixels.transpose(2, 0, 1))
    assert decode(picture(3, gray=True), "here", 1, ResizeCrop()).shape == (1, 8, 8)


def test_gray_among_color_is_repeated_and_color_among_gray_refused():
    gray = picture(4, gray=True)
    assert np.array_equal(decode(encoded(gray), "here", 3, ResizeCrop()), np.stack([gray] * 3))
    with pytest.raises(DataError, match=r"there\.png: expected one gray channel"):
        decode(encoded(picture(4)), "there.png", 1, ResizeCrop())


def test_transparency_is_dropped():
    pixels = np.dstack([picture(5), np.full((8, 8), 128, np.uint8)])
    assert np.array_equal(decode(encoded(pixels), "here", 3, ResizeCrop()), pixels[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_picture_are_refused_by_name(data):
    with pytest.raises(DataError, match="broken/7\\.png"):
        open_image(data, "broken/7.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused_by_name(kind):
    data = encoded(picture(6, (64, 64)), kind)
    with pytest.raises(DataError, match=r"cut\.img.*skip_corrupt"):
        decode(data[: len(data) // 2], "cut.img", 3, ResizeCrop())


def test_a_picture_above_pillows_pixel_limit_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"vast\.png: expected a picture.*exceeds limit.*skip_corrupt"):
        open_image(encoded(picture(6, (64, 64))), "vast.png")


def test_sixteen_bits_are_refused():
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 500
    with pytest.raises(DataError, match="8 bits per channel"):
        open_image(encoded(deep), "deep.png")


def test_without_a_size_nothing_is_moved():
    fit = ResizeCrop()
    assert fit.placement(30, 20) == (30, 20, 0, 0)
    image = Image.fromarray(picture(7, (30, 20)))
    assert fit.apply(image) is image
    assert fit.boxes([(1, 2, 3, 4)], 30, 20) == [(1, 2, 3, 4)]


def test_a_picture_of_the_wanted_size_is_not_resampled():
    pixels = picture(8, (32, 32))
    assert np.array_equal(decode(pixels, "here", 3, ResizeCrop((32, 32))), pixels.transpose(2, 0, 1))


def test_the_center_is_cropped():
    pixels = picture(9, (12, 8))
    assert np.array_equal(decode(pixels, "here", 3, ResizeCrop((8, 8))), pixels[:, 2:10].transpose(2, 0, 1))
    assert np.array_equal(
        decode(pixels.transpose(1, 0, 2), "here", 3, ResizeCrop((8, 8))), pixels.transpose(1, 0, 2)[2:10].transpose(2, 0, 1)
    )


def test_the_evaluation_of_imagenet_networks_is_256_then_224():
    assert ResizeCrop((224, 224), 0.875).placement(500, 375) == (341, 256, 58, 16)
    assert ResizeCrop((224, 224), 0.875).placement(256, 256) == (256, 256, 16, 16)


@given(sides, sides, st.integers(1, 64), st.sampled_from([1.0, 0.95, 0.875, 0.5]))
@settings(max_examples=60, deadline=None)
def test_the_crop_lies_inside_the_resized_picture(width, height, size, crop):
    wide, high, left, top = ResizeCrop((size, size), crop).placement(width, height)
    assert min(wide, high) == max(size, round(np.floor(size / crop)))
    assert left >= 0
    assert top >= 0
    assert left + size <= wide
    assert top + size <= high
    assert abs(wide / high - width / height) <= max(wide / high, 1) * 1.5 / min(wide, high) * max(1, width / height)


@given(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]), st.integers(9, 40), st.integers(9, 40))
@settings(max_examples=20, deadline=None)
def test_any_picture_takes_the_wanted_shape(interpolation, width, height):
    pixels = decode(picture(10, (width, height)), "here", 3, ResizeCrop((16, 12), 0.9, interpolation))
    assert pixels.shape == (3, 16, 12)
    assert pixels.dtype == np.uint8


def test_a_flat_picture_stays_flat():
    flat = np.full((20, 31, 3), 77, np.uint8)
    assert (decode(flat, "here", 3, ResizeCrop((12, 12), 0.875, "bicubic")) == 77).all()


boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))


@given(boxes, sides, sides, st.integers(4, 64), st.sampled_from([1.0, 0.875]))
@settings(max_examples=60, deadline=None)
def test_boxes_move_with_the_picture(box, width, height, size, crop):
    x0, x1 = sorted((box[0] * width, box[1] * width))
    y0, y1 = sorted((box[2] * height, box[3] * height))
    moved = ResizeCrop((size, size), crop).boxes([(x0, y0, x1, y1)], width, height)[0]
    assert moved == pytest.approx(pencil.box_through((x0, y0, x1, y1), width, height, size, crop))
    assert 0 <= moved[0] <= moved[2] <= size
    assert 0 <= moved[1] <= moved[3] <= size


def test_a_box_frames_what_it_framed():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    fit = ResizeCrop((20, 20))
    seen = decode(pixels, "here", 3, fit)[0] > 127
    ((x0, y0, x1, y1),) = fit.boxes([(20, 10, 40, 30)], 60, 40)
    rows, columns = np.nonzero(seen)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
