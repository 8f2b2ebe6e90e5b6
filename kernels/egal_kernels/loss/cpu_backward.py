# mypy: allow-untyped-defs, allow-untyped-calls
"""Numba kernels of the CPU backend for the backward pass: slopes of the loss → gradients, by outer products."""

import numpy as np
from numba import njit, types
from numba.extending import overload

from egal_kernels.shared.caching import kernel
from egal_kernels.shared.threads import each_thread, take

jit = njit(nogil=True, error_model="numpy")
_1, _13, _16 = map(np.uint32, (1, 13, 16))
_SIGN, _INFINITE, _SUBNORMAL, _HALF_ULP, _EXPONENT = map(np.uint32, (0x8000, 0xFF000000, 0x71000000, 0x7FFF, 0x7C00))


def narrow(x, like):
    """Return float32 x as the bits that `like`, an array of features, stores: rounded to nearest, ties to even."""


@overload(narrow)
def _narrow(x, like):
    if like.dtype == types.float32:
        return lambda x, like: x
    return _to_bfloat16 if like.dtype == types.uint16 else _to_float16


def _to_bfloat16(x, like):
    """Round to the upper 16 bits."""
    bits = np.float32(x).view(np.uint32)
    rounded = np.uint32(np.uint32(bits + _HALF_ULP + (bits >> _16 & _1)) >> _16)
    return np.uint16(rounded if x == x else np.uint32(0x7FC0))


def _to_float16(x, like):
    """Round by adding a power of two so large that the sum keeps 10 bits of x (M. Dukhan, FP16)."""
    bits = np.float32(x).view(np.uint32)
    doubled = np.uint32(bits << _1)  # without the sign
    power = np.uint32(max(np.uint32(doubled & _INFINITE), _SUBNORMAL) >> _1)
    large = np.uint32(power + np.uint32(0x07800000)).view(np.float32)
    scaled = abs(x) * np.float32(2.0**112) * np.float32(2.0**-110)  # 65520 and above become infinite here
    total = np.float32(large + scaled).view(np.uint32)
    rounded = np.uint32((total >> _13 & _EXPONENT) + (total & np.uint32(0xFFF)))
    return np.uint16((bits >> _16 & _SIGN) | (rounded if x == x else np.uint32(0x7E00))).view(np.int16)


@kernel
def features_gradient(team, grad, alpha, slope, channels_last, out):
    """Write grad_b·alpha[b, c]·slope[b, p] to `out` as it is stored: [B, C, P], or [B, P, C] if channels_last."""
    each_thread(team, _features_gradient, (np.zeros(1, np.int64), grad, alpha, slope, channels_last, out))


@jit
def _features_gradient(counter, grad, alpha, slope, channels_last, out):
    """Write the gradients of the samples that this thread takes."""
    b = take(counter)
    while b < grad.size:
        near, far = (slope[b], alpha[b]) if channels_last else (alpha[b], slope[b])
        for i in range(near.size):
            share, row = grad[b] * near[i], out[b, i]
            for j in range(row.size):
                row[j] = narrow(share * far[j], out)
        b = take(counter)


@kernel
def weight_gradient(grad, classes, moment, out):
    """Add grad_b·moment[b] to row classes[b] of `out` [K, C], in the order of the batch."""
    for b in range(grad.size):
        for c in range(out.shape[1]):
            out[classes[b], c] += grad[b] * moment[b, c]
