# mypy: allow-untyped-defs, allow-untyped-calls
"""Numba kernels of the CPU backend, backward: slopes of the loss → gradients, outer products."""

import numpy as np
from numba import njit, types
from numba.extending import overload

kernel = njit(nogil=True, cache=True, error_model="numpy")


def narrow(x, like):
    """float32 x as the bits that an array of features like `like` stores, rounded to nearest, ties to even."""


@overload(narrow)
def _narrow(x, like):
    if like.dtype == types.float32:
        return lambda x, like: x
    if like.dtype == types.uint16:

        def to_bfloat16(x, like):
            bits = np.float32(x).view(np.uint32)
            if np.isnan(x):
                return np.uint16(0x7FC0)
            return np.uint16(
                np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            )

        return to_bfloat16

    def to_float16(x, like):
        bits, magnitude = np.float32(x).view(np.uint32), abs(x)
        sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
        if np.isnan(x):
            half = np.uint32(0x7E00)
        elif magnitude >= np.float32(65520):
            half = np.uint32(0x7C00)
        elif magnitude < np.float32(2.0**-14):  # a float32 near ½ has the spacing of subnormal halves
            half = np.uint32(np.float32(magnitude + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
        else:
            even = np.uint32((bits >> np.uint32(13)) & np.uint32(1))
            half = np.uint32(
                ((bits & np.uint32(0x7FFFFFFF)) - np.uint32(0x38000000) + np.uint32(0xFFF) + even) >> np.uint32(13)
            )
        return np.uint16(sign | half).view(np.int16)

    return to_float16


@kernel
def features_gradient(grad, alpha, slope, start, stop, channels_last, out):
    """grad_b·alpha[b, c]·slope[b, p] of samples [start, stop), into `out` as stored, [B, C, P] or [B, P, C]."""
    for b in range(start, stop):
        if channels_last:
            for p in range(slope.shape[1]):
                share, row = grad[b] * slope[b, p], out[b, p]
                for c in range(row.size):
                    row[c] = narrow(share * alpha[b, c], out)
            continue
        for c in range(alpha.shape[1]):
            share, row = grad[b] * alpha[b, c], out[b, c]
            for p in range(row.size):
                row[p] = narrow(share * slope[b, p], out)


@kernel
def weight_gradient(grad, classes, moment, out):
    """grad_b·moment[b] added to row classes[b] of `out` [K, C], in the order of the batch."""
    for b in range(grad.size):
        for c in range(out.shape[1]):
            out[classes[b], c] += grad[b] * moment[b, c]
