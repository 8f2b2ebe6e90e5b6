"""Regions of interest, packed along y: 1 bit per pixel, so that one popcount counts 32 pixels of a column."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import ceil, floor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.errors import ArgumentError
from egal_kernels.shared.checks import check_tensor

WORD = 32  # pixels per word
Box = Sequence[float]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True, eq=False)
class PackedRoi:
    """A batch of B binary masks [H, W] with 1 bit per pixel.

    Pixel (y, x) is bit y % 32 of word y // 32 of column x. The padding bits, y ≥ H, are 0. A shard stores the same
    words per image ('<u4' [W, ceil(H/32)]), so stored words viewed as int32 are wrapped without a copy.

    Raises ArgumentError for another dtype or shape, and for padding bits that are set. Padding bits are checked only on
    the CPU: on an accelerator the check would wait for the device, and neither `pack_roi` nor `to` can set them.
    """

    bits: Tensor  # int32 [B, W, ceil(H/32)]
    height: int  # H, in pixels

    def __post_init__(self) -> None:
        check_tensor("bits", self.bits, "B W words", {}, [torch.int32])
        words = -(-self.height // WORD)
        if self.height < 1 or self.bits.shape[2] != words:
            raise ArgumentError(
                f"bits: a height of {self.height} packs to [B, W, {words}], got {list(self.bits.shape)}"
            )
        padding = -1 << (self.height % WORD)
        if self.height % WORD and self.bits.is_cpu and bool((self.bits[..., -1] & padding).any()):
            raise ArgumentError(
                f"bits: padding bits are set below the last row ({self.height} rows); pack with pack_roi"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (B, H, W) of the masks."""
        return self.bits.shape[0], self.height, self.bits.shape[1]

    def __len__(self) -> int:
        return self.bits.shape[0]

    def __getitem__(self, index: slice | Tensor) -> PackedRoi:
        """Return the masks at a slice, an int64 index tensor or a bool [B] tensor. A slice shares memory."""
        return PackedRoi(self.bits[index], self.height)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedRoi:
        """Return the same masks on `device`."""
        return PackedRoi(self.bits.to(device, non_blocking=non_blocking), self.height)

    def unpack(self, dtype: torch.dtype = torch.bool) -> Tensor:
        """Return the masks [B, H, W] in `dtype`: 1 inside the ROI, 0 outside."""
        words = self.bits.transpose(1, 2).contiguous().unsqueeze(2)  # [B, words, 1, W]
        shifts = torch.arange(WORD, dtype=torch.int32, device=words.device).unsqueeze(1)
        pixels = (words >> shifts).bitwise_and_(1).to(dtype)  # [B, words, 32, W]
        return pixels.flatten(1, 2)[:, : self.height]

    def area(self) -> Tensor:
        """Return the number of pixels in each ROI, int32 [B]."""
        return _popcount(self.bits).sum((1, 2), dtype=torch.int32)


def check_roi(roi: object, sizes: dict[str, int], device: torch.device) -> None:
    """Raise ArgumentError if `roi` is no PackedRoi of sizes["B"] masks on `device`."""
    if not isinstance(roi, PackedRoi):
        raise ArgumentError(f"roi: expected a PackedRoi, got {type(roi).__name__}; pack a bool mask [B, H, W] by "
                            "pack_roi")  # fmt: skip
    check_tensor("roi.bits", roi.bits, "B W words", sizes, [torch.int32], device)


def pack_roi(mask: Tensor) -> PackedRoi:
    """Pack `mask`, bool [B, H, W], on its own device. Raise ArgumentError for another dtype or shape."""
    check_tensor("mask", mask, "B H W", {}, [torch.bool])
    batch, height, width = mask.shape
    words = -(-height // WORD)
    if mask.is_cpu and not torch.compiler.is_compiling() and (pack := _cpu_pack()):
        packed = np.zeros((batch, width, 4 * words), np.uint8)
        pack(mask.contiguous().view(torch.uint8).numpy(), packed)
        return PackedRoi(torch.from_numpy(packed.view(np.int32)), height)
    pixels = F.pad(mask, (0, 0, 0, words * WORD - height)).view(batch, words, WORD, width)
    shifts = torch.arange(WORD, dtype=torch.int32, device=mask.device).unsqueeze(1)
    bits = (pixels.int() << shifts).sum(2, dtype=torch.int32)  # [B, words, W]; the bits differ, so the sum is their OR
    return PackedRoi(bits.transpose(1, 2).contiguous(), height)


@cache
def _cpu_pack() -> Callable[[np.ndarray, np.ndarray], None] | None:
    """Return the Numba kernel; None if Numba is missing, or if the processor stores a word's high byte first."""
    if sys.byteorder != "little" or find_spec("numba") is None:
        return None
    from egal_kernels.shared.roi_cpu import pack

    return pack


def pack_boxes(boxes: Sequence[Sequence[Box]], height: int, width: int) -> PackedRoi:
    """Pack the union of each image's boxes on the CPU, without drawing a mask.

    A pixel is inside a box if its centre is. A box that contains no centre covers the pixel under its middle.

    Args:
        boxes: for each image, its boxes (x0, y0, x1, y1) in pixels, with x1 and y1 exclusive.
        height: H of the image, in pixels.
        width: W of the image, in pixels.

    Raises ArgumentError naming a box that is empty or leaves the image.
    """
    bits = np.zeros((len(boxes), width, -(-height // WORD)), np.uint32)
    tops = WORD * np.arange(bits.shape[2])
    for i, image in enumerate(boxes):
        for j, (x0, y0, x1, y1) in enumerate(image):
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ArgumentError(f"boxes: boxes[{i}][{j}] is {[x0, y0, x1, y1]}; expected x0 < x1 and y0 < y1 "
                                 f"within {width}×{height} (w×h) pixels")  # fmt: skip
            (left, right), (top, bottom) = _centres(x0, x1, width), _centres(y0, y1, height)
            low, high = (np.clip(y - tops, 0, WORD).astype(np.uint64) for y in (top, bottom))
            ones = (np.uint64(1) << high) - (np.uint64(1) << low)  # rows [top, bottom) of each word
            bits[i, left:right] |= ones.astype(np.uint32)
    return PackedRoi(torch.from_numpy(bits.view(np.int32)), height)


def _centres(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the range [first, stop) of pixels whose centres are in [low, high), or the one under its middle."""
    first, stop = ceil(low - 0.5), ceil(high - 0.5)
    middle = min(floor((low + high) / 2), size - 1)
    return (first, stop) if first < stop else (middle, middle + 1)


def _popcount(words: Tensor) -> Tensor:
    """Count the set bits of each int32 word, int64: add up neighbouring 1-, 2- and 4-bit fields, then the 4 bytes."""
    x = words.long()  # nothing below overflows int64, and the masks drop the extended sign
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101 >> 24) & 0xFF
