# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, disable-error-code="call-arg"
"""Numba functions on the words of a packed ROI: popcounts, words in the order of rows, and moments of their bits."""

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

jit = njit(nogil=True, error_model="numpy")

# Every operand of a word is uint32 as well: Numba widens the result of a uint32 and an int to 64 bits
_1, _2, _4, _8, _24 = map(np.uint32, (1, 2, 4, 8, 24))
_1F, _55, _33, _0F, _01, _0123 = map(np.uint32, (0x1F, 0x55555555, 0x33333333, 0x0F0F0F0F, 0x01010101, 0x00010203))


@intrinsic
def popcount(typingctx, x):
    """Count the set bits of a uint32, with the processor's own instruction if it has one."""
    return types.uint32(types.uint32), lambda context, builder, signature, args: builder.ctpop(args[0])


@jit
def _first(words):
    """Return the index of the first word that is not 0; the number of words if all are 0."""
    i, step, some = 0, 32, np.uint32(0)
    while i + step <= words.size:
        for j in range(step):
            some |= words[i + j]
        if some:
            break
        i += step
    while i < words.size and not words[i]:
        i += 1
    return i


@jit
def arrange(bits, words, below):
    """Rearrange the ROI words of a sample by row, for the columns [left, right) that contain the ROI.

    Args:
        bits: uint32 [W, n], the words of the packed ROI.
        words: uint32 [n + 1, W], filled with the words by row. The last row is left as it is: it is read, but its
            bits are always masked out.
        below: uint32 [n + 1, W], filled with the number of ROI pixels in each column above each word.

    Returns left, right and the number of pixels in the ROI.
    """
    width, count = bits.shape
    flat = bits.ravel()
    left = _first(flat) // count
    right = max(left, width - _first(flat[::-1]) // count)
    below[0, left:right] = 0
    for k in range(count):
        word, above, under = words[k, left:right], below[k, left:right], below[k + 1, left:right]
        for x in range(word.size):
            word[x] = bits[left + x, k]
        for x in range(word.size):
            under[x] = above[x] + popcount(word[x])
    return left, right, np.int64(below[count, left:right].sum())


@jit
def moments(word, following, shift, mask):
    """Return the number of set bits in a run of rows, and the sum of their positions p, counted from the run's first.

    The run begins at bit `shift` of `word` and may continue in the `following` word; `mask` has one bit for each of its
    rows. As in a popcount, the sums are taken in fields of 2, 4 and 8 bits.
    """
    bits = np.uint32(np.uint32(word >> shift | np.uint32(following << _1) << np.uint32(_1F - shift)) & mask)
    odd = np.uint32((bits >> _1) & _55)
    count = np.uint32((bits & _55) + odd)
    high = np.uint32((count >> _2) & _33)
    place = np.uint32((odd & _33) + ((odd >> _2) & _33) + (high << _1))
    count = np.uint32((count & _33) + high)
    high = np.uint32((count >> _4) & _0F)
    place = np.uint32((place & _0F) + ((place >> _4) & _0F) + (high << _2))
    count = np.uint32((count & _0F) + high)
    ones = np.uint32(np.uint32(count * _01) >> _24)
    positions = np.uint32(np.uint32(place * _01) >> _24) + np.uint32(np.uint32(count * _0123) >> _24) * _8
    return np.int32(ones), np.int32(positions)
