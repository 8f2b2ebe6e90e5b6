"""PackedRoi: the layout on disk, the round trip, areas, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_kernels import ArgumentError, PackedRoi, pack_boxes, pack_roi
from egal_kernels.shared import roi as roi_module

SIZES = st.sampled_from([1, 2, 7, 31, 32, 33, 63, 64, 65, 97])


@st.composite
def masks(draw):
    shape = draw(st.integers(0, 3)), draw(SIZES), draw(SIZES)
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < density


def numpy_words(mask: np.ndarray) -> np.ndarray:
    """[B, W, ceil(H/32)] '<u4' by np.packbits along y, as a shard stores it."""
    words = -(-mask.shape[1] // 32)
    packed = np.packbits(mask.transpose(0, 2, 1), axis=2, bitorder="little")
    padded = np.pad(packed, ((0, 0), (0, 0), (0, 4 * words - packed.shape[2])))
    return np.ascontiguousarray(padded).view("<u4")


@pytest.mark.parametrize("numba", [True, False])
@given(masks())
@settings(deadline=None, max_examples=80)
def test_words_equal_numpy_packbits_and_unpack_to_the_mask(numba, mask):
    with pytest.MonkeyPatch.context() as patch:
        if not numba:
            patch.setattr(roi_module, "_cpu_pack", lambda: None)
        roi = pack_roi(torch.from_numpy(mask))
    np.testing.assert_array_equal(roi.bits.numpy().view(np.uint32), numpy_words(mask))
    assert roi.bits.is_contiguous()
    assert roi.shape == mask.shape
    assert len(roi) == len(mask)
    np.testing.assert_array_equal(roi.unpack().numpy(), mask)
    assert roi.unpack().dtype == torch.bool
    np.testing.assert_array_equal(roi.unpack(torch.float32).numpy(), mask.astype(np.float32))
    np.testing.assert_array_equal(roi.area().numpy(), mask.sum((1, 2), dtype=np.int32), strict=True)


def test_stored_words_are_wrapped_without_a_copy():
    mask = np.random.default_rng(0).random((2, 40, 5)) < 0.5
    stored = torch.from_numpy(numpy_words(mask).view("<i4"))
    roi = PackedRoi(stored, height=40)
    assert roi.bits.data_ptr() == stored.data_ptr()
    np.testing.assert_array_equal(roi.unpack().numpy(), mask)


def test_masks_in_any_memory_order_pack_to_the_same_words():
    mask = torch.from_numpy(np.random.default_rng(1).random((3, 37, 50)) < 0.5)
    strided = mask.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(pack_roi(strided).bits, pack_roi(mask).bits)


def test_slices_index_tensors_and_bool_tensors_select_masks():
    mask = torch.from_numpy(np.random.default_rng(2).random((5, 33, 4)) < 0.5)
    roi = pack_roi(mask)
    for index in (slice(1, 4), torch.tensor([4, 0]), torch.tensor([True, False, True, False, False])):
        assert torch.equal(roi[index].unpack(), mask[index])
    assert torch.equal(roi.to("cpu").unpack(), mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 3, 4, dtype=torch.uint8), r"mask: expected dtype bool, got uint8 \[2, 3, 4\]"),
        (torch.zeros(3, 4, dtype=torch.bool), r"mask: expected shape \[B, H, W\], got \[3, 4\]"),
        (torch.zeros(2, 0, 4, dtype=torch.bool), r"mask: .* got \[2, 0, 4\]"),
        (np.zeros((2, 3, 4), bool), r"mask: expected a tensor \[B, H, W\], got ndarray"),
    ],
)
def test_pack_roi_names_a_wrong_mask(mask, message):
    with pytest.raises(ArgumentError, match=message):
        pack_roi(mask)


@pytest.mark.parametrize(
    ("bits", "height", "message"),
    [
        (torch.zeros(2, 4, 1), 32, r"bits: expected dtype int32, got float32 \[2, 4, 1\]"),
        (torch.zeros(4, 1, dtype=torch.int32), 32, r"bits: expected shape \[B, W, words\], got \[4, 1\]"),
        (torch.zeros(2, 4, 1, dtype=torch.int32), 33, r"bits: a height of 33 packs to \[B, W, 2\], got \[2, 4, 1\]"),
        (torch.zeros(2, 4, 1, dtype=torch.int32), 0, "bits: a height of 0"),
        (torch.full((2, 4, 1), 1 << 5, dtype=torch.int32), 5, "bits: padding bits are set .*5 rows"),
        (torch.full((2, 4, 1), -1 << 31, dtype=torch.int32), 31, "bits: padding bits are set"),
    ],
)
def test_packed_roi_names_wrong_bits(bits, height, message):
    with pytest.raises(ArgumentError, match=message):
        PackedRoi(bits, height)


def test_a_full_last_word_has_no_padding():
    assert PackedRoi(torch.full((1, 2, 2), -1, dtype=torch.int32), 64).area().tolist() == [128]
    assert PackedRoi(torch.full((1, 2, 1), (1 << 31) - 1, dtype=torch.int32), 31).area().tolist() == [62]


SPAN = st.one_of(st.integers(0, 70).map(float), st.floats(0, 70))


@given(st.lists(st.lists(st.tuples(SPAN, SPAN, SPAN, SPAN), max_size=3), max_size=3), st.sampled_from([70, 96]))
@settings(deadline=None, max_examples=150)
def test_boxes_pack_to_the_pixels_whose_centres_they_contain(corners, height):
    boxes = [[(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in image if a != c and b != d]
             for image in corners]  # fmt: skip
    mask = np.zeros((len(boxes), height, 70), bool)
    x, y = np.arange(70) + 0.5, np.arange(height) + 0.5
    for i, image in enumerate(boxes):
        for x0, y0, x1, y1 in image:
            across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
            if not across.any():
                across[min(int((x0 + x1) / 2), 69)] = True  # a middle may round up to the border
            if not down.any():
                down[min(int((y0 + y1) / 2), height - 1)] = True
            mask[i] |= down[:, None] & across
    np.testing.assert_array_equal(pack_boxes(boxes, height, 70).unpack().numpy(), mask)


@pytest.mark.parametrize(
    "box", [(3, 3, 3, 5), (3, 3, 2, 5), (-1, 0, 2, 2), (0, 0, 11, 2), (0, 0, 2, 9), (0, 0, 1, np.nan)]
)
def test_a_box_that_is_empty_or_leaves_the_image_is_named(box):
    with pytest.raises(ArgumentError, match=r"boxes: boxes\[1\]\[1\] is \[.*within 10×8 \(w×h\)"):
        pack_boxes([[], [(0, 0, 1, 1), box]], 8, 10)
