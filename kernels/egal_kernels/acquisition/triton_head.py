# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="assignment"
"""Triton device functions for the head of a sample: its pooled features, logits, predicted class and entropy."""

import triton
import triton.language as tl

from egal_kernels.shared.triton_class_maps import channels_at, load_tile, positions_at


@triton.jit
def average(maps, bias, logits, P: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr):
    """Write the logits [K]: the means of maps [K, P] plus the bias."""
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
    """Write the means [C] over the P positions."""
    for c0 in range(0, C, BC):
        c = channels_at(c0, BC)
        total = tl.zeros([BP, BC, PL], tl.float32)
        for p0 in range(0, P, BP * PL):
            total += load_tile(features, c, positions_at(p0, BP, PL), C, P, CHANNELS_LAST)
        j = c0 + tl.arange(0, BC)
        tl.store(means + j, tl.div_rn(tl.sum(tl.sum(total, 2), 0), P * 1.0), mask=j < C)


@triton.jit
def linear(means, weight, bias, logits, C: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    """Write the logits [K] of pooled features [C]."""
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
def widen(source, logits, K: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the logits [K] of `source` as float32."""
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        tl.store(logits + k, tl.load(source + k, mask=k < K, other=0).to(tl.float32), mask=k < K)


@triton.jit
def describe(logits, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return the predicted class (the lowest of a tie), the entropy in nats, and whether every logit is finite."""
    top, predicted, finite = -float("inf"), 0, True
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        z = tl.load(logits + k, mask=k < K, other=-float("inf"))
        finite = finite & (tl.min(((tl.abs(z) < float("inf")) | (k >= K)).to(tl.int32), 0) == 1)
        best = tl.max(z, 0)
        predicted = tl.where(best > top, tl.min(tl.where(z == best, k, K - 1), 0), predicted)
        top = tl.maximum(top, best)
    # Σ p and Σ p·z, where p = exp(z), over all classes but the predicted one, whose own p is 1
    others, moment = 0.0, 0.0
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        z = tl.load(logits + k, mask=k < K, other=-float("inf")) - top
        z = tl.maximum(z, -200.0)  # exp(−200) is 0 in float32, but −∞·0 would be NaN
        p = tl.where(k == predicted, 0, tl.exp(z))
        others += tl.sum(p, 0)
        moment += tl.sum(p * z, 0)
    # the error of a device's log, 2e-7, may exceed the entropy of a confident prediction
    series = others * (1 - others * (0.5 - others * (1 / 3 - others * 0.25)))
    log_total = tl.where(others < 1 / 64, series, tl.log(1 + others))
    return predicted, log_total - tl.div_rn(moment, 1 + others), finite
