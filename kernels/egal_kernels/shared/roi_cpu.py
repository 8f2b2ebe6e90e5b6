# mypy: allow-untyped-defs, allow-untyped-calls
"""The Numba kernel of `pack_roi` on the CPU."""

import numpy as np

from egal_kernels.shared.caching import kernel


@kernel
def pack(mask, packed):
    """Pack masks, eight rows at a time into one row of bytes.

    Args:
        mask: uint8 [B, H, W], 0 outside the ROI.
        packed: uint8 [B, W, at least H/8], filled with 0 by the caller.
    """
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
