# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Triton device functions of the overlap: class map and packed ROI of a sample → counts and soft sums.

The method is that of the CPU backend: no upsampled map, but segments of rows on which a resized column is
v(y) = a + t(y)·(b − a), monotone in y. A segment is rows [first, stop) between source rows i and j; where a resized
column is clamped at the border, j = i. Whatever decides a count is rounded as the reference rounds it: compiled
without contraction (enable_fp_fusion=False), divisions by div_rn, t from the reference's own tables.
"""

import triton
import triton.language as tl


@triton.jit
def normalise(class_map, divisor, P: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """ReLU and, unless LOW is negative, min-max of class_map/divisor [P] in place; returns whether that is finite."""
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
    tl.debug_barrier()  # all have read before any writes
    for p0 in range(0, P, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        v = tl.div_rn(tl.load(class_map + p, mask=p < P, other=0), divisor)
        v = tl.where(RELU & (v < 0), 0, v)
        if LOW >= 0:
            v = tl.div_rn(v - least, scale)
        tl.store(class_map + p, v, mask=p < P)
    tl.debug_barrier()  # all have written before any reads
    return finite


@triton.jit
def columns_at(x, columns, column_t, w: tl.constexpr):
    """Source column a, the next one, and t of columns x."""
    a = tl.load(columns + x)
    return a, tl.minimum(a + 1, w - 1), tl.load(column_t + x)


@triton.jit
def _segment(low, segments, s, xa, xb, xt, w: tl.constexpr):
    """Rows [first, stop) of segment s, and a and b − a of the columns at source columns xa, xb and t = xt."""
    i, j = tl.load(segments + 4 * s), tl.load(segments + 4 * s + 1)
    a = tl.load(low + i * w + xa)
    a = (tl.load(low + i * w + xb) - a) * xt + a
    b = tl.load(low + j * w + xa)
    b = (tl.load(low + j * w + xb) - b) * xt + b
    return tl.load(segments + 4 * s + 2), tl.load(segments + 4 * s + 3), a, b - a


@triton.jit
def extremes(low, columns, column_t, row_t, segments, S, W, w: tl.constexpr, BLOCK: tl.constexpr):
    """Least and greatest value of the resized map: those of the first and last row of each segment."""
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
    """Between the bits of a finite float32 and an int32 that orders as the float does; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def critical(least, most, scale, threshold):
    """The least float32 v ≥ `least` with (v − least)/scale ≥ τ, each operation rounded; infinity if above `most`.

    The quotient is monotone in v, rounding included. The floats in question are halved 8 times a round, by as many
    threads as there are candidates: 4 rounds for 2³².
    """
    below = _flip(least.to(tl.int32, bitcast=True)).to(tl.int64)  # fails, since τ > 0
    above = _flip(most.to(tl.int32, bitcast=True)).to(tl.int64)  # passes, or the result is not used
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
def rows_below(y):
    """The bits of a word under bit y; none for y ≤ 0, all for y ≥ 32."""
    y = tl.minimum(tl.maximum(y, 0), 32)
    return ((1 << (y & 31)) - 1) | -(y >> 5)


@triton.jit
def _popcount(bits):
    """Set bits of each uint32, int32; LLVM knows the idiom and uses the device's instruction."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def bit_moments(bits):
    """Σ 1 and Σ p over the set bits p of each uint32, int32: sums of neighbouring fields of 1, 2 and 4 bits."""
    odd = (bits >> 1) & 0x55555555
    count = (bits & 0x55555555) + odd
    high = (count >> 2) & 0x33333333
    place = (odd & 0x33333333) + ((odd >> 2) & 0x33333333) + (high << 1)
    count = (count & 0x33333333) + high
    high = (count >> 4) & 0x0F0F0F0F
    place = (place & 0x0F0F0F0F) + ((place >> 4) & 0x0F0F0F0F) + (high << 2)
    count = (count & 0x0F0F0F0F) + high
    ones = (count * 0x01010101) >> 24
    places = ((place * 0x01010101) >> 24) + ((count * 0x00010203) >> 24) * 8
    return ones.to(tl.int32), places.to(tl.int32)


@triton.jit
def count(
    low, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, critical, least, unit,
    w: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """|v ≥ critical ∧ ROI|, |v ≥ critical|, |ROI|, Σ c·ROI and Σ c of a sample, c = (v − least)·unit.

    Each column's first row on the other side of `critical` is searched in every segment, STEPS halvings: some 40
    instructions at 32 rows, against 26 to guess it by a division and confirm it, and a vote on whether to search yet.
    """
    none, zero = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    intersection, area, roi_area, inside, total = none, none, none, zero, zero
    for x0 in range(0, W, BLOCK):
        x = x0 + tl.arange(0, BLOCK)
        xa, xb, xt = columns_at(tl.minimum(x, W - 1), columns, column_t, w)
        for s in range(S):
            first, stop, a, step = _segment(low, segments, s, xa, xb, xt, w)
            side = step * tl.load(row_t + stop - 1) + a >= critical  # of the last row
            y, last = none + first, none + (stop - 1)
            for _ in tl.static_range(STEPS):  # y ≤ the first row from which all are on that side ≤ last
                middle = (y + last) >> 1
                there = (step * tl.load(row_t + middle) + a >= critical) == side
                last = tl.where(there, middle, last)
                y = tl.where(there, y, middle + 1)
            top, end = tl.where(side, y, first), tl.where(side, stop, y)  # rows ≥ critical
            area += tl.where(x < W, end - top, 0)
            a, step = (a - least) * unit, step * unit  # from here on normalised
            total += tl.where(x < W, a * (stop - first) + step * tl.load(moments + 2 * s + 1), 0)
            t0 = tl.load(moments + 2 * s)
            for k in range(first >> 5, (stop + 31) >> 5):
                word = tl.load(bits + x * words + k, mask=x < W, other=0)
                word = word & rows_below(stop - 32 * k) & ~rows_below(first - 32 * k)
                hit = word & rows_below(end - 32 * k) & ~rows_below(top - 32 * k)
                intersection += _popcount(hit.to(tl.uint32, bitcast=True))
                ones, places = bit_moments(word.to(tl.uint32, bitcast=True))
                roi_area += ones
                t = t0 + slope * (32 * k - first)  # at bit 0; slope a bit
                inside += a * ones + step * (t * ones + slope * places)
    return tl.sum(intersection, 0), tl.sum(area, 0), tl.sum(roi_area, 0), tl.sum(inside, 0), tl.sum(total, 0)


@triton.jit
def soft_by_pixel(
    low, bits, columns, column_t, row_t, segments, S, W, words, least, scale,
    w: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ c·ROI and Σ c of a map whose range is so small that the rounding of each pixel counts."""
    zero = tl.zeros([BLOCK], tl.float32)
    inside, total = zero, zero
    for x0 in range(0, W, BLOCK):
        x = x0 + tl.arange(0, BLOCK)
        xa, xb, xt = columns_at(tl.minimum(x, W - 1), columns, column_t, w)
        for s in range(S):
            first, stop, a, step = _segment(low, segments, s, xa, xb, xt, w)
            here, everywhere = zero, zero  # a segment's own, so that few roundings add up
            for y in range(first, stop):
                c = tl.div_rn(step * tl.load(row_t + y) + a - least, scale)
                word = tl.load(bits + x * words + (y >> 5), mask=x < W, other=0)
                here += tl.where((word >> (y & 31)) & 1 == 1, c, 0)
                everywhere += tl.where(x < W, c, 0)
            inside += here
            total += everywhere
    return tl.sum(inside, 0), tl.sum(total, 0)
