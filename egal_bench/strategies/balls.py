"""Balls of one radius around samples: who lies within, counted exactly without a matrix of distances.

An orthogonal projection shortens distances. With it, 32 numbers per sample bound the distances of the features from
both sides, and only the pairs that the bounds leave open are computed in full.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from egal_bench.strategies.distances import as_float32, in_chunks

DIMENSIONS = 31  # number of principal axes; one more number holds the length of what the projection leaves out
FIT_ROWS = 2048  # the principal axes are computed from at most this many rows
CHUNK = 256  # members that a thread compares at a time
BLOCK = 1024  # targets with which a thread compares its members at a time
ROUNDING = 1e-5  # bound of rounding errors in float32, relative to the largest squared length


class Balls:
    """The balls of one radius around samples.

    Args:
        features: float [N, C].
        members: int [M], finite rows of the features, in an order that does not depend on file names.
        radius: a sample at exactly this distance lies within.
        threads: CPU threads. The counts do not depend on them.
    """

    def __init__(self, features: np.ndarray, members: np.ndarray, radius: float, threads: int) -> None:
        self._features, self._radius, self._threads = as_float32(features), radius, threads
        projected, left_out = self._projected(members)
        self._order = np.argsort(projected[:, 0], kind="stable")  # neighbours on the first axis are looked at together
        self._members = members[self._order]
        projected, self._left_out = projected[self._order], left_out[self._order]
        self._first_axis = projected[:, 0].astype(np.float64)
        lengths = (projected**2).sum(axis=1) + self._left_out**2
        self._slack = ROUNDING * float(lengths.max(initial=0.0))
        ones, vectors = np.ones_like(lengths), np.column_stack([projected, self._left_out])
        # the product of a row of the one and a row of the other is the squared distance of two vectors
        self._as_member = np.column_stack([vectors, lengths, ones])
        self._as_target = np.column_stack([-2 * vectors, ones, lengths])

    def counts(self, targets: np.ndarray) -> np.ndarray:
        """Return how many of the `targets`, bool [M] over the members, lie within the ball of each, int64 [M]."""
        from egal_bench.strategies import distance_kernels

        target = np.flatnonzero(targets[self._order])
        as_target, first_of_targets = self._as_target[target], self._first_axis[target]
        target_members, target_left_out = self._members[target], self._left_out[target]
        reach = np.sqrt(self._radius**2 + self._slack)
        sorted_counts = np.zeros(len(self._members), np.int64)

        def chunk(part: slice) -> None:
            along = self._first_axis[part]
            start, stop = np.searchsorted(first_of_targets, (along[0] - reach, along[-1] + reach))
            for begin in range(start, stop, BLOCK):
                block = slice(begin, min(begin + BLOCK, stop))
                distance_kernels.count_within(
                    self._features, self._members[part], target_members[block],
                    self._as_member[part] @ as_target[block].T, self._left_out[part], target_left_out[block],
                    self._radius**2, self._slack, sorted_counts[part],
                )  # fmt: skip

        with threadpool_limits(1):  # each thread of ours multiplies alone
            in_chunks(chunk, len(self._members), self._threads, CHUNK)
        counts = np.empty_like(sorted_counts)
        counts[self._order] = sorted_counts
        return counts

    def within(self, member: int) -> np.ndarray:
        """Return which members lie within the ball of one, bool [M]."""
        return self.counts(np.arange(len(self._members)) == member) > 0

    def _projected(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the projected features, float32 [M, 31 or C], and the lengths of what is left out, float32 [M]."""
        sample = self._features[members[:FIT_ROWS]].astype(np.float64)
        mean = sample.mean(axis=0)
        sample -= mean
        axes = np.linalg.eigh(sample.T @ sample)[1][:, : -DIMENSIONS - 1 : -1]  # columns by descending variance
        projected = np.empty((len(members), axes.shape[1]), np.float32)
        left_out = np.empty(len(members), np.float32)
        for start in range(0, len(members), FIT_ROWS):
            part = slice(start, start + FIT_ROWS)
            rows = self._features[members[part]] - mean
            inside = rows @ axes
            projected[part] = inside
            left_out[part] = np.sqrt(np.maximum((rows * rows).sum(axis=1) - (inside * inside).sum(axis=1), 0.0))
        return projected, left_out
