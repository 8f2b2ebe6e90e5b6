"""Samples that were checked against their SHA-256 before are read again at the speed of memory.

SHA-256 takes ten times as long as copying. So whoever has checked a sample remembers 64 bits of its bytes, and they
are compared from then on. The 64 bits are NH, the universal hash of UMAC (Black et al., CRYPTO 1999), of 4 KiB blocks,
combined by powers of an odd number, under a key that the process draws for itself: whatever happens to the bytes, it
goes unseen with a probability of about 2⁻³². They never leave the process.
"""

import secrets
from typing import Any

import numpy as np
from numba import njit, types

from egal_shards.decoding import decode_span
from egal_shards.index import Index
from egal_shards.layout import BLOCK, HEADER
from egal_shards.manifest import Manifest

_HEAD = BLOCK + HEADER  # bytes of a sample before its first pixel
_LANES = 512  # words of a block: its part of the key stays in the L1 cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BYTE = np.uint64(8)

# C's ssize_t preadv(int file, const struct iovec *parts, int count, off_t offset)
_preadv: Any = types.ExternalFunction("preadv", types.intp(types.intc, types.uintp, types.intc, types.int64))


class Checked:
    """Reads samples of a set of npy images, and remembers which of them it has found right: 8 bytes a sample."""

    def __init__(self, rows: Index, manifest: Manifest) -> None:
        self._rows, self._manifest = rows, manifest
        self._known = np.zeros(len(rows.shard), np.uint64)  # 0: not checked yet
        self._key = np.frombuffer(bytearray(secrets.token_bytes(8 * (1 + 2 * _LANES))), np.uint64)
        self._key[0] |= np.uint64(1)

    def read(
        self, files: np.ndarray, positions: np.ndarray, slots: np.ndarray, images: np.ndarray, words: np.ndarray
    ) -> np.ndarray:
        """Fill images[slots] and ROI words[slots] from the rows at `positions`, in these open files (all int64).

        ShardError where a sample is wrong. Returns which of them (0, 1, …) could not be read to their end.
        """
        images, words = (array.reshape(len(array), -1).view(np.uint8) for array in (images, words))
        size = images.shape[1]
        parts = self._rows.offsets[positions]
        starts, lengths = parts[:, 0] - BLOCK, parts[:, 4] + parts[:, 5] - parts[:, 0] + BLOCK
        rois = np.where(parts[:, 3] > 0, parts[:, 2] + HEADER - starts - size, 0)  # of words in `around`
        around = np.empty((len(slots), lengths.max() - size), np.uint8)
        prints = np.zeros(len(slots), np.uint64)
        _read(files, starts, lengths, rois, slots, self._key, around, images, words, prints)
        for n in np.flatnonzero((prints != self._known[positions]) & (prints != 0)):
            head, tail = np.split(around[n, : lengths[n] - size], [_HEAD])
            span = b"".join((head.data, images[slots[n]].data, tail.data))
            decode_span(span, int(positions[n]), self._rows, self._manifest)
            self._known[positions[n]] = prints[n]
        return np.flatnonzero(prints == 0)


@njit(nogil=True, cache=True)
def _absorb(state: Any, data: np.ndarray, key: np.ndarray) -> Any:
    """The fingerprint of what `state` has seen, followed by data u8 [n]. The key: an odd factor, then two a lane."""
    low, high = key[1 : 1 + _LANES], key[1 + _LANES :]
    words = data[: len(data) // 8 * 8].view(np.uint64)
    for begin in range(0, len(words), _LANES):
        total = np.uint64(0)
        for j in range(min(_LANES, len(words) - begin)):
            word = words[begin + j]
            total += ((word + low[j]) & _LOW) * (((word >> _HALF) + high[j]) & _LOW)
        state = state * key[0] + total
    rest = np.uint64(0)
    for i in range(8 * len(words), len(data)):
        rest = rest << _BYTE | np.uint64(data[i])
    return state * key[0] + rest


@njit(nogil=True, cache=True)
def _read(
    files: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    rois: np.ndarray,
    slots: np.ndarray,
    key: np.ndarray,
    around: np.ndarray,
    images: np.ndarray,
    words: np.ndarray,
    prints: np.ndarray,
) -> None:
    """Fingerprints of samples, 0 where one cannot be read. Pixels land where they belong, the rest in `around`."""
    size, width = images.shape[1], words.shape[1]
    parts = np.empty(6, np.int64)  # three struct iovec
    for n in range(len(slots)):
        pixels, row = images[slots[n]], words[slots[n]]
        head, tail = around[n, :_HEAD], around[n, _HEAD : lengths[n] - size]
        parts[0], parts[1] = head.ctypes.data, _HEAD
        parts[2], parts[3] = pixels.ctypes.data, size
        parts[4], parts[5] = tail.ctypes.data, len(tail)
        if _preadv(files[n], parts.ctypes.data, 3, starts[n]) != lengths[n]:
            continue
        prints[n] = _absorb(_absorb(_absorb(np.uint64(0), head, key), pixels, key), tail, key)
        if rois[n] > 0:
            roi = around[n, rois[n] : rois[n] + width]
            for i in range(width):
                row[i] = roi[i]
        else:
            for i in range(width):
                row[i] = 0
