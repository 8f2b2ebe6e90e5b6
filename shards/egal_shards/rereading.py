"""Repeated reading of samples at the speed of memory, once they have been checked against their SHA-256.

From the second reading on, a sample is compared with a fingerprint: 64 bits of its pixels and ROI words, far cheaper
than SHA-256. The fingerprint is NH, the universal hash of UMAC (Black et al., CRYPTO 1999), over blocks of 4 KiB. The
hashes of the blocks are combined by powers of an odd number. The process draws the key at random and never reveals
key or fingerprints. So any change of the bytes goes unnoticed with a probability of about 2⁻³¹.

NH adds two pairs of 32-bit halves. This code adds the 64-bit words instead, where the lower half can carry into the
upper half. The carry at most doubles the probability of a collision: it gives two upper halves that differ by a fixed
amount two chances, instead of one, to produce a fixed difference of products.
"""

import secrets
from typing import Any

import numpy as np
from numba import njit, types

from egal_shards.layout import BLOCK, HEADER, padded

_LANES = 512  # words per block; a key of this length stays in the L1 cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BYTE = np.uint64(8)

# C's ssize_t preadv(int file, const struct iovec *parts, int count, off_t offset)
_preadv: Any = types.ExternalFunction("preadv", types.intp(types.intc, types.uintp, types.intc, types.int64))


class Checked:
    """The fingerprints of the samples of a set of npy images that have been checked: 8 bytes per sample of the set."""

    def __init__(self, offsets: np.ndarray) -> None:
        self._offsets = offsets  # int64 [N,6], of the index
        self._fingerprints = np.zeros(len(offsets), np.uint64)  # 0: not checked yet
        self._key = np.frombuffer(bytearray(secrets.token_bytes(8 * (1 + _LANES))), np.uint64)
        self._key[0] |= np.uint64(1)

    def remember(self, i: int, image: np.ndarray, words: np.ndarray) -> None:
        """Store the fingerprint of row i after its check.

        Args:
            i: Row of the index.
            image: Its image, [C,H,W].
            words: Its ROI words, [W, ceil(H/32)].
        """
        self._fingerprints[i] = _fingerprint(
            image.reshape(-1).view(np.uint8), words.reshape(-1).view(np.uint8), self._key
        )

    def read(self, files: np.ndarray, positions: np.ndarray, images: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Fill images and ROI words from the files. Return bool [B]: which rows match their fingerprints.

        Rows that have no fingerprint, or whose file is -1, are left out.

        Args:
            files: int64 [B], the open file of the shard of each row.
            positions: int64 [B], the rows of the index.
            images: Memory for the images, [B,C,H,W].
            words: Memory for the ROI words, [B, W, ceil(H/32)].
        """
        images, words = (array.reshape(len(array), -1).view(np.uint8) for array in (images, words))
        size, matches = images.shape[1], np.zeros(len(positions), bool)
        gap = np.empty(padded(HEADER + size) - size + BLOCK, np.uint8)  # bytes from the last pixel to the first word
        _read(files, positions, self._offsets, self._fingerprints, self._key, images, words, gap, matches)
        return matches


@njit(nogil=True, cache=True)
def _absorb(state: Any, data: np.ndarray, key: np.ndarray) -> Any:
    """Return the fingerprint of the bytes in `state` followed by data uint8 [n].

    The key is uint64 [1 + _LANES]: an odd factor, then one number per lane.
    """
    factor, lanes = key[0], key[1:]
    words = data[: len(data) // 8 * 8].view(np.uint64)
    for begin in range(0, len(words), _LANES):
        block, total = words[begin : begin + _LANES], np.uint64(0)
        for j in range(len(block)):
            word = block[j] + lanes[j]
            total += (word & _LOW) * (word >> _HALF)
        state = state * factor + total
    tail = np.uint64(0)
    for i in range(8 * len(words), len(data)):
        tail = tail << _BYTE | np.uint64(data[i])
    return state * factor + tail


@njit(nogil=True, cache=True)
def _fingerprint(pixels: np.ndarray, words: np.ndarray, key: np.ndarray) -> Any:
    return _absorb(_absorb(np.uint64(0), pixels, key), words, key)


@njit(nogil=True, cache=True)
def _read(
    files: np.ndarray,
    positions: np.ndarray,
    offsets: np.ndarray,
    fingerprints: np.ndarray,
    key: np.ndarray,
    images: np.ndarray,
    words: np.ndarray,
    gap: np.ndarray,
    matches: np.ndarray,
) -> None:
    """Read each sample with one system call, and compare its fingerprint while its bytes are in the CPU cache."""
    parts = np.empty(6, np.int64)  # three `struct iovec`: pixels, gap, words
    parts[2], parts[3] = gap.ctypes.data, len(gap)
    for n in range(len(positions)):
        i = positions[n]
        if files[n] < 0 or fingerprints[i] == 0:
            continue
        parts[0], parts[1] = images[n].ctypes.data, images.shape[1]
        parts[4], parts[5] = words[n].ctypes.data, words.shape[1]
        count = 3 if offsets[i, 3] > 0 else 1  # parts to read: all three with an ROI, the pixels without
        if count == 1:
            words[n] = 0
        if _preadv(files[n], parts.ctypes.data, count, offsets[i, 0] + HEADER) == parts[1 : 2 * count : 2].sum():
            matches[n] = _fingerprint(images[n], words[n], key) == fingerprints[i]
