# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="assignment"
"""Triton device functions that make class maps Σ_c weight_c·A_c of the features of a sample.

A tile of features is [BP, BC, PL]: element [i, j, k] is channel c0 + j at position p0 + PL·i + k. Threads lie along k
and j, those of a warp along the one that is contiguous in memory. i is left to the registers of a thread, so that one
weight serves BP features. Sums are fused and reordered.
"""

import triton
import triton.language as tl


@triton.jit
def positions_at(p0, BP: tl.constexpr, PL: tl.constexpr):
    """Return the positions of a tile that begins at p0, [BP, 1, PL]."""
    return p0 + PL * tl.arange(0, BP)[:, None, None] + tl.arange(0, PL)[None, None, :]


@triton.jit
def channels_at(c0, BC: tl.constexpr):
    """Return the channels of a tile that begins at c0, [1, BC, 1]."""
    return c0 + tl.arange(0, BC)[None, :, None]


@triton.jit
def load_tile(features, c, p, C: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Load features as float32; 0 outside the sample."""
    offset = p * C + c if CHANNELS_LAST else c * P + p
    return tl.load(features + offset, mask=(c < C) & (p < P), other=0).to(tl.float32)


@triton.jit
def project(
    features, weight, maps,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Write the maps [K, P] Σ_c weight[k, c]·A_c.

    The last channels come first: an earlier pass over the features has left them in the cache.
    """
    for p0 in range(0, P, BP * PL):
        p = positions_at(p0, BP, PL)
        sums = ()
        for _ in tl.static_range(K):
            sums = sums + (tl.zeros([BP, BC, PL], tl.float32),)  # noqa: RUF005
        for c0 in range(0, C, BC):
            c = channels_at((C - 1) // BC * BC - c0, BC)
            a = load_tile(features, c, p, C, P, CHANNELS_LAST)
            more = ()
            for k in tl.static_range(K):
                w = tl.load(weight + k * C + c, mask=c < C, other=0).to(tl.float32)
                more = more + (tl.fma(a, w, sums[k]),)  # noqa: RUF005
            sums = more
        cells = tl.reshape(p, [BP, PL])
        for k in tl.static_range(K):
            tl.store(maps + k * P + cells, tl.sum(sums[k], 1), mask=cells < P)
