# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Triton device functions of the overlap: the class map and packed ROI of a sample → counts and soft sums.

The method is that of the CPU backend. No upsampled map is made: on a segment of rows [first, stop) between source rows
i and j, a resized column is v(y) = a + t(y)·(b − a), which is monotone in y. If the column is clamped at the border,
j = i. Whatever decides a count is rounded as the reference rounds it: the kernel is compiled without contraction
(enable_fp_fusion=False), divisions are div_rn, and t comes from the reference's own tables.
"""

import triton
import triton.language as tl

from egal_kernels.shared.triton_resampling import columns_at
from egal_kernels.shared.triton_words import bit_moments, popcount, rows_below


@triton.jit
def normalise(class_map, divisor, P: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """Apply ReLU and min-max to class_map/divisor [P] in place; return whether class_map/divisor is finite.

    There is no min-max if LOW, its ε, is negative.
    """
    least, most, finite = float("inf"), -float("inf"), True
    for p0 in range(0, P, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        v = tl.div_rn(tl.load(class_map + p, mask=p < P, other=0), divisor)
        finite = finite & (tl.min((tl.abs(v) < float("inf")).to(tl.int32), 0) == 1)
        v = tl.where(RELU & (v < 0), 0, v)
        least = tl.minimum(least, tl.min(tl.where(p < P, v, float("inf")), 0))
        most = tl.maximum(most, tl.max(tl.where(p < P, v, -float("inf")), 0))
    scale = (most - least) + LOW
    scale = tl.where(scale == 0, 1, scale)
    tl.debug_barrier()  # every thread has read before any writes
    for p0 in range(0, P, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        v = tl.div_rn(tl.load(class_map + p, mask=p < P, other=0), divisor)
        v = tl.where(RELU & (v < 0), 0, v)
        if LOW >= 0:
            v = tl.div_rn(v - least, scale)
        tl.store(class_map + p, v, mask=p < P)
    tl.debug_barrier()  # every thread has written before any reads
    return finite


@triton.jit
def _segment(low, segments, s, xa, xb, xt, w: tl.constexpr):
    """Return the rows [first, stop) of segment s, and a and b − a of columns with source columns xa, xb and t = xt."""
    i, j = tl.load(segments + 4 * s), tl.load(segments + 4 * s + 1)
    a = tl.load(low + i * w + xa)
    a = (tl.load(low + i * w + xb) - a) * xt + a
    b = tl.load(low + j * w + xa)
    b = (tl.load(low + j * w + xb) - b) * xt + b
    return tl.load(segments + 4 * s + 2), tl.load(segments + 4 * s + 3), a, b - a


@triton.jit
def extremes(low, columns, column_t, row_t, segments, S, W, w: tl.constexpr, BLOCK: tl.constexpr):
    """Return the least and greatest value of the resized map: they are in the first or last row of a segment."""
    least, most = tl.full([BLOCK], float("inf"), tl.float32), tl.full([BLOCK], -float("inf"), tl.float32)
    for x0 in range(0, W, BLOCK):
        xa, xb, xt = columns_at(tl.minimum(x0 + tl.arange(0, BLOCK), W - 1), columns, column_t, w)
        for s in range(S):
            first, stop, a, step = _segment(low, segments, s, xa, xb, xt, w)
            top, bottom = step * tl.load(row_t + first) + a, step * tl.load(row_t + stop - 1) + a
            least = tl.minimum(least, tl.minimum(top, bottom))
            most = tl.maximum(most, tl.maximum(top, bottom))
    return tl.min(least, 0), tl.max(most, 0)


@triton.jit
def _flip(bits):
    """Map the bits of a finite float32 to an int32 with the order of the float, and back: it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def critical(least, most, scale, threshold):
    """Return the least float32 v ≥ `least` with (v − least)/scale ≥ τ, each operation rounded.

    Return infinity if it is above `most`. The quotient is monotone in v, rounding included, so v is searched. A round
    tests 256 candidates at once, one per thread, and leaves 1/256 of the floats: 4 rounds are enough for all 2³².
    """
    below = _flip(least.to(tl.int32, bitcast=True)).to(tl.int64)  # below the threshold, since τ > 0
    above = _flip(most.to(tl.int32, bitcast=True)).to(tl.int64)  # at or above it; otherwise the result is not used
    for _ in tl.static_range(4):
        span = above - below
        candidate = below + (span * (1 + tl.arange(0, 256)) >> 8)
        v = _flip(candidate.to(tl.int32)).to(tl.float32, bitcast=True)
        failing = tl.minimum(tl.sum((tl.div_rn(v - least, scale) < threshold).to(tl.int32), 0), 255)
        above = below + (span * (failing + 1) >> 8)
        below = below + (span * failing >> 8)
    v = _flip(above.to(tl.int32)).to(tl.float32, bitcast=True)
    v = tl.where(tl.div_rn(most - least, scale) < threshold, float("inf"), v)
    return tl.where(threshold <= 0, -float("inf"), v)


@triton.jit
def count(
    low, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, critical, least, unit,
    w: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return |v ≥ critical ∧ ROI|, |v ≥ critical|, |ROI|, Σ c·ROI and Σ c of a sample, where c = (v − least)·unit.

    In every segment, each column searches its first row on the other side of `critical` by STEPS halvings. To guess
    that row by a division and to confirm the guess takes fewer instructions, but then all threads must vote on whether
    a search has to follow.
    """
    none, zero = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    intersection, area, roi_area, inside, total = none, none, none, zero, zero
    for x0 in range(0, W, BLOCK):
        x = x0 + tl.arange(0, BLOCK)
        xa, xb, xt = columns_at(tl.minimum(x, W - 1), columns, column_t, w)
        for s in range(S):
            first, stop, a, step = _segment(low, segments, s, xa, xb, xt, w)
            side = step * tl.load(row_t + stop - 1) + a >= critical  # the side of the last row
            y, last = none + first, none + (stop - 1)
            for _ in tl.static_range(STEPS):  # y ≤ the first row from which on all rows are on that side ≤ last
                middle = (y + last) >> 1
                same = (step * tl.load(row_t + middle) + a >= critical) == side
                last = tl.where(same, middle, last)
                y = tl.where(same, y, middle + 1)
            top, end = tl.where(side, y, first), tl.where(side, stop, y)  # the rows that are ≥ critical
            area += tl.where(x < W, end - top, 0)
            a, step = (a - least) * unit, step * unit  # normalised from here on
            total += tl.where(x < W, a * (stop - first) + step * tl.load(moments + 2 * s + 1), 0)
            t0 = tl.load(moments + 2 * s)
            for k in range(first >> 5, (stop + 31) >> 5):
                word = tl.load(bits + x * words + k, mask=x < W, other=0)
                word = word & rows_below(stop - 32 * k) & ~rows_below(first - 32 * k)
                hit = word & rows_below(end - 32 * k) & ~rows_below(top - 32 * k)
                intersection += popcount(hit.to(tl.uint32, bitcast=True))
                ones, places = bit_moments(word.to(tl.uint32, bitcast=True))
                roi_area += ones
                t = t0 + slope * (32 * k - first)  # t at bit 0 of the word; it grows by slope per bit
                inside += a * ones + step * (t * ones + slope * places)
    return tl.sum(intersection, 0), tl.sum(area, 0), tl.sum(roi_area, 0), tl.sum(inside, 0), tl.sum(total, 0)


@triton.jit
def soft_by_pixel(
    low, bits, columns, column_t, row_t, segments, S, W, words, least, scale,
    w: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return Σ c·ROI and Σ c, pixel by pixel: for a map whose range is so small that rounding changes its sums."""
    zero = tl.zeros([BLOCK], tl.float32)
    inside, total = zero, zero
    for x0 in range(0, W, BLOCK):
        x = x0 + tl.arange(0, BLOCK)
        xa, xb, xt = columns_at(tl.minimum(x, W - 1), columns, column_t, w)
        for s in range(S):
            first, stop, a, step = _segment(low, segments, s, xa, xb, xt, w)
            segment_inside, segment_total = zero, zero  # per segment, so that few roundings add up
            for y in range(first, stop):
                c = tl.div_rn(step * tl.load(row_t + y) + a - least, scale)
                word = tl.load(bits + x * words + (y >> 5), mask=x < W, other=0)
                segment_inside += tl.where((word >> (y & 31)) & 1 == 1, c, 0)
                segment_total += tl.where(x < W, c, 0)
            inside += segment_inside
            total += segment_total
    return tl.sum(inside, 0), tl.sum(total, 0)
