# mypy: allow-untyped-defs, allow-untyped-calls
"""Numba kernels of the CPU backend, features → logits and class maps. Sums may be reordered and contracted here."""

import numpy as np
from numba import njit, types
from numba.extending import overload

# Any order of a sum will do, NaN and infinity must survive: neither nnan nor ninf
FAST = {"reassoc", "contract", "nsz"}
jit = njit(nogil=True, fastmath=FAST, error_model="numpy")
kernel = njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")


def widen(x):
    """A stored feature as float32: itself, or from the bits of a bfloat16 (uint16) or a float16 (int16)."""


@overload(widen)
def _widen(x):
    if x == types.float32:
        return lambda x: x
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)

    def from_half(x):
        magnitude = np.uint32((np.uint32(x) & 0x7FFF) << 13)
        sign = np.uint32((np.uint32(x) & 0x8000) << 16)
        # exponents differ by 112, subnormals included; an exponent of all ones stays all ones
        value = magnitude.view(np.float32) * np.float32(2.0**112)
        bits = np.uint32(magnitude | 0x7F800000) if magnitude >= 0x0F800000 else np.float32(value).view(np.uint32)
        return np.uint32(bits | sign).view(np.float32)

    return from_half


@jit
def _pool(a, channels_last, means):
    """Means [C] over positions of a sample a, [C, P] or, channels_last, [P, C]."""
    if channels_last:
        means[:] = 0
        for p in range(a.shape[0]):
            for c in range(a.shape[1]):
                means[c] += widen(a[p, c])
        means /= np.float32(a.shape[0])
        return
    channels, positions = a.shape[0], np.float32(a.shape[1])
    for c in range(0, channels - 3, 4):  # four at a time: their sums do not wait for each other
        a0, a1, a2, a3 = a[c], a[c + 1], a[c + 2], a[c + 3]
        t0 = t1 = t2 = t3 = np.float32(0)
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


@jit
def _project(a, channels_last, alpha, out):
    """Class map [P], Σ_c alpha_c·A_c, of a sample as in `_pool`."""
    if channels_last:
        for p in range(a.shape[0]):
            total = np.float32(0)
            for c in range(a.shape[1]):
                total += alpha[c] * widen(a[p, c])
            out[p] = total
        return
    channels = a.shape[0]
    out[:] = 0
    for c in range(0, channels - 3, 4):  # four at a time: a quarter of the loads and stores of `out`
        a0, a1, a2, a3 = a[c], a[c + 1], a[c + 2], a[c + 3]
        w0, w1, w2, w3 = alpha[c], alpha[c + 1], alpha[c + 2], alpha[c + 3]
        for p in range(a.shape[1]):
            out[p] += w0 * widen(a0[p]) + w1 * widen(a1[p]) + w2 * widen(a2[p]) + w3 * widen(a3[p])
    for c in range(channels - channels % 4, channels):
        for p in range(a.shape[1]):
            out[p] += alpha[c] * widen(a[c, p])


@kernel
def pool(features, channels_last, start, stop, means):
    for b in range(start, stop):
        _pool(features[b], channels_last, means[b])


@kernel
def project(features, channels_last, start, stop, alpha, maps):
    for b in range(start, stop):
        _project(features[b], channels_last, alpha[b], maps[b])


@kernel
def linear_head(features, channels_last, start, stop, weight, bias, classes, logits, maps):
    """Logits [B, K] and class maps [B, P]; a sample is read once from memory, the second time from the cache."""
    count, channels = weight.shape
    means = np.empty(channels, np.float32)
    for b in range(start, stop):
        _pool(features[b], channels_last, means)
        for k in range(count):
            logits[b, k] = (weight[k] * means).sum() + bias[k]
        explained = classes[b] if classes.size else np.argmax(logits[b])
        _project(features[b], channels_last, weight[explained] / np.float32(maps.shape[1]), maps[b])


@kernel
def describe(logits, start, stop, entropy, predicted, finite):
    """Entropy in nats, the lowest of the most probable classes, and whether every logit is finite."""
    for b in range(start, stop):
        top = np.argmax(logits[b])
        finite[b] = np.isfinite(logits[b]).all()
        total, moment = 0.0, 0.0
        for k in range(logits.shape[1]):
            z = np.float64(logits[b, k]) - np.float64(logits[b, top])
            p = np.exp(z)
            total += p
            moment += p * z
        predicted[b] = top
        entropy[b] = np.log(total) - moment / total  # −Σ p·log p of p = exp(z)/total
