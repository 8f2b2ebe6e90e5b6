# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""Numba functions of the CPU backend for the head: the features of a sample → logits, class map and entropy.

As for class maps, sums are in binary64 and are rounded to float32 once.
"""

import numpy as np
from numba import njit

from egal_kernels.shared.caching import kernel
from egal_kernels.shared.cpu_class_maps import FAST, class_maps, project, widen
from egal_kernels.shared.threads import each_thread, take

jit = njit(nogil=True, fastmath=FAST, error_model="numpy")

MAPPED = 4  # for at most this many classes, one pass over the features makes the maps of all classes


@jit
def _pool(a, channels_last, means):
    """Write the means over positions, float64 [C], of a sample `a` as in `class_maps`."""
    if channels_last:
        means[:] = 0
        for p in range(a.shape[0]):
            for c in range(a.shape[1]):
                means[c] += widen(a[p, c])
        means /= a.shape[0]
        return
    channels, positions = a.shape
    for c in range(0, channels - 3, 4):  # four at a time, so that their sums do not wait for each other
        a0, a1, a2, a3 = a[c], a[c + 1], a[c + 2], a[c + 3]
        t0 = t1 = t2 = t3 = 0.0
        for p in range(a.shape[1]):
            t0 += widen(a0[p])
            t1 += widen(a1[p])
            t2 += widen(a2[p])
            t3 += widen(a3[p])
        means[c], means[c + 1], means[c + 2], means[c + 3] = t0, t1, t2, t3
    for c in range(channels - channels % 4, channels):
        means[c] = 0
        for p in range(a.shape[1]):
            means[c] += widen(a[c, p])
    means /= positions


@kernel
def pool(team, features, channels_last, means):
    """Write the means over positions of every sample, float64 [B, C]."""
    each_thread(team, _pool_samples, (np.zeros(1, np.int64), features, channels_last, means))


@jit
def _pool_samples(counter, features, channels_last, means):
    """Pool the samples that this thread takes."""
    b = take(counter)
    while b < features.shape[0]:
        _pool(features[b], channels_last, means[b])
        b = take(counter)


@jit
def linear_head(a, channels_last, weight, bias, explain, logits, maps, class_map):
    """Write the logits and the class map of a sample; its features are read from memory once.

    Up to MAPPED classes, the maps of all classes are made in one pass, and the logits are their means. With more
    classes that costs more than a second pass over the sample, which is in the cache by then: pooled means → logits →
    the map of one class.

    Args:
        a: the features of the sample as in `class_maps`.
        channels_last: the layout of `a`.
        weight: float64 [K, C].
        bias: float64 [K].
        explain: the class to explain; the predicted one if it is negative.
        logits: float32 [K], written.
        maps: float64 [at most MAPPED, P], scratch.
        class_map: float32 [P], written.
    """
    positions = class_map.size
    if logits.size <= MAPPED:
        class_maps(a, channels_last, weight, maps)
        for k in range(logits.size):
            logits[k] = maps[k].sum() / positions + bias[k]
        explained = maps[explain if explain >= 0 else np.argmax(logits)]
        for p in range(positions):  # to assign a slice would compile Numba's message for shapes that differ: seconds
            class_map[p] = explained[p] / positions
        return
    means = np.empty(weight.shape[1])
    _pool(a, channels_last, means)
    for k in range(logits.size):
        logits[k] = (weight[k] * means).sum() + bias[k]
    project(a, channels_last, weight[explain if explain >= 0 else np.argmax(logits)] / positions, class_map)


@jit
def describe(logits):
    """Return the entropy in nats, the predicted class (the lowest of a tie), and whether every logit is finite."""
    top = np.argmax(logits)
    total, moment, finite = 0.0, 0.0, True
    for k in range(logits.size):
        finite &= np.isfinite(logits[k])
        z = np.float64(logits[k]) - np.float64(logits[top])
        p = np.exp(z)
        total += p
        moment += p * z
    return np.log(total) - moment / total, top, finite  # −Σ p·log p, where p = exp(z)/total
