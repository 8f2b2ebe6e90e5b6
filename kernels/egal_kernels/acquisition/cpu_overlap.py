# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, disable-error-code="call-arg"
"""Numba functions of the CPU backend for the overlap: a class map and a packed ROI → counts and soft sums.

No upsampled map is made. Between two source rows a resized column is v(y) = a + t(y)·(b − a). It is rounded as the
reference rounds it, so it is monotone in y, and so is every step after it. Within such an interval the column therefore
crosses the threshold at one row at most, and the ROI pixels above that row are counted by a popcount. Work and memory
are O(h·W + W·H/32) per image, not O(H·W).
"""

import numpy as np
from numba import njit

from egal_kernels.shared.cpu_words import arrange, moments, popcount

# Every operand of a word is uint32 as well: Numba widens the result of a uint32 and an int to 64 bits
_1, _5, _1F = map(np.uint32, (1, 5, 0x1F))
_31, _MAX = np.int32(31), np.int32(2**31 - 1)

# Without fastmath, so that every operation is rounded as in the reference: nothing is reordered or fused
jit = njit(nogil=True, error_model="numpy")


@jit
def _prepare(class_map, relu, low_eps, low):
    """Write ReLU and min-max of a class map to `low` [h, w]; return whether the class map is finite.

    There is no min-max if low_eps is negative.
    """
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
    """Resize each source row to W columns, into `rows` [h, W]."""
    last = low.shape[1] - 1
    for i in range(low.shape[0]):
        for n in range(columns.source.size):
            a = low[i, columns.source[n]]
            step = low[i, min(columns.source[n] + 1, last)] - a
            run = slice(columns.first[n], columns.stop[n])  # LLVM vectorises only a loop over a view that begins at 0
            t, row = columns.t[run], rows[i, run]
            for x in range(t.size):
                row[x] = step * t[x] + a


@jit
def _extremes(rows, axis):
    """Return the least and greatest value of the resized map: they are in the first or last row of an interval."""
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
    """Return an int32 with the order of the finite float v: LLVM vectorises the minimum of integers, not of floats."""
    bits = np.float32(v).view(np.int32)
    return np.int32(bits ^ np.int32(np.int32(bits >> _31) & _MAX))


@jit
def _value(order):
    """Return the float32 whose `_order` is `order`."""
    return np.int32(order ^ np.int32(np.int32(order >> _31) & _MAX)).view(np.float32)


@jit
def _critical(least, most, scale, threshold):
    """Return the least float32 v ≥ `least` with (v − least)/scale ≥ τ, each operation rounded.

    Return infinity if it is above `most`.
    """
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
def _edges(a, b, t, offset, scale, critical, edges):
    """Write which of the n rows of an interval are ≥ critical, for each column; return the number of these pixels.

    edges[x] = y ≥ 0 means rows [0, y), and edges[x] = −1 − y means rows [y, n). One division finds the row at which a
    column crosses, up to rounding; `_doubtful` counts the columns where rounding may matter.
    """
    n, last = np.int32(t.size), np.float32(t.size - 1)
    t0, t1 = t[0], t[t.size - 1]
    area = np.int32(0)
    for x in range(a.size):
        step = b[x] - a[x]
        begins, ends = step * t0 + a[x] >= critical, step * t1 + a[x] >= critical
        guess = ((critical - a[x]) / step) * scale + offset
        guess = guess if guess > 1 else np.float32(1)  # a NaN becomes 1 as well
        y = np.int32(guess if guess < last else last)
        y = y if begins != ends else n
        area = np.int32(area + (y if begins else np.int32(n - y)))
        edges[x] = y if begins else np.int32(-1 - y)
    return area


@jit
def _doubtful(a, b, t, critical, edges):
    """Count the columns whose crossing the reference's expression, at that row and one above, does not confirm."""
    count, last = np.int32(0), np.int32(t.size - 1)
    for x in range(a.size):
        y = np.int32(edges[x] ^ (edges[x] >> _31))
        row = np.uint32(min(y, last))
        above = np.uint32(max(np.int32(row) - 1, 0))
        step = b[x] - a[x]
        crossed = (step * t[row] + a[x] >= critical) != (step * t[above] + a[x] >= critical)
        count = np.int32(count + np.int32(y <= last and not crossed))
    return count


@jit
def _search(a, b, t, critical, edges):
    """Do as `_edges` does, by bisection of every column with the reference's expression."""
    area = 0
    for x in range(a.size):
        step = b[x] - a[x]
        begins = step * t[0] + a[x] >= critical
        low, high = 0, t.size  # the first row on the other side of critical is in [low, high]
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
    """Count the ROI pixels in rows [first, stop) that are ≥ critical according to `edges`, over all its columns."""
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
    """Return the index of the word that contains row y, and a mask of the word's rows above y."""
    return np.uint32(y >> _5), np.uint32((_1 << np.uint32(y & _1F)) - _1)


@jit
def _range(cells):
    """Return the least and the greatest of `cells`."""
    least = most = cells[0, 0]
    for i in range(cells.shape[0]):
        for v in cells[i]:
            least, most = min(least, v), max(most, v)
    return least, most


@jit
def _count(low, rows, axis, words, below, critical, edges, left, right):
    """Return |v ≥ critical ∧ ROI| and |v ≥ critical|, added up interval by interval."""
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
            pixels = _edges(rows[i], rows[j], t, offset, scale, critical, edges)
            if _doubtful(rows[i], rows[j], t, critical, edges):
                pixels = _search(rows[i], rows[j], t, critical, edges)
            area += pixels
        intersection += _inside(np.int32(first), np.int32(stop), words, below, edges[left:right])
    return intersection, area


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})  # so that the sum is vectorised
def _moment(rows, axis, pieces, words, left, right):
    """Return Σ v·ROI over columns [left, right). On a piece, v is affine in the bit position: `moments` are enough."""
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
    """Return Σ c·ROI and Σ c, pixel by pixel: for a map whose range is so small that rounding changes its sums."""
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
    """Allocate the arrays that `overlap` works in, a few kB per thread."""
    low, rows = np.empty((h, w), np.float32), np.empty((h, columns), np.float32)
    roi, below = np.empty((words + 1, columns), np.uint32), np.empty((words + 1, columns), np.uint32)
    return low, rows, roi, below, np.empty(columns, np.int32)


@jit
def overlap(class_map, bits, columns, axis, pieces, recipe, threshold, scratch):
    """Return the intersection, the areas of CAM and ROI, Σ c·ROI and Σ c of a sample.

    The area of the ROI is −1 if the class map is not finite.

    Args:
        class_map: float32 [h, w].
        bits: uint32 [W, words], the packed ROI.
        columns: the Axis along x.
        axis: the Axis along y.
        pieces: the Pieces along y.
        recipe: whether there is a ReLU; the ε of the min-max at low and at full resolution, negative if there is none.
        threshold: τ, float32.
        scratch: the arrays of `scratch`.
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
