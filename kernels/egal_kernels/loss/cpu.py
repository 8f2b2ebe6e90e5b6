"""The CPU backend: it turns tensors into what the Numba kernels take, and their results into tensors."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from egal_kernels.loss import cpu_backward, cpu_forward
from egal_kernels.loss.corners import corners
from egal_kernels.loss.cpu_forward import Corners
from egal_kernels.shared.cpu_arrays import BITS, flat_samples, to_array
from egal_kernels.shared.cpu_resampling import axis_of, pieces_of
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.resampling import taps
from egal_kernels.shared.roi import PackedRoi
from egal_kernels.shared.threads import team


def forward(
    features: Tensor, weight: Tensor, roi: PackedRoi, classes: Tensor, convention: str, moments: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [B], its slope in the class map [B, h, w], and its slope in the weights of the class [B, C].

    The latter is empty, [B, 0], unless `moments`.
    """
    batch, height, width = roi.shape
    channels, h, w = features.shape[1:]
    recipe = RECIPES[convention]
    low_eps, full_eps = (-1.0 if eps is None else eps for eps in (recipe.low, recipe.full))
    loss, slope = np.empty(batch, np.float32), np.empty((batch, h, w), np.float32)
    moment = np.empty((batch, channels if moments else 0), np.float32)
    samples = flat_samples(features)
    geometry = axis_of(w, width), axis_of(h, height), pieces_of(h, height), (_corners(h, height), _corners(w, width))
    alpha = to_array(_alpha(weight, classes, h * w), torch.float64)
    bits = to_array(roi.bits, torch.int32).view(np.uint32)
    cpu_forward.forward(team(batch), *samples, alpha, bits, geometry, (recipe.relu, low_eps, full_eps), loss, slope,
                        moment)  # fmt: skip
    return torch.from_numpy(loss), torch.from_numpy(slope), torch.from_numpy(moment)


def features_gradient(
    grad: Tensor, weight: Tensor, classes: Tensor, slope: Tensor, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """Return the gradient of the features, grad_b·W[k_b, c]/(h·w)·slope[b], [B, C, h, w] of `dtype`."""
    batch, h, w = slope.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(batch, weight.shape[1], h, w, dtype=dtype, memory_format=layout)
    stored = (out.permute(0, 2, 3, 1) if channels_last else out).view(BITS[dtype])
    flat = stored.flatten(2 - channels_last, 3 - channels_last).numpy()
    grads, alpha, slopes = to_array(grad), to_array(_alpha(weight, classes, h * w)), to_array(slope.flatten(1))
    cpu_backward.features_gradient(team(batch), grads, alpha, slopes, channels_last, flat)
    return out


def weight_gradient(grad: Tensor, classes: Tensor, moment: Tensor, count: int) -> Tensor:
    """Return the gradient of the weight, f32 [K, C]: Σ grad_b·moment[b] over each class, in the order of the batch."""
    out = torch.zeros(count, moment.shape[1])
    cpu_backward.weight_gradient(to_array(grad), to_array(classes, torch.int64), to_array(moment), out.numpy())
    return out


def _alpha(weight: Tensor, classes: Tensor, positions: int) -> Tensor:
    """Return the Grad-CAM channel weights W[k_b, c]/(h·w), f32 [B, C]."""
    return weight.detach().float()[classes] / positions


@lru_cache(maxsize=64)
def _corners(n: int, size: int) -> Corners:
    """Return the corners of an axis, with their source points and weights."""
    source, t = (x.numpy()[corners(n, size)] for x in taps(n, size, torch.float64, torch.device("cpu")))
    return Corners(source, t)
