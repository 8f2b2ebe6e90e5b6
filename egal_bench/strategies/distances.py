"""Distances between rows of features, in chunks and threads, without a copy of the features.

The results do not depend on the number of threads, nor on where a row lies; equal rows have the distance 0.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

CHUNK = 1024  # rows that a thread takes at a time


def nearest(rows: np.ndarray, centres: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared distance of each row to its nearest centre, float64 [N], and that centre's number, int64 [N].

    The first of equally near centres counts. The distance is infinite for a row that is not finite, and where there is
    no centre.

    Args:
        rows: float [N, C]; computed with as float32.
        centres: float [M, C], likewise.
        threads: CPU threads.
    """
    from egal_bench.strategies import distance_kernels

    centres = as_float32(centres)
    squared, which = np.empty(len(rows)), np.empty(len(rows), np.int64)

    def chunk(part: slice) -> None:
        distance_kernels.nearest(as_float32(rows[part]), centres, squared[part], which[part])

    in_chunks(chunk, len(rows), threads)
    squared[np.isnan(squared)] = np.inf
    return squared, which


def squared_distances(rows: np.ndarray, centre: np.ndarray, threads: int) -> np.ndarray:
    """Return the squared distance of each row to one centre, float64 [N]; infinite for a row that is not finite."""
    return nearest(rows, centre[None], threads)[0]


def squared_norms(rows: np.ndarray, threads: int) -> np.ndarray:
    """Return the squared length of each row, float64 [N]; infinite for a row that is not finite."""
    return squared_distances(rows, np.zeros(rows.shape[1], np.float32), threads)


def in_chunks(work: Callable[[slice], None], number: int, threads: int, chunk: int = CHUNK) -> None:
    """Call `work` with slices of length `chunk` that cover 0 to `number`, in up to `threads` threads."""
    parts = [slice(start, start + chunk) for start in range(0, number, chunk)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as executor:
        for _ in executor.map(work, parts):
            pass


def as_float32(rows: np.ndarray) -> np.ndarray:
    """Return `rows` as a plain contiguous float32 array, without a copy where it is one; memory maps stay mapped."""
    return np.ascontiguousarray(np.asarray(rows), np.float32)
