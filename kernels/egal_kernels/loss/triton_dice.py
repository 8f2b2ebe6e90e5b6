# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, no-check-untyped-defs
"""Triton device functions of the loss: class map and packed ROI of a sample → soft Dice and its slope in the class map.

As in the CPU backend, the ROI enters only through R = Uyᵀ·r·Ux [h, w], and extremes are where corners of intervals
meet. A map is one tile [HP, WP] of the program. It is in float64, since many of its few numbers cancel.
"""

import triton
import triton.language as tl

from egal_kernels.shared.triton_resampling import columns_at
from egal_kernels.shared.triton_words import bit_moments, rows_below


@triton.jit
def _taps(i, j, t, cells):
    """Return the weights of source `cells`, the last axis, in outputs a + t·(b − a) between source cells i and j."""
    return tl.where(cells == i, 1 - t, 0) + tl.where(cells == j, t, 0)


@triton.jit
def gather(
    bits, columns, column_t, segments, moments, S, W, words, slope, near, far,
    w: tl.constexpr, WP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the number of pixels in the ROI; write the weights of its pixels, added up by segment and source column.

    near and far, [S, WP], are the weights for the source rows i and j of each segment.
    """
    j = tl.arange(0, WP)[None, :]
    area = tl.zeros([BLOCK], tl.int32)
    for s in range(S):
        first, stop = tl.load(segments + 4 * s + 2), tl.load(segments + 4 * s + 3)
        t0 = tl.load(moments + 2 * s)
        a, b = tl.zeros([WP], tl.float32), tl.zeros([WP], tl.float32)
        for x0 in range(0, W, BLOCK):
            x = x0 + tl.arange(0, BLOCK)
            xa, xb, xt = columns_at(tl.minimum(x, W - 1), columns, column_t, w)
            ones, t = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
            for k in range(first >> 5, (stop + 31) >> 5):
                word = tl.load(bits + x * words + k, mask=x < W, other=0)
                word = word & rows_below(stop - 32 * k) & ~rows_below(first - 32 * k)
                count, places = bit_moments(word.to(tl.uint32, bitcast=True))
                ones += count
                t += (t0 + slope * (32 * k - first)) * count + slope * places  # Σ t0 + slope·(bit − first)
            share = _taps(xa[:, None], xb[:, None], xt[:, None], j)
            a += tl.sum((ones - t)[:, None] * share, 0)
            b += tl.sum(t[:, None] * share, 0)
            area += ones
        tl.store(near + s * WP + tl.arange(0, WP), a)
        tl.store(far + s * WP + tl.arange(0, WP), b)
    return tl.sum(area, 0)


@triton.jit
def assemble(near, far, segments, S, i, WP: tl.constexpr):
    """Return R, a tile of float64, from the near and far weights that `gather` wrote."""
    j = tl.arange(0, WP)
    inside = tl.zeros([i.shape[0], WP], tl.float64)
    for s in range(S):
        a, b = tl.load(near + s * WP + j)[None, :], tl.load(far + s * WP + j)[None, :]
        inside += tl.where(i == tl.load(segments + 4 * s), a, 0) + tl.where(i == tl.load(segments + 4 * s + 1), b, 0)
    return inside


@triton.jit
def range_of(v, inside):
    """Return the least and the greatest element of a tile, of those inside the map."""
    least = tl.min(tl.min(tl.where(inside, v, float("inf")), 1), 0)
    return least, tl.max(tl.max(tl.where(inside, v, -float("inf")), 1), 0)


@triton.jit
def total(v):
    """Return the sum of a tile."""
    return tl.sum(tl.sum(v, 1), 0)


@triton.jit
def _corners(low, rows, row_ts, columns, column_ts, m, n, N, w: tl.constexpr):
    """Return the resized map where corner m of the rows meets corners n of the columns, NaN for n ≥ N.

    Return also the source rows and t of corner m, and the source columns and t of corners n.
    """
    i, j, t = tl.load(rows + 2 * m), tl.load(rows + 2 * m + 1), tl.load(row_ts + m)
    k = tl.minimum(n, N - 1)
    ci, cj, ct = tl.load(columns + 2 * k), tl.load(columns + 2 * k + 1), tl.load(column_ts + k)
    a = tl.load(low + i * w + ci)
    a += ct * (tl.load(low + i * w + cj) - a)
    b = tl.load(low + j * w + ci)
    b += ct * (tl.load(low + j * w + cj) - b)
    return tl.where(n < N, a + t * (b - a), float("nan")), i, j, t, ci, cj, ct.to(tl.float32)


@triton.jit
def extremes(low, rows, row_ts, columns, column_ts, M, N, w: tl.constexpr, BLOCK: tl.constexpr):
    """Return the least and greatest value of the resized map, which are where two corners meet.

    rows, row_ts, columns and column_ts are the tables of `Corners`: the sources and t of M rows and N columns.
    """
    least, most = tl.full([BLOCK], float("inf"), tl.float64), tl.full([BLOCK], -float("inf"), tl.float64)
    for m in range(M):
        for n0 in range(0, N, BLOCK):
            n = n0 + tl.arange(0, BLOCK)
            v, _, _, _, _, _, _ = _corners(low, rows, row_ts, columns, column_ts, m, n, N, w)
            least, most = tl.where(v < least, v, least), tl.where(v > most, v, most)
    return tl.min(least, 0), tl.max(most, 0)


@triton.jit
def spread(
    low, rows, row_ts, columns, column_ts, M, N, least, most, of_least, of_most, i,
    w: tl.constexpr, WP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the slopes of both extremes as a tile, each in equal parts for the corners that tie."""
    j = tl.arange(0, WP)[None, :]
    bottom, top = tl.zeros([i.shape[0], WP], tl.float64), tl.zeros([i.shape[0], WP], tl.float64)
    bottoms, tops = 0, 0
    for m in range(M):
        for n0 in range(0, N, BLOCK):
            n = n0 + tl.arange(0, BLOCK)
            v, a, b, t, ci, cj, ct = _corners(low, rows, row_ts, columns, column_ts, m, n, N, w)
            share = _taps(ci[:, None], cj[:, None], ct[:, None], j)
            count = tl.sum((v == least).to(tl.int32), 0)
            if count > 0:
                bottom += _taps(a, b, t, i) * tl.sum(tl.where((v == least)[:, None], share, 0), 0)[None, :]
                bottoms += count
            count = tl.sum((v == most).to(tl.int32), 0)
            if count > 0:
                top += _taps(a, b, t, i) * tl.sum(tl.where((v == most)[:, None], share, 0), 0)[None, :]
                tops += count
    return bottom * (of_least / bottoms) + top * (of_most / tops)


@triton.jit
def through_low(low, d, inside, unit):
    """Return the slope in the input of a min-max, from the slope d in its result `low`; `unit` is its 1/divisor.

    Tied cells get equal parts.
    """
    _, most = range_of(low, inside)
    bottom, top = inside & (low == 0), inside & (low == most)
    moment = total(d * low)
    d -= tl.where(bottom, (total(d) - moment) / total(bottom.to(tl.float64)), 0)
    return (d - tl.where(top, moment / total(top.to(tl.float64)), 0)) * unit
