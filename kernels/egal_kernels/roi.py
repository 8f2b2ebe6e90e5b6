"""Regions of interest, bit-packed along y: 1 bit a pixel, one popcount for 32 pixels of a column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.checks import check_tensor

WORD = 32  # pixels a word


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
    pixels = F.pad(mask, (0, 0, 0, words * WORD - height)).view(batch, words, WORD, width)
    shifts = torch.arange(WORD, dtype=torch.int32, device=mask.device).unsqueeze(1)
    bits = (pixels.int() << shifts).sum(2, dtype=torch.int32)  # [B, words, W]; distinct bits, so the sum is their OR
    return PackedRoi(bits.transpose(1, 2).contiguous(), height)


def _popcount(words: Tensor) -> Tensor:
    """Set bits of each int32 word, int64: sums of neighbouring 1-, 2- and 4-bit fields, then of the four bytes."""
    x = words.long()  # int64: nothing below overflows; the masks drop the extended sign
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101 >> 24) & 0xFF
