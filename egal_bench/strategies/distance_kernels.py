# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Numba kernels of distances between rows of features. Sums are taken in float64, of differences.

A sum over a row is the same wherever the row lies and whichever thread takes it, and equal rows have the distance 0.
Every kernel of this file is cached on disk; Numba looks at this file alone to tell whether the cache is valid.
"""

import numpy as np
from numba import float32, float64, int64, njit, types, void

ROWS = types.Array(float32, 2, "C", readonly=True)
NUMBERS = types.Array(int64, 1, "C", readonly=True)
FLOATS = types.Array(float32, 1, "C", readonly=True)
PIECE = 256  # features after which a sum may end
FAST = {"reassoc", "contract"}  # a sum may be taken in vector lanes; NaN and infinity keep their meaning


@njit(void(ROWS, ROWS, float64[::1], int64[::1]), nogil=True, cache=True, fastmath=FAST)
def nearest(rows, centres, squared, which):
    """Write the squared distance of each row to its nearest centre, infinity for a NaN row, and that centre's number.

    Four centres at a time share the reading of the row.
    """
    number = len(centres)
    for i in range(len(rows)):
        row, best, centre = rows[i], np.inf, 0
        j = 0
        while j + 4 <= number:
            a, b, c, d = centres[j], centres[j + 1], centres[j + 2], centres[j + 3]
            sum_a = sum_b = sum_c = sum_d = 0.0
            for k in range(len(row)):
                x = np.float64(row[k])
                to_a, to_b, to_c, to_d = x - a[k], x - b[k], x - c[k], x - d[k]
                sum_a += to_a * to_a
                sum_b += to_b * to_b
                sum_c += to_c * to_c
                sum_d += to_d * to_d
            if sum_a < best:
                best, centre = sum_a, j
            if sum_b < best:
                best, centre = sum_b, j + 1
            if sum_c < best:
                best, centre = sum_c, j + 2
            if sum_d < best:
                best, centre = sum_d, j + 3
            j += 4
        while j < number:
            a, sum_a = centres[j], 0.0
            for k in range(len(row)):
                to_a = np.float64(row[k]) - a[k]
                sum_a += to_a * to_a
            if sum_a < best:
                best, centre = sum_a, j
            j += 1
        squared[i], which[i] = best, centre


@njit(
    void(ROWS, NUMBERS, NUMBERS, ROWS, FLOATS, FLOATS, float64, float64, int64[::1]),
    nogil=True, cache=True, fastmath=FAST,
)  # fmt: skip
def count_within(rows, members, targets, bounds, left_out, target_left_out, squared, slack, counts):
    """Add to `counts`, for each of the `members`, the number of `targets` whose squared distance is at most `squared`.

    Only the pairs that the bounds leave open are computed in full, and only until they exceed `squared`.

    Args:
        rows: float32 [N, C], the features.
        members: int64 [M], numbers of rows.
        targets: int64 [T], numbers of rows.
        bounds: float32 [M, T], |Px−Py|² + (|rx|−|ry|)² of a projection P and the lengths of what it leaves out.
        left_out: float32 [M], |r| of the members.
        target_left_out: float32 [T], |r| of the targets.
        squared: the square of the radius.
        slack: how far rounding may move a bound.
        counts: int64 [M].
    """
    limit = np.float32(squared + slack)
    for i in range(len(members)):
        row, bound, count = rows[members[i]], bounds[i], 0
        for j in range(len(targets)):
            if bound[j] > limit:
                continue
            if bound[j] + 4.0 * left_out[i] * target_left_out[j] + slack <= squared:  # |Px−Py|² + (|rx|+|ry|)²
                count += 1
                continue
            other, total, start = rows[targets[j]], 0.0, 0
            while start < len(row) and total <= squared:
                piece, other_piece = row[start : start + PIECE], other[start : start + PIECE]
                for k in range(len(piece)):
                    apart = np.float64(piece[k]) - other_piece[k]
                    total += apart * apart
                start += PIECE
            if total <= squared:
                count += 1
        counts[i] += count
