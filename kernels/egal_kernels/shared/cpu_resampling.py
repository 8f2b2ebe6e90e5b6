"""How Numba kernels resize an axis without an upsampled map: intervals between source points, and pieces of a word."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from egal_kernels.shared.resampling import taps
from egal_kernels.shared.roi import WORD


class Axis(NamedTuple):
    """How n source points are resampled to `size` outputs.

    Outputs that lie between the same two source points form an interval [first, stop). Output i of an interval is
    a + t[i]·(b − a), where a is the interval's source point and b the next one, or a again at the end.
    """

    source: np.ndarray  # int64 [intervals], the index of a
    first: np.ndarray  # int64 [intervals]
    stop: np.ndarray  # int64 [intervals]
    t: np.ndarray  # float32 [size]
    mass: np.ndarray  # float64 [n], the sum over all outputs of the weight of each source point


class Pieces(NamedTuple):
    """Runs of at most 32 rows of one interval on which t is affine: t is t0 + p·slope in row p of the run."""

    interval: np.ndarray  # int64
    word: np.ndarray  # int64, the ROI word in which the run begins
    shift: np.ndarray  # uint32, the bit of that word at which the run begins
    mask: np.ndarray  # uint32, one bit for each row of the run
    t0: np.ndarray  # float64
    slope: np.ndarray  # float64


@lru_cache(maxsize=64)
def axis_of(n: int, size: int) -> Axis:
    """Return how `resize` takes n source points to `size` outputs, with the same weights t."""
    sources, t = (x.numpy() for x in taps(n, size, torch.float32, torch.device("cpu")))
    source, first = np.unique(sources, return_index=True)
    mass = np.bincount(sources, 1 - t.astype(np.float64), n)
    mass += np.bincount(np.minimum(sources + 1, n - 1), t, n)
    return Axis(source, first, np.append(first[1:], size), t, mass)


@lru_cache(maxsize=64)
def pieces_of(n: int, size: int) -> Pieces:
    """Cut [0, size) where the source point changes, where the clamp at the border ends, then every 32 rows."""
    axis = axis_of(n, size)
    clamped = max(0, -(-(size - n) // (2 * n)))  # rows y with (2·y + 1)·n < size have t = 0
    cuts = np.unique([*axis.first, min(clamped, size), size])
    first = np.concatenate([np.arange(*cut, WORD) for cut in pairwise(cuts)])
    length = np.diff(first, append=size)
    interval = np.searchsorted(axis.first, first, side="right") - 1
    inside = first >= clamped
    t0 = ((2 * first + 1) * n - size) / (2 * size) - axis.source[interval]
    masks = ((1 << length) - 1).astype(np.uint32)
    return Pieces(interval, first // WORD, (first % WORD).astype(np.uint32), masks,
                  np.where(inside, t0, 0), np.where(inside, n / size, 0))  # fmt: skip
