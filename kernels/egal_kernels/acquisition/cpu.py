"""The CPU backend: what its Numba kernel takes and returns, as tensors."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.acquisition import cpu_head, cpu_kernel
from egal_kernels.acquisition.conventions import RECIPES, taps
from egal_kernels.acquisition.cpu_overlap import Axis, Pieces
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.roi import WORD, PackedRoi
from egal_kernels.threads import team

# float32 weights of a head that stays in a core's cache beside a sample. A larger one is a GEMM over the whole batch,
# at the price of reading the features a second time.
CACHED_WEIGHTS = 1 << 16

# NumPy has no bfloat16 and Numba computes with no float16: the kernels take their bits
BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}

NO_HEAD = [np.empty((0, 0)), np.empty(0), np.empty(0, np.int64)]  # weight, bias, classes
OUT = np.float32, np.int64, np.int32, np.int32, np.int32, np.float32, np.float32  # an Acquisition but for its logits


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
) -> Acquisition:
    """`egal_kernels.acquire` for checked arguments on the CPU; features f32, bf16 or f16."""
    batch, height, width = roi.shape
    h, w = features.shape[2:]
    samples = flat_samples(features)
    if weight is not None and weight.numel() > CACHED_WEIGHTS:
        weight, alpha, logits = None, *_large_head(features, samples, weight, bias, classes)
    if weight is None:
        head = [*NO_HEAD, to_array(alpha, torch.float64), to_array(logits).copy()]
    else:
        z = np.empty((batch, len(weight)), np.float32)
        head = [to_array(weight, torch.float64),
                np.zeros(len(weight)) if bias is None else to_array(bias, torch.float64),
                NO_HEAD[2] if classes is None else to_array(classes, torch.int64), NO_HEAD[0], z]  # fmt: skip
    recipe = RECIPES[convention]
    steps = recipe.relu, *(np.float32(-1 if eps is None else eps) for eps in (recipe.low, recipe.full))
    geometry = (h, w), axis_of(w, width), axis_of(h, height), pieces_of(h, height)
    bits = to_array(roi.bits, torch.int32).view(np.uint32)
    out = tuple(np.empty(batch, kind) for kind in OUT)
    cpu_kernel.acquire(team(batch), *samples, *head, bits, geometry, steps, np.float32(threshold), out)
    return Acquisition(*map(torch.from_numpy, (head[-1], *out)))


def _large_head(
    features: Tensor, samples: tuple[np.ndarray, bool], weight: Tensor, bias: Tensor | None, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """alpha [B, C] and logits [B, K], by a GEMM over the whole batch: its weights would not stay in a core's cache."""
    means = torch.empty(features.shape[:2], dtype=torch.float64)
    cpu_head.pool(team(len(means)), *samples, means.numpy())
    logits = F.linear(means.float(), weight.float(), None if bias is None else bias.float())
    explained = logits.argmax(1) if classes is None else classes
    return weight[explained].double() / features[0, 0].numel(), logits


def flat_samples(features: Tensor) -> tuple[np.ndarray, bool]:
    """Features as a contiguous array [B, C, h·w] or, if True goes with it, [B, h·w, C]; copied if strided otherwise."""
    channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    a = features.detach().permute(0, 2, 3, 1) if channels_last else features.detach().contiguous()
    return a.view(BITS[features.dtype]).flatten(2 - channels_last, 3 - channels_last).numpy(), channels_last


def to_array(x: Tensor | None, dtype: torch.dtype = torch.float32) -> np.ndarray:
    assert x is not None  # checked by the op
    x = x.detach()
    return (x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()).numpy()


@lru_cache(maxsize=64)
def axis_of(n: int, size: int) -> Axis:
    """How `resize` takes n source points to `size`; the weights t are its own."""
    sources, t = (x.numpy() for x in taps(n, size, torch.float32, torch.device("cpu")))
    source, first = np.unique(sources, return_index=True)
    mass = np.bincount(sources, 1 - t.astype(np.float64), n)
    mass += np.bincount(np.minimum(sources + 1, n - 1), t, n)
    return Axis(source, first, np.append(first[1:], size), t, mass)


@lru_cache(maxsize=64)
def pieces_of(n: int, size: int) -> Pieces:
    """[0, size) cut where the source point changes, where the clamp at the border ends, every 32 rows from there."""
    axis = axis_of(n, size)
    clamped = max(0, -(-(size - n) // (2 * n)))  # rows y with (2·y + 1)·n < size have t = 0
    cuts = np.unique([*axis.first, min(clamped, size), size])
    first = np.concatenate([np.arange(*cut, WORD) for cut in pairwise(cuts)])
    length = np.diff(first, append=size)
    interval = np.searchsorted(axis.first, first, side="right") - 1
    inside = first >= clamped
    t0 = ((2 * first + 1) * n - size) / (2 * size) - axis.source[interval]
    masks = ((1 << length) - 1).astype(np.uint32)
    return Pieces(interval, first // WORD, (first % WORD).astype(np.uint32), masks,
                  np.where(inside, t0, 0), np.where(inside, n / size, 0))  # fmt: skip
