"""Samples that were checked against their SHA-256 before are read again at the speed of memory.

SHA-256 takes thirty times as long as the fingerprint that is compared from the second reading on: 64 bits of a sample's
pixels and ROI words. They are NH, the universal hash of UMAC (Black et al., CRYPTO 1999), of 4 KiB blocks, combined by
powers of an odd number, under a key that the process draws for itself: whatever happens to the bytes, it goes unseen
with a probability of about 2⁻³¹. They never leave the process. NH's two additions of 32 bits are one of 64 here. Its
carry at most doubles the odds: for a given lower half, upper halves that differ by a given amount, wrapped or not,
have two chances of a given difference of products instead of one.
"""

import secrets
from typing import Any

import numpy as np
from numba import njit, types

from egal_shards.layout import BLOCK, HEADER, padded

_LANES = 512  # words of a block: its part of the key stays in the L1 cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BYTE = np.uint64(8)

# C's ssize_t preadv(int file, const struct iovec *parts, int count, off_t offset)
_preadv: Any = types.ExternalFunction("preadv", types.intp(types.intc, types.uintp, types.intc, types.int64))


class Checked:
    """The samples, of a set of npy images, that were found right: 8 bytes for each of the set."""

    def __init__(self, offsets: np.ndarray) -> None:
        self._offsets = offsets  # of the index
        self._known = np.zeros(len(offsets), np.uint64)  # fingerprints; 0: not checked yet
        self._key = np.frombuffer(bytearray(secrets.token_bytes(8 * (1 + _LANES))), np.uint64)
        self._key[0] |= np.uint64(1)

    def remember(self, i: int, image: np.ndarray, words: np.ndarray) -> None:
        """What row i holds, once it has been checked."""
        self._known[i] = _fingerprint(image.reshape(-1).view(np.uint8), words.reshape(-1).view(np.uint8), self._key)

    def read(self, files: np.ndarray, positions: np.ndarray, images: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Fill images [B,…] and ROI words [B,…] from the rows at `positions`, in these open files (-1: leave it out).

        Returns bool [B]: which are now filled with what was remembered of them.
        """
        images, words = (array.reshape(len(array), -1).view(np.uint8) for array in (images, words))
        size, right = images.shape[1], np.zeros(len(positions), bool)
        between = np.empty(padded(HEADER + size) - size + BLOCK, np.uint8)  # from the last pixel to the first word
        _read(files, positions, self._offsets, self._known, self._key, images, words, between, right)
        return right


@njit(nogil=True, cache=True)
def _absorb(state: Any, data: np.ndarray, key: np.ndarray) -> Any:
    """The fingerprint of what `state` has seen, followed by data u8 [n]. The key: an odd factor, then one a lane."""
    factor, lanes = key[0], key[1:]
    words = data[: len(data) // 8 * 8].view(np.uint64)
    for begin in range(0, len(words), _LANES):
        block, total = words[begin : begin + _LANES], np.uint64(0)
        for j in range(len(block)):
            word = block[j] + lanes[j]
            total += (word & _LOW) * (word >> _HALF)
        state = state * factor + total
    rest = np.uint64(0)
    for i in range(8 * len(words), len(data)):
        rest = rest << _BYTE | np.uint64(data[i])
    return state * factor + rest


@njit(nogil=True, cache=True)
def _fingerprint(pixels: np.ndarray, words: np.ndarray, key: np.ndarray) -> Any:
    return _absorb(_absorb(np.uint64(0), pixels, key), words, key)


@njit(nogil=True, cache=True)
def _read(
    files: np.ndarray,
    positions: np.ndarray,
    offsets: np.ndarray,
    known: np.ndarray,
    key: np.ndarray,
    images: np.ndarray,
    words: np.ndarray,
    between: np.ndarray,
    right: np.ndarray,
) -> None:
    """Into each array its part of the file, by one call of the system a sample; its fingerprint while it is cached."""
    parts = np.empty(6, np.int64)  # three struct iovec
    parts[2], parts[3] = between.ctypes.data, len(between)
    for n in range(len(positions)):
        i = positions[n]
        if files[n] < 0 or known[i] == 0:
            continue
        parts[0], parts[1] = images[n].ctypes.data, images.shape[1]
        parts[4], parts[5] = words[n].ctypes.data, words.shape[1]
        count = 3 if offsets[i, 3] > 0 else 1  # an ROI, or none
        if count == 1:
            words[n] = 0
        if _preadv(files[n], parts.ctypes.data, count, offsets[i, 0] + HEADER) == parts[1 : 2 * count : 2].sum():
            right[n] = _fingerprint(images[n], words[n], key) == known[i]
