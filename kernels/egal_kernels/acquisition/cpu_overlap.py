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

# uint32 with uint32: Numba widens what meets an int to 64 bits
_1, _2, _4, _5, _8, _24 = map(np.uint32, (1, 2, 4, 5, 8, 24))
_31, _MAX = np.int32(31), np.int32(2**31 - 1)
_1F, _55, _33, _0F, _01, _0123 = map(np.uint32, (0x1F, 0x55555555, 0x33333333, 0x0F0F0F0F, 0x01010101, 0x00010203))


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
    """Runs of at most 32 rows of one interval on which t is affine: in row p of the run it is t0 + p·slope."""

    interval: np.ndarray  # int64
    word: np.ndarray  # int64, that of the ROI in which the run begins
    shift: np.ndarray  # uint32, the bit at which it begins
    mask: np.ndarray  # uint32, a bit for each row of the run
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


@jit
def _first(words):
    """Index of the first word that is not 0; the number of words if there is none."""
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
    """ROI words by row, into `words` [words + 1, W], and ROI pixels of each column above each word, into `below`.

    Only of the columns [left, right) that hold the ROI; returns their range and the ROI's pixels. The last row of words
    is there to be read and masked out.
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
def _edges(a, b, t, offset, scale, critical, edges):
    """Which rows of an interval, n of them, are ≥ critical, into `edges`: y ≥ 0 says rows [0, y), −1 − y rows [y, n).

    One division finds where a column crosses, but for rounding. Returns the number of pixels that are ≥ critical.
    """
    n, last = np.int32(t.size), np.float32(t.size - 1)
    t0, t1 = t[0], t[t.size - 1]
    area = np.int32(0)
    for x in range(a.size):
        step = b[x] - a[x]
        begins, ends = step * t0 + a[x] >= critical, step * t1 + a[x] >= critical
        guess = ((critical - a[x]) / step) * scale + offset
        guess = guess if guess > 1 else np.float32(1)  # of a NaN too
        y = np.int32(guess if guess < last else last)
        y = y if begins != ends else n
        area = np.int32(area + (y if begins else np.int32(n - y)))
        edges[x] = y if begins else np.int32(-1 - y)
    return area


@jit
def _doubtful(a, b, t, critical, edges):
    """How many crossings the reference's expression, there and one row above, does not confirm."""
    count, last = np.int32(0), np.int32(t.size - 1)
    for x in range(a.size):
        y = np.int32(edges[x] ^ (edges[x] >> _31))
        here = np.uint32(min(y, last))
        above = np.uint32(max(np.int32(here) - 1, 0))
        step = b[x] - a[x]
        crossed = (step * t[here] + a[x] >= critical) != (step * t[above] + a[x] >= critical)
        count = np.int32(count + np.int32(y <= last and not crossed))
    return count


@jit
def _search(a, b, t, critical, edges):
    """`_edges` by bisection of every column."""
    area = 0
    for x in range(a.size):
        step = b[x] - a[x]
        begins = step * t[0] + a[x] >= critical
        low, high = 0, t.size  # the first row on the other side is in [low, high]
        while low < high:
            middle = (low + high) >> 1
            if (step * t[middle] + a[x] >= critical) == begins:
                low = middle + 1
            else:
                high = middle
        edges[x] = low if begins else -1 - low
        area += low if begins else t.size - low
    return area


@jit
def _inside(first, stop, words, below, edges):
    """ROI pixels of rows [first, stop) that are ≥ critical, by `edges`; of columns as many as these have."""
    (k0, mask0), (k1, mask1) = _place(np.uint32(first)), _place(np.uint32(stop))
    word0, word1, below0, below1 = words[k0], words[k1], below[k0], below[k1]
    total = np.int32(0)
    for x in range(edges.size):
        k, mask = _place(np.uint32(first + np.int32(edges[x] ^ (edges[x] >> _31))))
        start = below0[x] + popcount(np.uint32(word0[x] & mask0))
        middle = below[k, x] + popcount(np.uint32(words[k, x] & mask))
        end = below1[x] + popcount(np.uint32(word1[x] & mask1))
        total = np.int32(total + np.int32(middle - start if edges[x] >= 0 else end - middle))
    return total


@jit
def _place(y):
    """Row y as the word that holds it, and a mask of the word's rows above it."""
    return np.uint32(y >> _5), np.uint32((_1 << np.uint32(y & _1F)) - _1)


@jit
def _range(cells):
    """Least and greatest of some rows of cells."""
    least = most = cells[0, 0]
    for i in range(cells.shape[0]):
        for v in cells[i]:
            least, most = min(least, v), max(most, v)
    return least, most


@jit
def _count(low, rows, axis, words, below, critical, edges, left, right):
    """|v ≥ critical ∧ ROI| and |v ≥ critical|, interval by interval."""
    scale = np.float32(axis.t.size / low.shape[0])
    intersection, area = np.int64(0), np.int64(0)
    words, below = words[:, left:right], below[:, left:right]
    for n in range(axis.source.size):
        i, first, stop = axis.source[n], axis.first[n], axis.stop[n]
        j = min(i + 1, low.shape[0] - 1)
        least, most = _range(low[i : j + 1])
        if most < critical:
            continue
        if least >= critical:
            edges[:] = stop - first
            area += (stop - first) * edges.size
        else:
            t = axis.t[first:stop]
            offset = np.float32((i + 0.5) * scale + 0.5 - first)
            some = _edges(rows[i], rows[j], t, offset, scale, critical, edges)
            if _doubtful(rows[i], rows[j], t, critical, edges):
                some = _search(rows[i], rows[j], t, critical, edges)
            area += some
        intersection += _inside(np.int32(first), np.int32(stop), words, below, edges[left:right])
    return intersection, area


@jit
def moments(word, following, shift, mask):
    """Σ 1 and Σ p over the set bits p of a run, `mask` of them from bit `shift` of a word on, into the following one.

    Summed in fields of 2, 4 and 8 bits, as a popcount is.
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


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})  # lets the sum be vectorised
def _moment(rows, axis, pieces, words, left, right):
    """Σ v·ROI over columns [left, right): on a piece v is affine in the bit position, so `moments` suffice."""
    total = 0.0
    for q in range(pieces.word.size):
        a = rows[axis.source[pieces.interval[q]], left:right]
        b = rows[min(axis.source[pieces.interval[q]] + 1, rows.shape[0] - 1), left:right]
        word, following = words[pieces.word[q], left:right], words[pieces.word[q] + 1, left:right]
        shift, mask, t0, slope = pieces.shift[q], pieces.mask[q], pieces.t0[q], pieces.slope[q]
        for x in range(a.size):
            ones, positions = moments(word[x], following[x], shift, mask)
            total += np.float64(a[x]) * ones + np.float64(b[x] - a[x]) * (t0 * ones + slope * positions)
    return total


@jit
def _soft_by_pixel(rows, axis, words, left, right, least, scale):
    """Σ c·ROI and Σ c of a map whose range is so small that the rounding of each pixel counts."""
    inside, total = 0.0, 0.0
    for n in range(axis.source.size):
        i = axis.source[n]
        j = min(i + 1, rows.shape[0] - 1)
        for y in range(axis.first[n], axis.stop[n]):
            for x in range(rows.shape[1]):
                c = np.float64((((rows[j, x] - rows[i, x]) * axis.t[y] + rows[i, x]) - least) / scale)
                total += c
                if left <= x < right and words[y >> 5, x] >> np.uint32(y & 31) & _1:
                    inside += c
    return inside, total


@jit
def scratch(h, w, columns, words):
    """What `overlap` works in, a few kB."""
    low, rows = np.empty((h, w), np.float32), np.empty((h, columns), np.float32)
    roi, below = np.empty((words + 1, columns), np.uint32), np.empty((words + 1, columns), np.uint32)
    return low, rows, roi, below, np.empty(columns, np.int32)


@jit
def overlap(class_map, bits, columns, axis, pieces, recipe, threshold, scratch):
    """Intersection, CAM's area, ROI's area, Σ c·ROI and Σ c of a class map [h, w] and an ROI [W, words].

    recipe: ReLU or not, and the ε of the min-max at low and at full resolution, negative where there is none. A map
    that is not finite has −1 for its ROI's area.
    """
    low, rows, words, below, edges = scratch
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
    left, right, area = arrange(bits, words, below)
    intersection, cam_area = _count(low, rows, axis, words, below, critical, edges, left, right)
    if small:
        inside, total = _soft_by_pixel(rows, axis, words, left, right, least, scale)
        return intersection, cam_area, area, inside, total
    total = 0.0
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            total += axis.mass[i] * columns.mass[j] * np.float64(low[i, j])
    inside = (_moment(rows, axis, pieces, words, left, right) - np.float64(least) * area) / scale
    return intersection, cam_area, area, inside, (total - np.float64(least) * axis.t.size * bits.shape[0]) / scale
