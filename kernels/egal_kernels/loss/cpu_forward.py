# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""Numba kernels of the CPU backend for the forward pass: features and packed ROIs → loss and its slopes.

Let u = Uy·l·Uxᵀ be the resized map. Then Σ u·r = ⟨l, R⟩, where the ROI r enters only through R = Uyᵀ·r·Ux, h·w numbers
that popcounts of its words give. Σ u is computed in the same way. Both are linear in l, so their slopes are known too,
and no array has the ROI's resolution.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from egal_kernels.shared.caching import kernel
from egal_kernels.shared.cpu_class_maps import FAST, project, widen
from egal_kernels.shared.cpu_words import arrange, moments
from egal_kernels.shared.threads import each_thread, take

jit = njit(nogil=True, error_model="numpy")


class Corners(NamedTuple):
    """The outputs of an axis that `corners` returns: a resized map has its extremes where two of them meet."""

    source: np.ndarray  # int64 [n]
    t: np.ndarray  # float64 [n]


@jit
def _gather(words, left, right, columns, axis, pieces, along_y, inside):
    """Write R = Uyᵀ·r·Ux to `inside` [h, w], and Uyᵀ·r to columns [left, right) of `along_y` [h, W]."""
    h, w = inside.shape
    along_y[:, left:right] = 0
    for q in range(pieces.word.size):
        i = axis.source[pieces.interval[q]]
        a, b = along_y[i, left:right], along_y[min(i + 1, h - 1), left:right]
        word, following = words[pieces.word[q], left:right], words[pieces.word[q] + 1, left:right]
        shift, mask, t0, slope = pieces.shift[q], pieces.mask[q], pieces.t0[q], pieces.slope[q]
        for x in range(word.size):
            ones, positions = moments(word[x], following[x], shift, mask)
            t = t0 * ones + slope * positions
            a[x] += ones - t
            b[x] += t
    inside[:] = 0
    for n in range(columns.source.size):
        j = columns.source[n]
        for i in range(h):
            column, far = 0.0, 0.0
            for x in range(max(left, columns.first[n]), min(right, columns.stop[n])):
                column += along_y[i, x]
                far += along_y[i, x] * columns.t[x]
            inside[i, j] += column - far
            inside[i, min(j + 1, w - 1)] += far


@jit
def _prepare(class_map, relu, low_eps, low):
    """Write ReLU and min-max of a class map to `low` [h, w]; return the divisor of the min-max.

    There is no min-max if low_eps is negative; then the divisor is 1. The divisor of a constant map is 0, that of a
    map that is not finite is NaN.
    """
    least, most = np.inf, -np.inf
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            v = np.float64(class_map[i, j])
            if not np.isfinite(v):
                return np.nan
            low[i, j] = v = 0.0 if relu and v < 0 else v
            least, most = min(least, v), max(most, v)
    if low_eps < 0 or least == most:
        return 1.0 if low_eps < 0 else 0.0
    scale = most - least + low_eps
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            low[i, j] = (low[i, j] - least) / scale
    return scale


@jit
def _extremes(low, rows, columns, ends):
    """Return the least and greatest value of the resized map; write its values where corners meet to `ends`."""
    h, w = low.shape
    least, most = np.inf, -np.inf
    for m in range(rows.t.size):
        a, b, t = rows.source[m], min(rows.source[m] + 1, h - 1), rows.t[m]
        for n in range(columns.t.size):
            i, j, s = columns.source[n], min(columns.source[n] + 1, w - 1), columns.t[n]
            top, bottom = low[a, i] + s * (low[a, j] - low[a, i]), low[b, i] + s * (low[b, j] - low[b, i])
            ends[m, n] = v = top + t * (bottom - top)
            least, most = min(least, v), max(most, v)
    return least, most


@jit
def _spread(amount, value, ends, rows, columns, d):
    """Add the slope `amount` of an extreme of the resized map to d [h, w], in equal parts for the corners that tie."""
    ties = 0
    for m in range(rows.t.size):
        for n in range(columns.t.size):
            ties += ends[m, n] == value
    amount /= ties
    for m in range(rows.t.size):
        for n in range(columns.t.size):
            if ends[m, n] == value:
                a, b, t = rows.source[m], min(rows.source[m] + 1, d.shape[0] - 1), rows.t[m]
                i, j, s = columns.source[n], min(columns.source[n] + 1, d.shape[1] - 1), columns.t[n]
                d[a, i] += amount * (1 - t) * (1 - s)
                d[a, j] += amount * (1 - t) * s
                d[b, i] += amount * t * (1 - s)
                d[b, j] += amount * t * s


@jit
def _through_low(low, scale, d):
    """Turn d [h, w] from the slope in the result `low` of a min-max into the slope in its input.

    Tied cells get equal parts.
    """
    top = low.max()
    bottom_ties, top_ties, total, moment = 0, 0, 0.0, 0.0
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            bottom_ties += low[i, j] == 0
            top_ties += low[i, j] == top
            total += d[i, j]
            moment += d[i, j] * low[i, j]
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            v = d[i, j]
            if low[i, j] == 0:
                v -= (total - moment) / bottom_ties
            if low[i, j] == top:
                v -= moment / top_ties
            d[i, j] = v / scale


@jit
def _soft_dice(low, inside, area, columns, axis, corners, full_eps, ends, d):
    """Return 1 − 2·Σ c·r / (Σ c + Σ r), where c is the map made from `low` [h, w]; write its slope in `low` to d."""
    least, scale, size = 0.0, 1.0, axis.t.size * columns.t.size
    if full_eps >= 0:
        least, most = _extremes(low, *corners, ends)
        if least == most:
            d[:] = 0
            return 1.0
        scale = most - least + full_eps
    overlap, total = 0.0, 0.0
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            overlap += low[i, j] * inside[i, j]
            total += low[i, j] * axis.mass[i] * columns.mass[j]
    overlap, total = (overlap - least * area) / scale, (total - least * size) / scale
    of_overlap, of_total = -2 / (total + area), 2 * overlap / (total + area) ** 2  # the slopes of the loss
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            d[i, j] = (of_overlap * inside[i, j] + of_total * axis.mass[i] * columns.mass[j]) / scale
    if full_eps >= 0:
        of_scale = -(of_overlap * overlap + of_total * total) / scale
        _spread(-(of_overlap * area + of_total * size) / scale - of_scale, least, ends, *corners, d)
        _spread(of_scale, most, ends, *corners, d)
    return 1 - 2 * overlap / (total + area)


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def _correlate(a, channels_last, slope, out):
    """Write Σ_p slope[p]·A_c[p] / P to `out` [C]; `a` is a sample as in `class_maps`."""
    positions = np.float32(slope.size)
    if channels_last:
        out[:] = 0
        for p in range(a.shape[0]):
            share = slope[p] / positions
            for c in range(a.shape[1]):
                out[c] += share * widen(a[p, c])
        return
    for c in range(a.shape[0]):
        row, total = a[c], np.float32(0)
        for p in range(row.size):
            total += slope[p] * widen(row[p])
        out[c] = total / positions


@kernel
def forward(team, features, channels_last, alpha, bits, geometry, recipe, loss, slope, moment):
    """Write the loss, its slope in the class map and, unless `moment` is empty, its slope in the weights of the class.

    Args:
        team: as `threads.team` returns it.
        features: as `flat_samples` returns them, with channels_last.
        alpha: float64 [B, C], the Grad-CAM channel weights.
        bits: uint32 [B, W, words], the packed ROIs.
        geometry: the Axis along x, the Axis and the Pieces along y, and the Corners along y and x.
        recipe: whether there is a ReLU; the ε of the min-max at low and at full resolution, negative if there is none.
        loss: float32 [B].
        slope: float32 [B, h, w].
        moment: float32 [B, C] or [B, 0].
    """
    counter = np.zeros(1, np.int64)
    each_thread(team, _forward, (counter, features, channels_last, alpha, bits, geometry, recipe, loss, slope, moment))


@jit
def _forward(counter, features, channels_last, alpha, bits, geometry, recipe, loss, slope, moment):
    """Do as `forward` does for the samples that this thread takes.

    The features of a sample are read from memory once; the second read finds them in the cache.
    """
    columns, axis, pieces, corners = geometry
    relu, low_eps, full_eps = recipe
    batch, h, w = slope.shape
    width, count = bits.shape[1:]
    words, below = np.empty((count + 1, width), np.uint32), np.empty((count + 1, width), np.uint32)
    along_y, flat = np.empty((h, width)), slope.reshape(batch, h * w)
    low, inside, d = np.empty((h, w)), np.empty((h, w)), np.empty((h, w))
    ends = np.empty((corners[0].t.size, corners[1].t.size))
    b = take(counter)
    while b < batch:
        left, right, area = arrange(bits[b], words, below)
        scale = 0.0
        if area:
            project(features[b], channels_last, alpha[b], flat[b])  # the class map, which its slope replaces below
            scale = _prepare(slope[b], relu, low_eps, low)
        if scale > 0:
            _gather(words, left, right, columns, axis, pieces, along_y, inside)
            loss[b] = _soft_dice(low, inside, area, columns, axis, corners, full_eps, ends, d)
            if low_eps >= 0:
                _through_low(low, scale, d)
            for i in range(h):
                for j in range(w):
                    slope[b, i, j] = 0 if relu and slope[b, i, j] <= 0 else d[i, j]
            if moment.shape[1]:
                _correlate(features[b], channels_last, flat[b], moment[b])
        else:
            loss[b] = (1.0 if area else 0.0) + scale  # scale is 0 here, or NaN if the map is not finite
            slope[b] = moment[b] = scale
        b = take(counter)
