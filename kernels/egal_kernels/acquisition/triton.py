"""The Triton backend for CUDA and ROCm: one launch per batch, or two, each of whose programs takes whole samples."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from egal_kernels.acquisition.heads import ExplainedLogits, Head, LinearHead
from egal_kernels.acquisition.triton_kernels import counts_kernel, kernel, maps_kernel, stream_kernel
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.roi import PackedRoi
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

# A program of several samples copies this many tiles of features ahead. Of 8 kB each, they are more than an H100 needs
# to keep its memory busy; seven would take so much shared memory that fewer programs fit.
TILES_AHEAD = 3


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
    if tuned.samples > 1 and not pooled:
        ahead = {"SAMPLES": tuned.samples, "TILES_AHEAD": TILES_AHEAD}
        return (Launch(stream_kernel, fixed | ahead, options, tuned.samples),)
    if not tuned.epilogue:
        return (Launch(kernel, fixed, options),)
    return (
        Launch(maps_kernel, fixed, options),
        Launch(counts_kernel, fixed, options | {"num_warps": tuned.epilogue}),
    )


INTERPRETED = not isinstance(kernel, triton.JITFunction)  # whether TRITON_INTERPRET=1 was set before the import
