"""Antialiased bilinear resizing of 8-bit images, with Pillow's arithmetic to the bit.

Whether Pillow resizes rows or columns first depends on its version, and so do its roundings. Here rows come first.
"""

from functools import lru_cache

import numpy as np
from numba import njit

_BITS = 22  # behind the point of fixed-point weights, as in Pillow's Resample.c
_SWAPS = tuple(  # steps that transpose 8×8 bytes: distance in rows, distance in bits, mask of the bytes that stay
    (rows, np.uint64(8 * rows), np.uint64(mask))
    for rows, mask in ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0x00000000FFFFFFFF))
)


def resample(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return u8 [H,W] or [H,W,3] resized to u8 [rows,columns] or [rows,columns,3].

    Each row is resized first, then each column, and both results are rounded. A pixel is the mean of the pixels below
    it, weighted by a triangle as wide as two pixels of the coarser grid.
    """
    if columns != image.shape[1]:
        image = _swapped(_along_rows(_swapped(image), columns))
    return image if rows == image.shape[0] else _along_rows(image, rows)


def _along_rows(image: np.ndarray, size: int) -> np.ndarray:
    """Return u8 [N,…] resized along its first axis to u8 [size,…]."""
    first, weights = _triangles(len(image), size)
    flat = np.ascontiguousarray(image).reshape(len(image), -1)
    return _weighted(flat, first, weights).reshape(size, *image.shape[1:])


def _swapped(image: np.ndarray) -> np.ndarray:
    """Return [H,W] or [H,W,3] with its first two axes exchanged."""
    if image.ndim == 3 or image.shape[0] % 8 or image.shape[1] % 8:
        return image.swapaxes(0, 1)
    return _transposed(np.ascontiguousarray(image).view(np.uint64))


@lru_cache(maxsize=64)
def _triangles(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each output, (its first input i64 [size], its weights i32 [size,taps] of sum 2²²).

    Weights past the end of the input are 0.
    """
    scale = count / size
    reach = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + reach + 0.5).astype(np.int64), count) - first
    at = np.arange(taps.max())
    weights = 1 - np.abs((at + first[:, None] - centre[:, None] + 0.5) * (1 / reach))
    weights = np.where(at < taps[:, None], np.maximum(weights, 0), 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed from left to right
    return first, (0.5 + weights * (1 << _BITS)).astype(np.int32)


@njit(nogil=True, cache=True)
def _weighted(image: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted sums of the rows of u8 [N,M], u8 [size,M]."""
    out = np.empty((len(first), image.shape[1]), np.uint8)
    total = np.empty(image.shape[1], np.int32)
    for i in range(len(first)):
        total[:] = 1 << (_BITS - 1)  # rounds to nearest
        for tap in range(weights.shape[1]):
            weight = weights[i, tap]
            if weight:
                row = image[first[i] + tap]
                for j in range(len(total)):
                    total[j] += weight * row[j]
        for j in range(len(total)):
            out[i, j] = min(total[j] >> _BITS, 255)
    return out


@njit(nogil=True, cache=True)
def _transposed(words: np.ndarray) -> np.ndarray:
    """Return the transpose u8 [8N,8M] of rows of words u64 [8M,N], by blocks of 8×8 bytes (Hacker's Delight, 7-3)."""
    out = np.empty((8 * words.shape[1], len(words) // 8), np.uint64)
    block = np.empty(8, np.uint64)
    for column in range(words.shape[1]):
        for row in range(out.shape[1]):
            for k in range(8):
                block[k] = words[8 * row + k, column]
            for apart, bits, mask in _SWAPS:
                for k in range(8):
                    if not k & apart:
                        change = ((block[k] >> bits) ^ block[k + apart]) & mask
                        block[k + apart] ^= change
                        block[k] ^= change << bits
            for k in range(8):
                out[8 * column + k, row] = block[k]
    return out.view(np.uint8)
