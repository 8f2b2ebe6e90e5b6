"""The CPU backend: Numba kernels over ranges of the batch, one range a thread.

The threads are Python's, torch.get_num_threads() of them, since the kernels hold no GIL: Numba's own threading layers
abort when a process forks (OpenMP) or calls from two threads (workqueue), and their thread count is global state.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.acquisition import cpu_head, cpu_overlap
from egal_kernels.acquisition.conventions import RECIPES, taps
from egal_kernels.acquisition.cpu_overlap import Axis, Pieces
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.roi import WORD, PackedRoi

# float32 weights of a head that stays in a core's cache beside a sample. A larger one is a GEMM over the whole batch,
# at the price of reading the features a second time.
CACHED_WEIGHTS = 1 << 16

# NumPy has no bfloat16 and Numba computes with no float16: the kernels take their bits
BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}


Part = Callable[[int, int], object]  # does samples [start, stop)


def acquire(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    roi: PackedRoi,
    *,
    threshold: float,
    convention: str,
    classes: Tensor | None,
    alpha: Tensor | None,
    logits: Tensor | None,
) -> Acquisition:
    """`egal_kernels.acquire` for checked arguments on the CPU; features f32, bf16 or f16."""
    batch, height, width = roi.shape
    h, w = features.shape[2:]
    maps = np.empty((batch, h, w), np.float32)
    if weight is None:
        z, head = _any_head(features, alpha, logits, maps)
    else:
        z, head = _linear_head(features, weight, bias, classes, maps)
    recipe = RECIPES[convention]
    low_eps, full_eps = (np.float32(-1 if eps is None else eps) for eps in (recipe.low, recipe.full))
    axes = _axis(w, width), _axis(h, height), _pieces(h, height)
    bits = _array(roi.bits, torch.int32).view(np.uint32)
    finite, predicted, entropy = np.empty(batch, np.bool_), np.empty(batch, np.int64), np.empty(batch, np.float32)
    counts = [np.empty(batch, np.int32) for _ in range(3)]
    soft = [np.empty(batch, np.float32) for _ in range(2)]

    def part(start: int, stop: int) -> None:
        head(start, stop)
        cpu_head.describe(z, start, stop, entropy, predicted, finite)
        cpu_overlap.overlap(maps, finite, bits, start, stop, *axes, recipe.relu, low_eps, full_eps,
                            np.float32(threshold), entropy, predicted, *counts, *soft)  # fmt: skip

    _share(batch, part)
    return Acquisition(*map(torch.from_numpy, (z, entropy, predicted, *counts, *soft)))


def _any_head(
    features: Tensor, alpha: Tensor | None, logits: Tensor | None, maps: np.ndarray
) -> tuple[np.ndarray, Part]:
    """The logits [B, K], and what fills class maps [B, h, w] from alpha [B, C]."""
    samples, channels_last = _samples(features)
    alphas, flat = _array(alpha), maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    return _array(logits).copy(), lambda i, j: cpu_head.project(samples, channels_last, i, j, alphas, flat)


def _linear_head(
    features: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor | None, maps: np.ndarray
) -> tuple[np.ndarray, Part]:
    """Logits [B, K] and what fills class maps [B, h, w]; where the head fits a core's cache, it fills the logits too.

    Pooled means → logits → one weighted sum costs the same for every K; the GEMM for all K maps, of which one is used,
    took longer at K = 3 already. A sample is read from memory once and, for the weighted sum, from the cache.
    """
    samples, channels_last = _samples(features)
    batch, channels = features.shape[:2]
    flat = maps.reshape(batch, maps.shape[1] * maps.shape[2])
    if weight.numel() <= CACHED_WEIGHTS:
        z = np.empty((batch, len(weight)), np.float32)
        w, b = _array(weight), _array(weight.new_zeros(len(weight)) if bias is None else bias)
        explain = np.empty(0, np.int64) if classes is None else _array(classes, torch.int64)
        return z, lambda i, j: cpu_head.linear_head(samples, channels_last, i, j, w, b, explain, z, flat)
    means = torch.empty(batch, channels)
    _share(batch, lambda i, j: cpu_head.pool(samples, channels_last, i, j, means.numpy()))
    weight = weight.float()
    logits = F.linear(means, weight, None if bias is None else bias.float())
    explained = logits.argmax(1) if classes is None else classes
    return _any_head(features, weight[explained] / flat.shape[1], logits, maps)


def _samples(features: Tensor) -> tuple[np.ndarray, bool]:
    """Features as a contiguous array [B, C, h·w] or, if True goes with it, [B, h·w, C]; copied if strided otherwise."""
    channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    a = features.detach().permute(0, 2, 3, 1) if channels_last else features.detach().contiguous()
    return a.view(BITS[features.dtype]).flatten(2 - channels_last, 3 - channels_last).numpy(), channels_last


def _array(x: Tensor | None, dtype: torch.dtype = torch.float32) -> np.ndarray:
    assert x is not None  # checked by the op
    return x.detach().to(dtype).contiguous().numpy()


def _share(batch: int, part: Part) -> None:
    """part(start, stop) over [0, batch), a range for each of PyTorch's threads."""
    threads = max(1, min(torch.get_num_threads(), batch))
    cuts = [batch * i // threads for i in range(threads + 1)]
    waiting = [_pool(threads - 1).submit(part, i, j) for i, j in pairwise(cuts[1:])]
    part(0, cuts[1])
    for future in waiting:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "egal_kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


@lru_cache(maxsize=64)
def _axis(n: int, size: int) -> Axis:
    """How `resize` takes n source points to `size`; the weights t are its own."""
    sources, t = (x.numpy() for x in taps(n, size, torch.float32, torch.device("cpu")))
    source, first = np.unique(sources, return_index=True)
    mass = np.bincount(sources, 1 - t.astype(np.float64), n)
    mass += np.bincount(np.minimum(sources + 1, n - 1), t, n)
    return Axis(source, first, np.append(first[1:], size), t, mass)


@lru_cache(maxsize=64)
def _pieces(n: int, size: int) -> Pieces:
    """[0, size) cut where the source point changes, where the clamp at the border ends, and at the ROI's words."""
    axis = _axis(n, size)
    clamped = max(0, -(-(size - n) // (2 * n)))  # rows y with (2·y + 1)·n < size have t = 0
    cuts = np.unique([*axis.first, *range(0, size, WORD), min(clamped, size), size])
    first, stop = cuts[:-1], cuts[1:]
    interval = np.searchsorted(axis.first, first, side="right") - 1
    word = first // WORD
    mask = ((np.int64(1) << (stop - first)) - 1) << (first - word * WORD)
    inside = first >= clamped
    t0 = ((2 * word * WORD + 1) * n - size) / (2 * size) - axis.source[interval]  # at bit 0 of the word
    return Pieces(interval, word, mask.astype(np.uint32), np.where(inside, t0, 0), np.where(inside, n / size, 0))
