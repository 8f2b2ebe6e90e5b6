# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, no-check-untyped-defs
"""The Triton backend for CUDA and ROCm: forward, one program per sample; backward, outer products."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from egal_kernels.loss import triton_dice
from egal_kernels.loss.corners import corners
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.resampling import taps
from egal_kernels.shared.roi import PackedRoi
from egal_kernels.shared.triton_class_maps import channels_at, load_tile, positions_at, project
from egal_kernels.shared.triton_launch import Launch, in_place, on_device, tile_of, tuning
from egal_kernels.shared.triton_resampling import axis_of

BLOCK = 2048  # a program writes this many elements of a gradient


def forward(
    features: Tensor, weight: Tensor, roi: PackedRoi, classes: Tensor, convention: str, moments: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [B], its slope in the class map [B, h, w], and its slope in the weights of the class [B, C].

    The latter is empty, [B, 0], unless `moments`.

    Kernels are compiled on first use, once for each combination of shapes, and Triton caches them on disk.
    """
    outputs, tensors, launch = prepared(features, weight, roi, classes, convention, moments)
    if len(features):
        with on_device(features.device):
            launch(len(features), tensors)
    return outputs


def features_gradient(
    grad: Tensor, weight: Tensor, classes: Tensor, slope: Tensor, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """Return the gradient of the features, grad_b·W[k_b, c]/(h·w)·slope[b], [B, C, h, w] of `dtype`."""
    batch, h, w = slope.shape
    channels = weight.shape[1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(batch, channels, h, w, dtype=dtype, device=grad.device, memory_format=layout)
    if batch:
        with on_device(grad.device):
            outer[(batch, triton.cdiv(channels * h * w, BLOCK))](
                grad.contiguous(), weight.contiguous(), classes.contiguous(), slope.contiguous(), out,
                channels, h * w, channels_last, BLOCK,
            )  # fmt: skip
    return out


def weight_gradient(grad: Tensor, classes: Tensor, moment: Tensor, count: int) -> Tensor:
    """Return the gradient of the weight, f32 [K, C]: Σ grad_b·moment[b] over each class, in the order of the batch."""
    batch, channels = moment.shape
    out = torch.empty(count, channels, device=grad.device)
    with on_device(grad.device):
        by_class[(count, triton.cdiv(channels, 128))](
            grad.contiguous(), classes.contiguous(), moment.contiguous(), out, batch, channels, 128
        )
    return out


@dataclass(frozen=True)
class Corners:
    """The `corners` of an axis, as tables on the device."""

    sources: Tensor  # int32 [N, 2], source points i and j: an output is i + t·(j − i)
    t: Tensor  # float64 [N]
    mass: Tensor  # float64 [n], the sum over all outputs of the weight of each source point


@lru_cache(maxsize=64)
def _corners(n: int, size: int, device: torch.device) -> Corners:
    """Return the tables of an axis on which n source points are resampled to `size` outputs."""
    a, t = (x.numpy() for x in taps(n, size, torch.float64, torch.device("cpu")))
    b = np.minimum(a + 1, n - 1)
    ends = corners(n, size)
    mass = np.bincount(a, 1 - t, n) + np.bincount(b, t, n)
    tables = np.stack([a[ends], b[ends]], 1).astype(np.int32), t[ends], mass
    return Corners(*(torch.from_numpy(x).to(device) for x in tables))


def prepared(
    features: Tensor, weight: Tensor, roi: PackedRoi, classes: Tensor, convention: str, moments: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor | None], Launch]:
    """Return the results of `forward`, not yet filled; the tensors of `kernel` by name; and its launch."""
    (batch, channels, h, w), device = features.shape, features.device
    features, channels_last = in_place(features)
    launch = _launch(
        (channels, h, w), features.stride(0), channels_last, device, (features.dtype, weight.dtype, classes.dtype),
        roi.shape[1:], convention, moments,
    )  # fmt: skip
    loss, slope = torch.empty(batch, device=device), torch.empty(batch, h, w, device=device)
    moment = torch.empty(batch, channels if moments else 0, device=device)
    tensors = {
        "features": features,
        "weight": weight.detach().contiguous(),
        "classes": classes.contiguous(),
        "bits": roi.bits.contiguous(),
        "low": torch.empty(batch, h * w, dtype=torch.float64, device=device),
        "near": torch.empty(batch, 2, launch.fixed["S"], launch.fixed["WP"], device=device),
        "loss": loss,
        "slope": slope,
        "moment": moment if moments else None,
    }
    return (loss, slope, moment), tensors, launch


@lru_cache(maxsize=64)
def _launch(
    shape: tuple[int, int, int], stride: int, channels_last: bool, device: torch.device,
    dtypes: tuple[torch.dtype, ...], size: tuple[int, int], convention: str, moments: bool,
) -> Launch:  # fmt: skip
    """Return the launch for batches of one shape: tables, sizes, constants and options of the compiler.

    Args:
        shape: C, h and w of the features.
        stride: elements from one sample's features to those of the next.
        channels_last: the layout of the features.
        device: where the kernel runs.
        dtypes: those of features, weight and classes. Each combination has a compiled kernel of its own.
        size: H and W of the ROI.
        convention: a key of RECIPES.
        moments: whether the kernel writes the slope in the weights; it then has a compiled kernel of its own.
    """
    (channels, h, w), (height, width) = shape, size
    tuned, recipe = tuning(channels, h * w, channels_last, 1, width), RECIPES[convention]
    columns, rows = axis_of(w, width, device), axis_of(h, height, device)
    column_corners, row_corners = _corners(w, width, device), _corners(h, height, device)
    padded = triton.next_power_of_2(w)
    fixed = {
        "stride": stride,
        "columns": columns.source,
        "column_t": columns.t,
        "segments": rows.segments,
        "moments": rows.moments,
        "row_corners": row_corners.sources,
        "row_corner_t": row_corners.t,
        "column_corners": column_corners.sources,
        "column_corner_t": column_corners.t,
        "row_mass": row_corners.mass,
        "column_mass": column_corners.mass,
        "S": len(rows.segments),
        "M": len(row_corners.t),
        "N": len(column_corners.t),
        "H": height,
        "W": width,
        "words": -(-height // 32),
        "step": h / height,
        "C": channels,
        "h": h,
        "w": w,
        "HP": triton.next_power_of_2(h),
        "WP": padded,
        "CORNERS": min(32, triton.next_power_of_2(len(column_corners.t))),
        "CHANNELS_LAST": channels_last,
        "RELU": recipe.relu,
        "LOW": -1.0 if recipe.low is None else recipe.low,
        "FULL": -1.0 if recipe.full is None else recipe.full,
        **tile_of(h * w, dtypes[0].itemsize, channels_last, tuned),
        "COLUMNS": min(tuned.columns, max(16, 2048 // padded)),  # a tile of [COLUMNS, WP]
    }
    # without a limit of registers, ptxas spills to fit more programs on a multiprocessor
    limit = {} if torch.version.hip else {"maxnreg": 128}
    return Launch(kernel, fixed, {"num_warps": 8, "num_stages": 1, **limit})


@triton.jit
def kernel(
    features, stride, weight, classes, bits,  # inputs
    columns, column_t, segments, moments, row_corners, row_corner_t, column_corners, column_corner_t,  # tables
    row_mass, column_mass, S, M, N, H, W, words, step,
    low, near,  # scratch that stays in the cache, [B, P] and [B, 2, S, WP]
    loss, slope, moment,
    C: tl.constexpr, h: tl.constexpr, w: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, FULL: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Process sample b of the batch. The threads of its program exchange data through memory, at barriers."""
    P: tl.constexpr = h * w
    b = tl.program_id(0).to(tl.int64)
    features += b * stride
    bits += b * W * words
    slope += b * P
    low += b * P
    near += b * (2 * S * WP)
    far = near + S * WP
    i, j = tl.arange(0, HP)[:, None], tl.arange(0, WP)[None, :]
    cells, inside_map = i * w + j, (i < h) & (j < w)
    area = triton_dice.gather(bits, columns, column_t, segments, moments, S, W, words, step, near, far, w, WP, COLUMNS)
    if area == 0:
        tl.store(loss + b, 0.0)
        tl.store(slope + cells, tl.zeros([HP, WP], tl.float32), mask=inside_map)
        if moment is not None:
            for c0 in range(0, C, 256):
                c = c0 + tl.arange(0, 256)
                tl.store(moment + b * C + c, tl.zeros([256], tl.float32), mask=c < C)
    else:
        weight += tl.load(classes + b) * C
        project(features, weight, slope, C, P, 1, CHANNELS_LAST, BC, BP, PL)  # P times the class map
        tl.debug_barrier()
        v = tl.load(slope + cells, mask=inside_map, other=0).to(tl.float64) * (1.0 / P)
        finite = triton_dice.total((tl.abs(v) < float("inf")).to(tl.int32)) == HP * WP
        if RELU:
            v = tl.where(v < 0, 0, v)
        bottom, top = triton_dice.range_of(v, inside_map)
        flat = bottom == top
        low_unit = 1.0 / tl.where(flat, 1, top - bottom + LOW)
        if LOW >= 0:
            v = tl.where(inside_map, (v - bottom) * low_unit, 0)
        tl.store(low + cells, v, mask=inside_map)
        tl.debug_barrier()
        least, most, unit = 0.0, 0.0, 1.0
        if FULL >= 0:
            least, most = triton_dice.extremes(
                low, row_corners, row_corner_t, column_corners, column_corner_t, M, N, w, CORNERS
            )
            flat = flat | (least == most)
            unit = 1.0 / tl.where(flat, 1, most - least + FULL)
        inside = triton_dice.assemble(near, far, segments, S, i, WP)
        mass = tl.load(row_mass + i, mask=i < h, other=0) * tl.load(column_mass + j, mask=j < w, other=0)
        size = H.to(tl.float64) * W
        overlap = (triton_dice.total(v * inside) - least * area) * unit
        cam = (triton_dice.total(v * mass) - least * size) * unit
        inverse_total = 1.0 / (cam + area)
        of_overlap, of_cam = -2 * inverse_total, 2 * overlap * inverse_total * inverse_total
        d = (of_overlap * inside + of_cam * mass) * unit
        if FULL >= 0:
            of_scale = -(of_overlap * overlap + of_cam * cam) * unit
            of_least = -(of_overlap * area + of_cam * size) * unit - of_scale
            d += triton_dice.spread(
                low, row_corners, row_corner_t, column_corners, column_corner_t, M, N, least, most,
                of_least, of_scale, i, w, WP, CORNERS,
            )  # fmt: skip
        if LOW >= 0:
            d = triton_dice.through_low(tl.load(low + cells, mask=inside_map, other=0), d, inside_map, low_unit)
        if RELU:
            d = tl.where(tl.load(slope + cells, mask=inside_map, other=0) > 0, d, 0)
        nan = float("nan")
        d = tl.where(finite, tl.where(flat, 0, d), nan)
        tl.store(loss + b, tl.where(finite, tl.where(flat, 1, 1 - 2 * overlap * inverse_total), nan).to(tl.float32))
        tl.store(slope + cells, d.to(tl.float32), mask=inside_map)
        if moment is not None:
            tl.debug_barrier()
            correlate(features, slope, moment + b * C, C, P, CHANNELS_LAST, BC, BP, PL)


@triton.jit
def correlate(
    features, slope, out,
    C: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Write Σ_p slope[p]·A_c[p] / P to `out` [C].

    The first channels come first: `project` has left them in the cache.
    """
    for c0 in range(0, C, BC):
        c = channels_at(c0, BC)
        sums = tl.zeros([BP, BC, PL], tl.float32)
        for p0 in range(0, P, BP * PL):
            p = positions_at(p0, BP, PL)
            d = tl.load(slope + p, mask=p < P, other=0)
            sums = tl.fma(load_tile(features, c, p, C, P, CHANNELS_LAST), d, sums)
        k = c0 + tl.arange(0, BC)
        tl.store(out + k, tl.sum(tl.sum(sums, 2), 0) / P, mask=k < C)


@triton.jit
def outer(
    grad, weight, classes, slope, out,
    C: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK elements of grad_b·W[k_b, c]/P·slope[b, p] for sample b, in the order of memory."""
    b = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c, p = (q % C, q // C) if CHANNELS_LAST else (q // P, q % P)
    inside = q < C * P
    share = tl.load(weight + tl.load(classes + b) * C + c, mask=inside, other=0).to(tl.float32) / P
    value = tl.load(grad + b) * share * tl.load(slope + b * P + p, mask=inside, other=0)
    tl.store(out + b * (C * P) + q, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def by_class(grad, classes, moment, out, B, C: tl.constexpr, BLOCK: tl.constexpr):
    """Write row k of the weight's gradient: Σ grad_b·moment[b] over the samples of class k, in their order."""
    k, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total, row = tl.zeros([BLOCK], tl.float32), moment + c
    for b in range(B):
        if tl.load(classes + b) == k:
            total += tl.load(grad + b) * tl.load(row, mask=c < C, other=0)
        row += C
    tl.store(out + k.to(tl.int64) * C + c, total, mask=c < C)


INTERPRETED = not isinstance(kernel, triton.JITFunction)  # whether TRITON_INTERPRET=1 was set before the import
