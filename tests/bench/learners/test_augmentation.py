"""Augmentation: one flip and one small shift per image, its ROI with it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.learners.squares import moved_by
from egal_bench.learners.augmentation import Samples, augmented
from egal_kernels import pack_roi


@given(
    size=st.sampled_from([16, 31, 33, 48, 65]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_roi_drawn_into_the_image_coincides_with_it_after_a_move(size, dtype, channels, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((7, size, size)) < rng.choice([0.02, 0.5, 1.0], (7, 1, 1))
    drawn = np.repeat(masks[:, None], channels, 1) * np.array(np.iinfo(dtype).max, dtype)
    samples = Samples(torch.from_numpy(drawn), torch.arange(7), pack_roi(torch.from_numpy(masks)))
    rows = rng.permutation(7)[:5]
    moved = augmented(samples, rows, rng)
    assert moved.images.dtype == samples.images.dtype
    np.testing.assert_array_equal(moved.labels, rows)
    moved_masks = moved.roi.unpack().numpy()
    np.testing.assert_array_equal(moved_masks[:, None].repeat(channels, 1), moved.images.numpy() > 0)
    if size // 16 and masks.all():
        assert not moved_masks.all()  # some were moved


def test_augmentation_only_flips_and_shifts():
    """An image that numbers its pixels: each output is the input moved by at most 1/16 of its side, or its mirror."""
    numbered = torch.arange(1, 257).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    roi = pack_roi(numbered[:, 0] % 7 == 0)
    moved = augmented(Samples(numbered, torch.zeros(200), roi), np.arange(200), np.random.default_rng(0))
    grid, seen = numbered[0, 0].numpy(), set()
    moves = [((y, x), flip) for flip in (False, True) for y in range(3) for x in range(3)]
    for image, mask in zip(moved.images[:, 0].numpy(), moved.roi.unpack().numpy(), strict=True):
        matches = [move for move in moves if np.array_equal(moved_by(grid, *move), image)]
        assert len(matches) == 1
        seen.add(matches[0])
        np.testing.assert_array_equal(mask, (image % 7 == 0) & (image > 0))
    assert len(seen) == 18


def test_16_bits_are_moved_and_flipped_as_8_are():
    eight = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32)).astype(np.uint8))
    sixteen = torch.from_numpy(257 * eight.numpy().astype(np.uint16))
    labels, rows = torch.zeros(6, dtype=torch.int64), np.arange(6)
    moved_eight, moved_sixteen = (
        augmented(Samples(images, labels, None), rows, np.random.default_rng(1)).images for images in (eight, sixteen)
    )
    assert moved_sixteen.dtype == torch.uint16
    assert not torch.equal(moved_eight, eight)
    assert np.array_equal(moved_sixteen.numpy(), 257 * moved_eight.numpy().astype(np.uint16))
