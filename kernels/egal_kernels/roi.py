"""Regions of interest, bit-packed along y: 1 bit a pixel, one popcount for 32 pixels of a column."""

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

from egal_kernels.checks import check_tensor

WORD = 32  # pixels a word
Box = Sequence[float]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True, eq=False)
class PackedRoi:
    """A batch of binary masks [B, H, W] as `bits`, int32 [B, W, ceil(H/32)], and `height`, H in pixels.

    Pixel (y, x) is bit y % 32 of word y // 32 of column x; the padding bits y ≥ H are zero. An image's words are what a
    shard stores ('<u4' [W, ceil(H/32)]), so stored bits viewed as int32 are wrapped without a copy.

    Raises ValueError for another dtype or shape, and for padding bits that are set. These are looked at on the CPU
    only: on an accelerator the check would wait for the device, and `pack_roi` and `to` cannot break them.
    """

    bits: Tensor
    height: int

    def __post_init__(self) -> None:
        check_tensor("bits", self.bits, "B W words", {}, [torch.int32])
        words = -(-self.height // WORD)
        if self.height < 1 or self.bits.shape[2] != words:
            raise ValueError(f"bits: a height of {self.height} packs to [B, W, {words}], got {list(self.bits.shape)}")
        padding = -1 << (self.height % WORD)
        if self.height % WORD and self.bits.is_cpu and bool((self.bits[..., -1] & padding).any()):
            raise ValueError(f"bits: padding bits are set below the last row ({self.height} rows); pack with pack_roi")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, W) of the masks."""
        return self.bits.shape[0], self.height, self.bits.shape[1]

    def __len__(self) -> int:
        return self.bits.shape[0]

    def __getitem__(self, index: slice | Tensor) -> PackedRoi:
        """The masks at a slice, an int64 index tensor or a bool [B] tensor; a slice shares memory."""
        return PackedRoi(self.bits[index], self.height)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedRoi:
        """The same masks on `device`."""
        return PackedRoi(self.bits.to(device, non_blocking=non_blocking), self.height)

    def unpack(self, dtype: torch.dtype = torch.bool) -> Tensor:
        """The masks, [B, H, W] of `dtype`, 1 inside the ROI."""
        words = self.bits.transpose(1, 2).contiguous().unsqueeze(2)  # [B, words, 1, W]
        shifts = torch.arange(WORD, dtype=torch.int32, device=words.device).unsqueeze(1)
        pixels = (words >> shifts).bitwise_and_(1).to(dtype)  # [B, words, 32, W]
        return pixels.flatten(1, 2)[:, : self.height]

    def area(self) -> Tensor:
        """Pixels in each ROI, int32 [B]."""
        return _popcount(self.bits).sum((1, 2), dtype=torch.int32)


def pack_roi(mask: Tensor) -> PackedRoi:
    """`mask`, bool [B, H, W], as a PackedRoi on the same device. Raises ValueError for another dtype or shape."""
    check_tensor("mask", mask, "B H W", {}, [torch.bool])
    batch, height, width = mask.shape
    words = -(-height // WORD)
    if mask.is_cpu and not torch.compiler.is_compiling() and (pack := _cpu_pack()):
        packed = np.zeros((batch, width, 4 * words), np.uint8)
        pack(mask.contiguous().view(torch.uint8).numpy(), packed)
        return PackedRoi(torch.from_numpy(packed.view(np.int32)), height)
    pixels = F.pad(mask, (0, 0, 0, words * WORD - height)).view(batch, words, WORD, width)
    shifts = torch.arange(WORD, dtype=torch.int32, device=mask.device).unsqueeze(1)
    bits = (pixels.int() << shifts).sum(2, dtype=torch.int32)  # [B, words, W]; distinct bits, so the sum is their OR
    return PackedRoi(bits.transpose(1, 2).contiguous(), height)


@cache
def _cpu_pack() -> Callable[[np.ndarray, np.ndarray], None] | None:
    """The Numba kernel; None where Numba is missing or bytes of a word do not go from low to high."""
    if sys.byteorder != "little" or find_spec("numba") is None:
        return None
    from egal_kernels.roi_cpu import pack

    return pack


def pack_boxes(boxes: Sequence[Sequence[Box]], height: int, width: int) -> PackedRoi:
    """The union of each image's boxes as a PackedRoi of `height`×`width` pixels on the CPU; no mask is drawn.

    boxes[i]: those of image i, x0, y0, x1, y1 in pixels with x1 and y1 exclusive. A pixel is inside where its centre
    is; a box that holds no centre takes the pixel under its middle.

    Raises ValueError naming a box that is empty or leaves the image.
    """
    bits = np.zeros((len(boxes), width, -(-height // WORD)), np.uint32)
    tops = WORD * np.arange(bits.shape[2])
    for i, image in enumerate(boxes):
        for j, (x0, y0, x1, y1) in enumerate(image):
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ValueError(f"boxes: boxes[{i}][{j}] is {[x0, y0, x1, y1]}; expected x0 < x1 and y0 < y1 "
                                 f"within {width}×{height} (w×h) pixels")  # fmt: skip
            (left, right), (top, bottom) = _centres(x0, x1, width), _centres(y0, y1, height)
            low, high = (np.clip(y - tops, 0, WORD).astype(np.uint64) for y in (top, bottom))
            ones = (np.uint64(1) << high) - (np.uint64(1) << low)  # rows [top, bottom) of each word
            bits[i, left:right] |= ones.astype(np.uint32)
    return PackedRoi(torch.from_numpy(bits.view(np.int32)), height)


def _centres(low: float, high: float, size: int) -> tuple[int, int]:
    """The pixels whose centre is in [low, high); if there is none, the one under its middle."""
    first, stop = ceil(low - 0.5), ceil(high - 0.5)
    middle = min(floor((low + high) / 2), size - 1)
    return (first, stop) if first < stop else (middle, middle + 1)


def _popcount(words: Tensor) -> Tensor:
    """Set bits of each int32 word, int64: sums of neighbouring 1-, 2- and 4-bit fields, then of the four bytes."""
    x = words.long()  # int64: nothing below overflows; the masks drop the extended sign
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101 >> 24) & 0xFF
