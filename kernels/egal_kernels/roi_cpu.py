# mypy: allow-untyped-defs, allow-untyped-calls
"""Numba kernel of `pack_roi` on the CPU."""

import numpy as np

from egal_kernels.caching import kernel


@kernel
def pack(mask, packed):
    """Eight rows at a time to a row of bytes: mask uint8 [B, H, W] into packed uint8 [B, W, ≥ H/8], zero beforehand."""
    batch, height, width = mask.shape
    byte = np.empty(width, np.uint8)
    for b in range(batch):
        for top in range(0, height, 8):
            byte[:] = 0
            for j in range(min(8, height - top)):
                row, bit, none = mask[b, top + j], np.uint8(1 << j), np.uint8(0)
                for x in range(width):
                    byte[x] |= bit if row[x] != 0 else none
            for x in range(width):
                packed[b, x, top // 8] = byte[x]
