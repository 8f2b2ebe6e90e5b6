"""The Triton backend for CUDA and ROCm: one launch per batch, or two, with one program per sample."""

from functools import lru_cache

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
from egal_kernels.shared.triton_launch import Launch, Tuning, in_place, on_device, tile_of, tuning
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
    out, tensors, launches = prepared(features, head, roi, threshold, convention, tuned)
    if len(features):
        with on_device(features.device):
            for launch in launches:
                launch(len(features), tensors)
    return out


def _explain(head: LinearHead, features: Tensor) -> ExplainedLogits:
    """Compute the logits of a large head by one matrix product over the whole batch, and take the explained weights."""
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    logits = F.linear(features.mean((2, 3), dtype=torch.float32), weight, bias)
    explained = logits.argmax(1) if head.classes is None else head.classes
    return ExplainedLogits(weight[explained] / features[0, 0].numel(), logits)


def prepared(
    features: Tensor, head: Head, roi: PackedRoi, threshold: float, convention: str, tuned: Tuning | None = None
) -> tuple[Acquisition, dict[str, Tensor | None], tuple[Launch, ...]]:
    """Return the result, not yet filled; the tensors of the kernels by name; and the launches that fill the result."""
    batch, channels, h, w = features.shape
    device, count, linear = features.device, head.count, isinstance(head, LinearHead)
    features, channels_last = in_place(features)
    pooled = linear and count > ONE_PASS_CLASSES
    maps = count if linear and not pooled else 1
    tensors = _head_tensors(head)
    dtypes = tuple([None if tensor is None else tensor.dtype for tensor in tensors.values()])
    launches = _launches(
        (channels, h, w), features.stride(0), features.dtype, channels_last, device, count, maps, pooled, dtypes,
        roi.height, roi.bits.shape[1:], threshold, convention, tuned,
    )  # fmt: skip
    f32, i32 = torch.float32, torch.int32
    out = Acquisition(
        logits=torch.empty((batch, count), dtype=f32, device=device),
        entropy=torch.empty(batch, dtype=f32, device=device),
        predicted=torch.empty(batch, dtype=torch.int64, device=device),
        intersection=torch.empty(batch, dtype=i32, device=device),
        cam_area=torch.empty(batch, dtype=i32, device=device),
        roi_area=torch.empty(batch, dtype=i32, device=device),
        soft_intersection=torch.empty(batch, dtype=f32, device=device),
        soft_area=torch.empty(batch, dtype=f32, device=device),
    )
    tensors |= vars(out)
    tensors["features"], tensors["bits"] = features, roi.bits.contiguous()
    tensors["maps"] = torch.empty((batch, maps, h * w), dtype=f32, device=device)
    tensors["means"] = torch.empty((batch, channels), dtype=f32, device=device) if pooled else None
    return out, tensors, launches


def _head_tensors(head: Head) -> dict[str, Tensor | None]:
    """Return the tensors that describe the head, by name; those of the other form of head are None."""
    tensors: dict[str, Tensor | None] = dict.fromkeys(("weight", "bias", "classes", "alpha", "known_logits"))
    if isinstance(head, LinearHead):
        tensors |= {"weight": head.weight, "bias": head.bias, "classes": head.classes}
    else:
        tensors |= {"alpha": head.alpha, "known_logits": head.logits}
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}


@lru_cache(maxsize=64)
def _launches(
    shape: tuple[int, int, int], stride: int, dtype: torch.dtype, channels_last: bool, device: torch.device,
    count: int, maps: int, pooled: bool, dtypes: tuple[torch.dtype | None, ...],
    height: int, words: tuple[int, int], threshold: float, convention: str, tuned: Tuning | None,
) -> tuple[Launch, ...]:  # fmt: skip
    """Return the launches for batches of one shape: tables, sizes, constants and options of the compiler.

    Args:
        shape: C, h and w of the features.
        stride: elements from one sample's features to those of the next.
        dtype: that of the features.
        channels_last: the layout of the features.
        device: where the kernels run.
        count: number of classes K.
        maps: number of class maps that are summed up in one pass.
        pooled: whether the features are pooled first.
        dtypes: those of the tensors of `_head_tensors`. Each combination has compiled kernels of its own.
        height: H of the ROI.
        words: [W, ⌈H/32⌉] of the packed ROI.
        threshold: τ.
        convention: a key of RECIPES.
        tuned: None: the tuning that `tuning` chooses.
    """
    channels, h, w = shape
    positions, width = h * w, words[0]
    tuned = tuned or tuning(channels, positions, channels_last, maps, width)
    columns, rows, recipe = axis_of(w, width, device), axis_of(h, height, device), RECIPES[convention]
    fixed = {
        "stride": stride,
        "columns": columns.source,
        "column_t": columns.t,
        "row_t": rows.t,
        "segments": rows.segments,
        "moments": rows.moments,
        "S": len(rows.segments),
        "W": width,
        "words": words[1],
        "slope": h / height,
        "threshold": float(np.float32(threshold)),
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
        **tile_of(positions, dtype.itemsize, channels_last, tuned),
        "COLUMNS": tuned.columns,
    }
    options = {
        "num_warps": tuned.warps,
        "num_stages": 1,
        "enable_fp_fusion": False,  # the reference's roundings decide the counts
        **({} if torch.version.hip else {"maxnreg": 128}),  # without it, ptxas may spill to fit one more program
    }
    if not tuned.epilogue:
        return (Launch(kernel, fixed, options),)
    return (
        Launch(maps_kernel, fixed, options),
        Launch(counts_kernel, fixed, options | {"num_warps": tuned.epilogue}),
    )


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
    make_maps(
        b, features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
        C, P, K, MAPS, CHANNELS_LAST, BC, BP, PL,
    )  # fmt: skip
    tl.debug_barrier()
    make_counts(
        b, weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
        logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
        P, w, K, MAPS, RELU, LOW, FULL, STEPS, BP * PL, COLUMNS,
    )  # fmt: skip


@triton.jit
def maps_kernel(  # type: ignore[no-untyped-def]
    features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Read the features of sample b; write its class maps and logits. The first of two kernels."""
    make_maps(
        tl.program_id(0).to(tl.int64), features, stride, weight, bias, classes, alpha, known_logits, maps, means,
        logits, C, P, K, MAPS, CHANNELS_LAST, BC, BP, PL,
    )  # fmt: skip


@triton.jit
def counts_kernel(  # type: ignore[no-untyped-def]
    weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr,
    FULL: tl.constexpr, STEPS: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Read class maps, logits and ROI of sample b; write everything else. The second of two kernels."""
    make_counts(
        tl.program_id(0).to(tl.int64), weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words,
        slope, threshold, maps, logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection,
        soft_area, P, w, K, MAPS, RELU, LOW, FULL, STEPS, BP * PL, COLUMNS,
    )  # fmt: skip


@triton.jit
def make_maps(  # type: ignore[no-untyped-def]
    b, features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Write logits and class maps of sample b: the maps of all classes, or that of the explained one if pooled."""
    features += b * stride
    class_map = maps + b * (MAPS * P)
    logits += b * K
    LOGITS: tl.constexpr = min(triton.next_power_of_2(K), 1024)
    if weight is None:
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
        explained = triton_head.describe(logits, K, LOGITS)[0]
        if classes is not None:
            explained = tl.load(classes + b).to(tl.int32)
        project(features, weight + explained * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)


@triton.jit
def make_counts(  # type: ignore[no-untyped-def]
    b, weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr,
    FULL: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what follows from the class maps and logits of sample b. The class map is normalised in place."""
    class_map = maps + b * (MAPS * P)
    bits += b * W * words
    divisor = 1.0 if weight is None else P * 1.0
    top, h, finite = triton_head.describe(logits + b * K, K, min(triton.next_power_of_2(K), 1024))
    if MAPS > 1:
        explained = top
        if classes is not None:
            explained = tl.load(classes + b).to(tl.int32)
        class_map += explained * P
    finite = finite & triton_overlap.normalise(class_map, divisor, P, RELU, LOW, BLOCK)
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
