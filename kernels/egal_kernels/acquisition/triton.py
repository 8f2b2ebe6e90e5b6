"""The Triton backend for CUDA and ROCm: one launch per batch, one program per sample."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from egal_kernels.acquisition import triton_head, triton_overlap
from egal_kernels.acquisition.heads import ExplainedLogits, Head, LinearHead
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.roi import PackedRoi
from egal_kernels.shared.triton_class_maps import project
from egal_kernels.shared.triton_launch import Tuning, in_place, on_device, tile_of, tuning
from egal_kernels.shared.triton_resampling import axis_of

# Up to this many classes, the maps of all classes are summed up in one pass. A class costs a multiply-add per feature
# and a load per channel for every 4 features; for 8 classes these take about as long as an H100 takes to read the
# features. With more classes, a sample is pooled first, then projected from its last channel back: that second pass
# finds in L2 what the first one left there.
ONE_PASS_CLASSES = 8

# With more weights than this, every program would read more weights than features. Such a head is one matrix product
# over the pooled batch, followed by one launch.
PROGRAM_WEIGHTS = 1 << 16


def acquire(
    features: Tensor, head: Head, roi: PackedRoi, *, threshold: float, convention: str, tuned: Tuning | None = None
) -> Acquisition:
    """Do `egal_kernels.acquire` for checked arguments on an accelerator; features are f32, bf16 or f16.

    Kernels are compiled on first use, once for each combination of shapes, and Triton caches them on disk.
    """
    if isinstance(head, LinearHead) and head.weight.numel() > PROGRAM_WEIGHTS:
        head = _explain(head, features)
    out, values = arguments(features, head, roi, threshold, convention, tuned)
    if len(features):
        with on_device(features.device):
            kernel[(len(features),)](**values)
    return out


def _explain(head: LinearHead, features: Tensor) -> ExplainedLogits:
    """Compute the logits of a large head by one matrix product over the whole batch, and take the explained weights."""
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    logits = F.linear(features.mean((2, 3), dtype=torch.float32), weight, bias)
    explained = logits.argmax(1) if head.classes is None else head.classes
    return ExplainedLogits(weight[explained] / features[0, 0].numel(), logits)


def arguments(
    features: Tensor, head: Head, roi: PackedRoi, threshold: float, convention: str, tuned: Tuning | None = None
) -> tuple[Acquisition, dict[str, Any]]:
    """Return the result, not yet filled, and the arguments of `kernel`: tensors, numbers, constants and options."""
    (batch, channels, h, w), device = features.shape, features.device
    _, height, width = roi.shape
    positions, (features, channels_last) = h * w, in_place(features)
    linear = isinstance(head, LinearHead)
    pooled = linear and head.count > ONE_PASS_CLASSES
    maps = head.count if linear and not pooled else 1
    tuned = tuned or tuning(channels, positions, channels_last, maps, width)
    columns, rows, recipe = axis_of(w, width, device), axis_of(h, height, device), RECIPES[convention]
    f32, i32, i64 = torch.float32, torch.int32, torch.int64
    fields = (torch.empty(batch, dtype=dtype, device=device) for dtype in (f32, i64, i32, i32, i32, f32, f32))
    out = Acquisition(torch.empty(batch, head.count, device=device), *fields)
    return out, {
        "features": features,
        "stride": features.stride(0),
        **_head_arguments(head),
        "bits": roi.bits.contiguous(),
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
        "K": head.count,
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
        "enable_fp_fusion": False,  # the reference's roundings decide the counts
        **({} if torch.version.hip else {"maxnreg": 128}),  # without it, ptxas may spill to fit one more program
    }


def _head_arguments(head: Head) -> dict[str, Tensor | None]:
    """Return the arguments of `kernel` that describe the head; those of the other form of head are None."""
    arguments: dict[str, Tensor | None] = dict.fromkeys(("weight", "bias", "classes", "alpha", "known_logits"))
    if isinstance(head, LinearHead):
        arguments |= {"weight": head.weight, "bias": head.bias, "classes": head.classes}
    else:
        arguments |= {"alpha": head.alpha, "known_logits": head.logits}
    return {name: None if x is None else x.contiguous() for name, x in arguments.items()}


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    features, stride, weight, bias, classes, alpha, known_logits, bits,  # inputs, None if absent
    columns, column_t, row_t, segments, moments, S, W, words, slope, threshold,
    maps, means,  # scratch that stays in the cache, [B, MAPS, P] and [B, C]
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    C: tl.constexpr, P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, FULL: tl.constexpr, STEPS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Process sample b of the batch. The threads of its program exchange data through memory, at barriers."""
    b = tl.program_id(0).to(tl.int64)
    features += b * stride
    class_map = maps + b * (MAPS * P)
    logits += b * K
    bits += b * W * words
    LOGITS: tl.constexpr = min(triton.next_power_of_2(K), 1024)
    divisor = P * 1.0
    if weight is None:
        divisor = 1.0
        triton_head.widen(known_logits + b * K, logits, K, LOGITS)
        project(features, alpha + b * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)
    elif means is None:
        project(features, weight, class_map, C, P, K, CHANNELS_LAST, BC, BP, PL)
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
        project(features, weight + explained * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
    elif weight is not None:
        class_map += explained * P
    finite = finite & triton_overlap.normalise(class_map, divisor, P, RELU, LOW, BP * PL)
    least, scale, critical, small = 0.0, 1.0, threshold, False
    if FULL >= 0:
        least, most = triton_overlap.extremes(class_map, columns, column_t, row_t, segments, S, W, w, COLUMNS)
        scale = (most - least) + FULL
        scale = tl.where(scale == 0, 1, scale)
        # rounding changes the sums, or the inverse of the scale overflows
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


INTERPRETED = not isinstance(kernel, triton.JITFunction)  # whether TRITON_INTERPRET=1 was set before the import
