"""The Triton backend: one launch a batch, one program a sample, on CUDA and ROCm."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from egal_kernels.acquisition import triton_head, triton_overlap
from egal_kernels.acquisition.conventions import RECIPES
from egal_kernels.acquisition.triton_launch import Tuning, axis_of, in_place, tile_of, tuning
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.roi import PackedRoi

# Up to this many classes, all class maps are summed up in one pass: a class costs a multiply-add a feature and a load a
# channel for every 4 features, and at 8 these take about as long as memory does on an H100. Beyond, a sample is pooled,
# then projected from its last channel back: the second reading finds in L2 what the first left there.
ONE_PASS_CLASSES = 8

# Beyond, every program would read more weights than features: a GEMM over the pooled batch, then one launch.
PROGRAM_WEIGHTS = 1 << 16


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
    tuned: Tuning | None = None,
) -> Acquisition:
    """`egal_kernels.acquire` for checked arguments on an accelerator; features f32, bf16 or f16.

    Kernels are compiled on first use, once for each combination of shapes, and cached by Triton on disk.
    """
    if weight is not None and weight.numel() > PROGRAM_WEIGHTS:
        logits = F.linear(
            features.mean((2, 3), dtype=torch.float32), weight.float(), None if bias is None else bias.float()
        )
        explained = logits.argmax(1) if classes is None else classes
        alpha = weight.float()[explained] / features[0, 0].numel()
        weight = bias = classes = None
    out, given = arguments(features, weight, bias, roi, threshold, convention, classes, alpha, logits, tuned)
    if len(features):
        with torch.cuda.device(features.device) if features.is_cuda else nullcontext():
            kernel[(len(features),)](**given)
    return out


def arguments(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    roi: PackedRoi,
    threshold: float,
    convention: str,
    classes: Tensor | None,
    alpha: Tensor | None,
    logits: Tensor | None,
    tuned: Tuning | None = None,
) -> tuple[Acquisition, dict[str, Any]]:
    """The fields to be written, not yet initialised, and what `kernel` takes: tensors, numbers, constants, options."""
    (batch, channels, h, w), device = features.shape, features.device
    _, height, width = roi.shape
    positions, (features, channels_last) = h * w, in_place(features)
    count = logits.shape[1] if weight is None else len(weight)  # type: ignore[union-attr]
    pooled = weight is not None and count > ONE_PASS_CLASSES
    maps = 1 if weight is None or pooled else count
    tuned = tuned or tuning(channels, positions, channels_last, maps, width)
    columns, rows, recipe = axis_of(w, width, device), axis_of(h, height, device), RECIPES[convention]
    f32, i32, i64 = torch.float32, torch.int32, torch.int64
    fields = (torch.empty(batch, dtype=dtype, device=device) for dtype in (f32, i64, i32, i32, i32, f32, f32))
    out = Acquisition(torch.empty(batch, count, device=device), *fields)
    return out, {
        "features": features,
        "stride": features.stride(0),
        "weight": _contiguous(weight),
        "bias": _contiguous(bias),
        "classes": _contiguous(classes),
        "alpha": _contiguous(alpha),
        "given": _contiguous(logits),
        "bits": _contiguous(roi.bits),
        "columns": columns.source,
        "column_t": columns.t,
        "row_t": rows.t,
        "segments": rows.segments,
        "moments": rows.moments,
        "S": len(rows.segments),
        "W": width,
        "words": roi.bits.shape[2],
        "slope": h / height,
        "threshold": float(np.float32(threshold)),
        "maps": torch.empty(batch, maps, positions, device=device),
        "means": torch.empty(batch, channels, device=device) if pooled else None,
        **vars(out),
        "C": channels,
        "P": positions,
        "w": w,
        "K": count,
        "MAPS": maps,
        "CHANNELS_LAST": channels_last,
        "RELU": recipe.relu,
        "LOW": -1.0 if recipe.low is None else recipe.low,
        "FULL": -1.0 if recipe.full is None else recipe.full,
        "STEPS": rows.steps,
        **tile_of(features, channels_last, tuned),
        "COLUMNS": tuned.columns,
        "num_warps": tuned.warps,
        "num_stages": 1,
        "enable_fp_fusion": False,  # counts are decided by the reference's roundings
        **({} if torch.version.hip else {"maxnreg": 128}),  # else ptxas may spill to fit one program more
    }


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    features, stride, weight, bias, classes, alpha, given, bits,  # inputs, those absent None
    columns, column_t, row_t, segments, moments, S, W, words, slope, threshold,
    maps, means,  # scratch that stays in the cache, [B, MAPS, P] and [B, C]
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    C: tl.constexpr, P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, FULL: tl.constexpr, STEPS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sample b of the batch, whole. Threads hand over through memory, at barriers."""
    b = tl.program_id(0).to(tl.int64)
    features += b * stride
    class_map = maps + b * (MAPS * P)
    logits += b * K
    bits += b * W * words
    LOGITS: tl.constexpr = min(triton.next_power_of_2(K), 1024)
    divisor = P * 1.0
    if weight is None:
        divisor = 1.0
        triton_head.widen(given + b * K, logits, K, LOGITS)
        triton_head.project(features, alpha + b * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)
    elif means is None:
        triton_head.project(features, weight, class_map, C, P, K, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
        triton_head.average(class_map, bias, logits, P, K, LOGITS, BP * PL)
    else:
        triton_head.pool(features, means + b * C, C, P, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
        triton_head.linear(means + b * C, weight, bias, logits, C, K, 16, 64)
    tl.debug_barrier()
    top, h, finite = triton_head.describe(logits, K, LOGITS)
    explained = top
    if classes is not None:
        explained = tl.load(classes + b).to(tl.int32)
    if means is not None:
        triton_head.project(features, weight + explained * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
    elif weight is not None:
        class_map += explained * P
    finite = finite & triton_overlap.normalise(class_map, divisor, P, RELU, LOW, BP * PL)
    least, scale, critical, small = 0.0, 1.0, threshold, False
    if FULL >= 0:
        least, most = triton_overlap.extremes(class_map, columns, column_t, row_t, segments, S, W, w, COLUMNS)
        scale = (most - least) + FULL
        scale = tl.where(scale == 0, 1, scale)
        # rounding that counts, or a scale whose inverse overflows
        small = (most - least < tl.maximum(tl.abs(least), tl.abs(most)) / 64) | (scale < 1e-37)
        critical = triton_overlap.critical(least, most, scale, threshold)
    hits, area, roi, inside, total = triton_overlap.count(
        class_map, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, critical, least,
        tl.div_rn(1.0, scale), w, STEPS, COLUMNS,
    )  # fmt: skip
    if small:
        inside, total = triton_overlap.soft_by_pixel(
            class_map, bits, columns, column_t, row_t, segments, S, W, words, least, scale, w, COLUMNS
        )
    nan = float("nan")
    tl.store(entropy + b, tl.where(finite, h, nan))
    tl.store(predicted + b, tl.where(finite, top, -1))
    tl.store(intersection + b, tl.where(finite, hits, -1))
    tl.store(cam_area + b, tl.where(finite, area, -1))
    tl.store(roi_area + b, tl.where(finite, roi, -1))
    tl.store(soft_intersection + b, tl.where(finite, inside, nan))
    tl.store(soft_area + b, tl.where(finite, total + roi, nan))


INTERPRETED = not isinstance(kernel, triton.JITFunction)  # TRITON_INTERPRET=1 was set when this was imported
