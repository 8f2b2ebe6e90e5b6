# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="call-arg"
"""Numba functions of the CPU backend, class maps and packed ROIs → counts and soft sums, without an upsampled map.

Between two source rows a resized column is v(y) = a + t(y)·(b − a), rounded as the reference rounds it and therefore
monotone in y, and so is every step after it. Where the column passes the threshold is one row in such an interval;
what lies above it in the ROI is a popcount. Work and memory are O(h·W + W·H/32) an image, not O(H·W).
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

BLOCK = 16  # intervals whose two end rows make one uint32 of states

_1, _2, _4, _8, _24 = map(np.uint32, (1, 2, 4, 8, 24))  # uint32 with uint32: Numba widens what meets an int to 64 bits
_31, _MAX = np.int32(31), np.int32(2**31 - 1)
_55, _33, _0F, _01, _0123 = map(np.uint32, (0x55555555, 0x33333333, 0x0F0F0F0F, 0x01010101, 0x00010203))


class Axis(NamedTuple):
    """Resampling n source points to `size`, by intervals [first, stop) of outputs that share their source point a.

    Output i is source a + t[i]·(b − a), b being the next source point, or a again at the end.
    """

    source: np.ndarray  # int64 [intervals], a
    first: np.ndarray  # int64 [intervals]
    stop: np.ndarray  # int64 [intervals]
    t: np.ndarray  # float32 [size]
    mass: np.ndarray  # float64 [n], Σ over outputs of the weight of each source point


class Pieces(NamedTuple):
    """Runs of rows in one interval and one word of the ROI on which t is affine: bit p of the word has t0 + p·slope."""

    interval: np.ndarray  # int64
    word: np.ndarray  # int64
    mask: np.ndarray  # uint32, the bits of the run
    t0: np.ndarray  # float64
    slope: np.ndarray  # float64


@intrinsic
def popcount(typingctx, x):
    return types.uint32(types.uint32), lambda context, builder, signature, args: builder.ctpop(args[0])


# Rounded as the reference is: nothing reordered, nothing fused
jit = njit(nogil=True, error_model="numpy")


@jit
def _prepare(class_map, relu, low_eps, low):
    """ReLU and, unless low_eps is negative, min-max of a class map, into `low` [h, w]; False if it is not finite."""
    least, most = np.float32(np.inf), np.float32(-np.inf)
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            v = class_map[i, j]
            if not np.isfinite(v):
                return False
            if relu and v < 0:
                v = np.float32(0)
            low[i, j] = v
            least, most = min(least, v), max(most, v)
    if low_eps >= 0:
        scale = (most - least) + low_eps
        scale = scale if scale > 0 else np.float32(1)
        for i in range(low.shape[0]):
            for j in range(low.shape[1]):
                low[i, j] = (low[i, j] - least) / scale
    return True


@jit
def _widen_rows(low, columns, rows):
    """Each source row resized to W columns, into `rows` [h, W]."""
    last = low.shape[1] - 1
    for i in range(low.shape[0]):
        for n in range(columns.source.size):
            a = low[i, columns.source[n]]
            step = low[i, min(columns.source[n] + 1, last)] - a
            run = slice(columns.first[n], columns.stop[n])  # a view from 0 is what LLVM vectorises
            t, row = columns.t[run], rows[i, run]
            for x in range(t.size):
                row[x] = step * t[x] + a


@jit
def _extremes(rows, axis):
    """Least and greatest value of the resized map: those of the first and last row of each interval."""
    least, most = np.int32(2**31 - 1), np.int32(-(2**31))
    for n in range(axis.source.size):
        a, b = rows[axis.source[n]], rows[min(axis.source[n] + 1, rows.shape[0] - 1)]
        t0, t1 = axis.t[axis.first[n]], axis.t[axis.stop[n] - 1]
        for x in range(a.size):
            step = b[x] - a[x]
            u, v = _order(step * t0 + a[x]), _order(step * t1 + a[x])
            least, most = np.int32(min(least, min(u, v))), np.int32(max(most, max(u, v)))
    return _value(least), _value(most)


@jit
def _order(v):
    """An int32 that orders finite floats as they are: unlike floats, a minimum of integers is vectorised."""
    bits = np.float32(v).view(np.int32)
    return np.int32(bits ^ np.int32(np.int32(bits >> _31) & _MAX))


@jit
def _value(order):
    return np.int32(order ^ np.int32(np.int32(order >> _31) & _MAX)).view(np.float32)


@jit
def _critical(least, most, scale, threshold):
    """The least float32 v ≥ `least` with (v − least)/scale ≥ τ, each operation rounded; infinity if above `most`."""
    if threshold <= 0:
        return np.float32(-np.inf)
    if (most - least) / scale < threshold:
        return np.float32(np.inf)
    below, above = np.int64(_order(least)), np.int64(_order(most))
    while above - below > 1:
        middle = (below + above) >> 1
        if (_value(np.int32(middle)) - least) / scale < threshold:
            below = middle
        else:
            above = middle
    return _value(np.int32(above))


@njit(nogil=True, error_model="numpy", inline="never")  # kept out of the loop that seldom needs it
def _search(a, step, t, first, last, critical, side):
    """The first row in [first, last] on `side` of `critical`, `last` being on it."""
    while first < last:
        middle = (first + last) >> 1
        if (step * t[middle] + a >= critical) == side:
            last = middle
        else:
            first = middle + 1
    return first


@jit
def _crossing(a, step, t, first, last, guess, critical, side):
    """The first row in [first, last] where a + t·step is on `side` of `critical`, as it is at `last`.

    One division gives it but for rounding; whether it is the one is decided as the reference would.
    """
    y = min(max(np.int64(guess), first), last) if abs(guess) < np.float32(2.0**31) else last
    here = (step * t[y] + a >= critical) == side
    above = (step * t[max(y - 1, 0)] + a >= critical) == side and y > first
    return y if here and not above else _search(a, step, t, first, last, critical, side)


@jit
def _ranks(bits, words, below):
    """ROI words by row, into `words` [words, W], and ROI pixels of each column above each, into `below` [words + 1, W].

    Returns the ROI's pixels and the range of columns that has them.
    """
    width, count = bits.shape
    below[0] = 0
    for k in range(count):
        for x in range(width):
            words[k, x] = bits[x, k]
        for x in range(width):
            below[k + 1, x] = below[k, x] + popcount(words[k, x])
    area, left, right = np.int64(0), width, 0
    for x in range(width):
        area += below[count, x]
        if below[count, x]:
            left, right = min(left, x), x + 1
    return area, left, right


@jit
def _count(rows, axis, words, below, critical, state, ends):
    """|v ≥ critical ∧ ROI| and |v ≥ critical|, from the rows at which a column changes side and the ROI above them."""
    size, width = axis.t.size, rows.shape[1]
    last_row, scale = rows.shape[0] - 1, np.float32(size / rows.shape[0])
    intersection, area = np.int64(0), np.int64(0)
    state[:] = 0  # side of the last row seen: 1 is ≥
    for start in range(0, axis.source.size, BLOCK):
        stop = min(start + BLOCK, axis.source.size)
        ends[:] = 0
        for n in range(start, stop):
            a, b = axis.source[n], min(axis.source[n] + 1, last_row)
            t0, t1 = axis.t[axis.first[n]], axis.t[axis.stop[n] - 1]
            bit0, bit1, none = np.uint32(1 << 2 * (n - start)), np.uint32(2 << 2 * (n - start)), np.uint32(0)
            for x in range(width):
                step = rows[b, x] - rows[a, x]
                ends[x] |= bit0 if step * t0 + rows[a, x] >= critical else none
                ends[x] |= bit1 if step * t1 + rows[a, x] >= critical else none
        seen = np.int64(2 * (stop - start))
        for x in range(width):
            sides = np.int64(ends[x])
            changes = (sides ^ (sides << 1 | np.int64(state[x]))) & ((1 << seen) - 1)
            while changes:
                k = np.int64(popcount(np.uint32((changes & -changes) - 1)))
                changes &= changes - 1
                n = start + (k >> 1)
                side = (sides >> k) & 1
                y = axis.first[n]
                if k & 1:
                    i = axis.source[n]
                    a = rows[i, x]
                    step = rows[min(i + 1, last_row), x] - a
                    guess = ((critical - a) / step + np.float32(i) + np.float32(0.5)) * scale + np.float32(0.5)
                    y = _crossing(a, step, axis.t, y + 1, axis.stop[n] - 1, guess, critical, side == 1)
                sign = 1 - 2 * side
                area += sign * y
                above = np.uint32(words[y >> 5, x] & np.uint32((1 << (y & 31)) - 1))
                intersection += sign * np.int64(below[y >> 5, x] + popcount(above))
            state[x] = sides >> (seen - 1)
    for x in range(width):
        if state[x]:
            area += size
            intersection += np.int64(below[words.shape[0], x])
    return intersection, area


@jit
def moments(bits):
    """Σ 1 and Σ p over the set bits p of a word, summed in fields of 2, 4 and 8 bits, as a popcount is."""
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


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})  # lets the sum be vectorised
def _moment(rows, axis, pieces, words, left, right):
    """Σ v·ROI over columns [left, right): on a piece v is affine in the bit position, so `moments` suffice."""
    total = 0.0
    for q in range(pieces.word.size):
        a = rows[axis.source[pieces.interval[q]], left:right]
        b = rows[min(axis.source[pieces.interval[q]] + 1, rows.shape[0] - 1), left:right]
        word, mask, t0, slope = words[pieces.word[q], left:right], pieces.mask[q], pieces.t0[q], pieces.slope[q]
        for x in range(a.size):
            ones, positions = moments(np.uint32(word[x] & mask))
            total += np.float64(a[x]) * ones + np.float64(b[x] - a[x]) * (t0 * ones + slope * positions)
    return total


@jit
def _soft_by_pixel(rows, axis, words, least, scale):
    """Σ c·ROI and Σ c of a map whose range is so small that the rounding of each pixel counts."""
    inside, total = 0.0, 0.0
    for n in range(axis.source.size):
        i = axis.source[n]
        j = min(i + 1, rows.shape[0] - 1)
        for y in range(axis.first[n], axis.stop[n]):
            for x in range(rows.shape[1]):
                c = np.float64((((rows[j, x] - rows[i, x]) * axis.t[y] + rows[i, x]) - least) / scale)
                total += c
                if words[y >> 5, x] >> np.uint32(y & 31) & _1:
                    inside += c
    return inside, total


@jit
def scratch(h, w, columns, words):
    """What `overlap` works in, a few kB."""
    low, rows = np.empty((h, w), np.float32), np.empty((h, columns), np.float32)
    roi, below = np.empty((words, columns), np.uint32), np.empty((words + 1, columns), np.uint32)
    return low, rows, roi, below, np.empty(columns, np.uint32), np.empty(columns, np.uint32)


@jit
def overlap(class_map, bits, columns, axis, pieces, recipe, threshold, scratch):
    """Intersection, CAM's area, ROI's area, Σ c·ROI and Σ c of a class map [h, w] and an ROI [W, words].

    recipe: ReLU or not, and the ε of the min-max at low and at full resolution, negative where there is none. A map
    that is not finite has −1 for its ROI's area.
    """
    low, rows, words, below, state, ends = scratch
    relu, low_eps, full_eps = recipe
    if not _prepare(class_map, relu, low_eps, low):
        return np.int64(-1), np.int64(-1), np.int64(-1), np.nan, np.nan
    _widen_rows(low, columns, rows)
    least, scale, critical = np.float32(0), np.float32(1), threshold
    small = False
    if full_eps >= 0:
        least, most = _extremes(rows, axis)
        scale = (most - least) + full_eps
        scale = scale if scale > 0 else np.float32(1)
        small = most - least < np.float32(1 / 64) * max(abs(least), abs(most))
        critical = _critical(least, most, scale, threshold)
    area, left, right = _ranks(bits, words, below)
    intersection, cam_area = _count(rows, axis, words, below, critical, state, ends)
    if small:
        inside, total = _soft_by_pixel(rows, axis, words, least, scale)
        return intersection, cam_area, area, inside, total
    total = 0.0
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            total += axis.mass[i] * columns.mass[j] * np.float64(low[i, j])
    inside = (_moment(rows, axis, pieces, words, left, right) - np.float64(least) * area) / scale
    return intersection, cam_area, area, inside, (total - np.float64(least) * axis.t.size * bits.shape[0]) / scale
