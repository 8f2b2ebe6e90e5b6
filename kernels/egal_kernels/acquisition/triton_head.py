# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="assignment"
"""Triton device functions of the head: features of a sample → its logits and class map. Sums are fused and reordered.

A tile of features is [BP, BC, PL]: channel c0 + j of position p0 + PL·i + k at [i, j, k]. Threads lie along k and j, a
warp's along the one contiguous in memory; i is left to a thread's registers, so that one weight serves BP features.
"""

import triton
import triton.language as tl


@triton.jit
def positions_at(p0, BP: tl.constexpr, PL: tl.constexpr):
    return p0 + PL * tl.arange(0, BP)[:, None, None] + tl.arange(0, PL)[None, None, :]  # [BP, 1, PL]


@triton.jit
def channels_at(c0, BC: tl.constexpr):
    return c0 + tl.arange(0, BC)[None, :, None]  # [1, BC, 1]


@triton.jit
def load_tile(features, c, p, C: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    offset = p * C + c if CHANNELS_LAST else c * P + p
    return tl.load(features + offset, mask=(c < C) & (p < P), other=0).to(tl.float32)


@triton.jit
def project(
    features, weight, maps,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Maps [K, P], Σ_c weight[k, c]·A_c; the last channels first, which a pass before this has left in the cache."""
    for p0 in range(0, P, BP * PL):
        p = positions_at(p0, BP, PL)
        sums = ()
        for _ in tl.static_range(K):
            sums = sums + (tl.zeros([BP, BC, PL], tl.float32),)  # noqa: RUF005
        for done in range(0, C, BC):
            c = channels_at((C - 1) // BC * BC - done, BC)
            a = load_tile(features, c, p, C, P, CHANNELS_LAST)
            more = ()
            for k in tl.static_range(K):
                w = tl.load(weight + k * C + c, mask=c < C, other=0).to(tl.float32)
                more = more + (tl.fma(a, w, sums[k]),)  # noqa: RUF005
            sums = more
        cells = tl.reshape(p, [BP, PL])
        for k in tl.static_range(K):
            tl.store(maps + k * P + cells, tl.sum(sums[k], 1), mask=cells < P)


@triton.jit
def average(maps, bias, logits, P: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr):
    """Logits [K], the means of maps [K, P] and the bias."""
    k = tl.arange(0, BK)
    total = tl.zeros([BK, BLOCK], tl.float32)
    for p0 in range(0, P, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        total += tl.load(maps + k[:, None] * P + p[None, :], mask=(k[:, None] < K) & (p[None, :] < P), other=0)
    z = tl.div_rn(tl.sum(total, 1), P * 1.0)
    if bias is not None:
        z += tl.load(bias + k, mask=k < K, other=0).to(tl.float32)
    tl.store(logits + k, z, mask=k < K)


@triton.jit
def pool(
    features, means,
    C: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Means [C] over the P positions."""
    for c0 in range(0, C, BC):
        c = channels_at(c0, BC)
        total = tl.zeros([BP, BC, PL], tl.float32)
        for p0 in range(0, P, BP * PL):
            total += load_tile(features, c, positions_at(p0, BP, PL), C, P, CHANNELS_LAST)
        j = c0 + tl.arange(0, BC)
        tl.store(means + j, tl.div_rn(tl.sum(tl.sum(total, 2), 0), P * 1.0), mask=j < C)


@triton.jit
def linear(means, weight, bias, logits, C: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    """Logits [K] of pooled features [C]."""
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        total = tl.zeros([BK, BC], tl.float32)
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            inside = (k[:, None] < K) & (c[None, :] < C)
            w = tl.load(weight + k[:, None] * C + c[None, :], mask=inside, other=0).to(tl.float32)
            total = tl.fma(w, tl.load(means + c, mask=c < C, other=0)[None, :], total)
        z = tl.sum(total, 1)
        if bias is not None:
            z += tl.load(bias + k, mask=k < K, other=0).to(tl.float32)
        tl.store(logits + k, z, mask=k < K)


@triton.jit
def widen(given, logits, K: tl.constexpr, BLOCK: tl.constexpr):
    """Logits [K] as float32."""
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        tl.store(logits + k, tl.load(given + k, mask=k < K, other=0).to(tl.float32), mask=k < K)


@triton.jit
def describe(logits, K: tl.constexpr, BLOCK: tl.constexpr):
    """Predicted class, the lowest of a tie, entropy in nats, and whether every logit is finite."""
    top, predicted, finite = -float("inf"), 0, True
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        z = tl.load(logits + k, mask=k < K, other=-float("inf"))
        finite = finite & (tl.min(((tl.abs(z) < float("inf")) | (k >= K)).to(tl.int32), 0) == 1)
        best = tl.max(z, 0)
        predicted = tl.where(best > top, tl.min(tl.where(z == best, k, K - 1), 0), predicted)
        top = tl.maximum(top, best)
    others, moment = 0.0, 0.0  # Σ p and Σ p·z over all but the predicted class, p = exp(z), whose own p is 1
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        z = tl.load(logits + k, mask=k < K, other=-float("inf")) - top
        z = tl.maximum(z, -200.0)  # exp(−200) is 0, and −∞·0 would be NaN
        p = tl.where(k == predicted, 0, tl.exp(z))
        others += tl.sum(p, 0)
        moment += tl.sum(p * z, 0)
    # the device's log is exact to 2e-7 only, which is more than the entropy of a sure prediction
    series = others * (1 - others * (0.5 - others * (1 / 3 - others * 0.25)))
    log_total = tl.where(others < 1 / 64, series, tl.log(1 + others))
    return predicted, log_total - tl.div_rn(moment, 1 + others), finite
