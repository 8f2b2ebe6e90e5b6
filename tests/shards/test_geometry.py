"""Images and ROIs land where exact rational arithmetic says they must."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from egal_shards import ShardError
from egal_shards.geometry import draw_boxes, fit_boxes, place, resize_image, resize_mask
from egal_shards.resampling import resample

sides = st.integers(1, 23)
sizes = st.integers(8, 19)
resizes = st.sampled_from(["letterbox", "squash"])


def covered_area(mask, at):
    """Covered share of each target pixel inside the placement, pixel by pixel in fractions."""
    share = np.full((at.rows, at.columns), Fraction(0), object)
    for y in range(at.rows):
        for x in range(at.columns):
            top, bottom = Fraction(y * at.height, at.rows), Fraction((y + 1) * at.height, at.rows)
            left, right = Fraction(x * at.width, at.columns), Fraction((x + 1) * at.width, at.columns)
            area = Fraction(0)
            for j in range(floor(top), min(at.height, floor(bottom) + 1)):
                for i in range(floor(left), min(at.width, floor(right) + 1)):
                    if mask[j, i]:
                        rows = min(bottom, j + 1) - max(top, j)
                        columns = min(right, i + 1) - max(left, i)
                        area += max(rows, 0) * max(columns, 0)
            share[y, x] = area / ((bottom - top) * (right - left))
    return share


@given(sides, sides, sizes, resizes)
@settings(deadline=None)
def test_letterbox_keeps_the_aspect_centred_and_squash_fills(width, height, size, resize):
    at = place(width, height, size, resize)
    if resize == "squash":
        assert (at.left, at.top, at.columns, at.rows) == (0, 0, size, size)
        return
    assert max(at.columns, at.rows) == size
    assert abs(at.columns - size * width / max(width, height)) <= 0.5 or at.columns == 1
    assert abs(at.rows - size * height / max(width, height)) <= 0.5 or at.rows == 1
    assert 0 <= (size - at.columns - at.left) - at.left <= 1
    assert 0 <= (size - at.rows - at.top) - at.top <= 1


@given(sides, sides, sizes, resizes, st.floats(0, 1), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_mask_keeps_the_pixels_covered_by_half(width, height, size, resize, density, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    at = place(width, height, size, resize)
    share = covered_area(mask, at)
    expected = share >= Fraction(1, 2)
    if mask.any() and not expected.any():
        expected.flat[max(range(share.size), key=lambda i: (share.flat[i], -i))] = True
    canvas = np.zeros((size, size), bool)
    canvas[at.top : at.top + at.rows, at.left : at.left + at.columns] = expected
    assert np.array_equal(resize_mask(mask, at), canvas)


def test_mask_of_one_pixel_in_a_large_image_is_not_lost():
    mask = np.zeros((1000, 700), bool)
    mask[412, 333] = True
    at = place(700, 1000, 16, "letterbox")
    [[y, x]] = np.argwhere(resize_mask(mask, at))
    assert (y, x) == (412 * 16 // 1000, at.left + 333 * at.columns // 700)


def test_a_large_mask_is_integrated_across_its_row_blocks():
    mask = np.zeros((2048, 2048), bool)
    mask[200:1500, 300:900] = True
    small = resize_mask(mask, place(2048, 2048, 256, "squash"))
    assert np.array_equal(small, mask.reshape(256, 8, 256, 8).mean(axis=(1, 3)) >= 0.5)


@st.composite
def boxes_in_images(draw):
    width, height = draw(sides), draw(sides)
    x0, x1 = sorted(draw(st.tuples(*[st.floats(0, width)] * 2)))
    y0, y1 = sorted(draw(st.tuples(*[st.floats(0, height)] * 2)))
    assume(x0 < x1 and y0 < y1)
    return width, height, (x0, y0, x1, y1)


@given(boxes_in_images(), sizes, resizes)
@settings(deadline=None, max_examples=200)
def test_box_covers_the_pixel_centres_inside_it(case, size, resize):
    width, height, box = case
    at = place(width, height, size, resize)
    got = draw_boxes([box], at)
    inside = np.zeros((size, size), bool)
    on_edge = np.zeros((size, size), bool)  # rounding may decide there
    x0, y0, x1, y1 = map(Fraction, box)
    for y in range(at.rows):
        for x in range(at.columns):
            cx, cy = Fraction(2 * x + 1, 2) * width / at.columns, Fraction(2 * y + 1, 2) * height / at.rows
            inside[at.top + y, at.left + x] = x0 <= cx < x1 and y0 <= cy < y1
            on_edge[at.top + y, at.left + x] = any(abs(v) < 1e-9 for v in (cx - x0, cx - x1, cy - y0, cy - y1))
    if inside.any():
        assert np.array_equal(got[~on_edge], inside[~on_edge])
    elif not on_edge.any():
        rows, columns = np.nonzero(got)
        assert got.any()
        assert set(rows) <= touched(y0, y1, at.rows, height, at.top)
        assert set(columns) <= touched(x0, x1, at.columns, width, at.left)


def touched(low, high, pixels, extent, start):
    """Target pixels that [low, high] of the source meets."""
    return {start + floor(low * pixels / extent) + i for i in range(-1, floor((high - low) * pixels / extent) + 3)}


def test_a_box_between_centres_keeps_the_pixel_under_its_middle():
    at = place(8, 8, 8, "letterbox")
    got = draw_boxes([(3.6, 5.55, 4.2, 5.95)], at)
    assert np.argwhere(got).tolist() == [[5, 3]]


def test_boxes_of_one_image_are_united():
    at = place(10, 10, 10, "squash")
    got = draw_boxes([(0, 0, 4, 4), (2, 2, 6, 5)], at)
    assert got.sum() == 16 + 12 - 4


@given(st.integers(24, 60), st.integers(24, 60), sizes, resizes, st.data())
@settings(deadline=None, max_examples=60)
def test_image_and_mask_stay_aligned(width, height, size, resize, data):
    """A white rectangle on black: the image is white well inside the resized mask and black well outside."""
    x0, y0 = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    mask = np.zeros((height, width), bool)
    mask[y0 : y0 + 12, x0 : x0 + 12] = True
    at = place(width, height, size, resize)
    image = resize_image(mask.astype(np.uint8) * 255, at)
    cover = resize_mask(mask, at)
    # At a straight edge the bilinear kernel, symmetric about the pixel centre, and the area agree on half.
    disagree = (image > 140) & ~cover | (image < 115) & cover
    edges = np.zeros_like(cover)
    edges[1:] |= cover[1:] != cover[:-1]
    edges[:-1] |= cover[1:] != cover[:-1]
    edges[:, 1:] |= cover[:, 1:] != cover[:, :-1]
    edges[:, :-1] |= cover[:, 1:] != cover[:, :-1]
    corners = sum(np.roll(edges, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1)) > 3
    assert not (disagree & ~corners).any()
    total = image.sum() / 255
    assert total == pytest.approx(144 * at.columns * at.rows / (width * height), rel=0.12, abs=1.5)


def test_images_are_resized_as_by_pillow_on_a_zero_canvas():
    pixels = np.random.default_rng(0).integers(1, 256, (40, 30, 3), dtype=np.uint8)
    at = place(30, 40, 16, "letterbox")
    canvas = resize_image(pixels, at)
    expected = np.asarray(Image.fromarray(pixels).resize((12, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(canvas[:, 2:14], expected)
    assert not canvas[:, :2].any()
    assert not canvas[:, 14:].any()


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_resampling_is_pillows_of_rows_and_then_of_columns(data):
    """Row by row and column by column, since versions of Pillow differ in which they take first."""
    sides = st.integers(1, 90) | st.integers(1, 12).map(lambda blocks: 8 * blocks)
    height, width, rows, columns = (data.draw(sides) for _ in range(4))
    colours = data.draw(st.sampled_from([(), (3,)]))
    pixels = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 256, (height, width, *colours), np.uint8)
    if data.draw(st.booleans()):
        pixels = (pixels > 127) * np.uint8(255)
    if data.draw(st.booleans()):
        pixels = np.asfortranarray(pixels)
    expected = Image.fromarray(pixels).resize((columns, height), Image.Resampling.BILINEAR)
    expected = expected.resize((columns, rows), Image.Resampling.BILINEAR)
    assert np.array_equal(resample(pixels, rows, columns), np.asarray(expected))


def test_boxes_are_clipped_by_a_thousandth_of_a_pixel():
    assert fit_boxes([(-0.0009, 0, 5, 10.0009)], 10, 10, "f") == ((0, 0, 5, 10),)
    for box in [(-0.002, 0, 5, 5), (0, -0.002, 5, 5), (0, 0, 10.002, 5), (0, 0, 5, 10.002), (0, 0, float("nan"), 5)]:
        with pytest.raises(ShardError, match=r"f: box .* leaves its image of 10×10"):
            fit_boxes([box], 10, 10, "f")
    for box in [(5, 5, 5, 6), (6, 5, 5, 6), (10.0002, 1, 10.0008, 2)]:
        with pytest.raises(ShardError, match=r"f: box .* has no area"):
            fit_boxes([box], 10, 10, "f")
