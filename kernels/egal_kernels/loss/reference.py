"""The reference backend: plain differentiable PyTorch on any device, against which every other backend is tested."""

import torch
from torch import Tensor

from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.roi import PackedRoi


def cam_loss(features: Tensor, weight: Tensor, roi: PackedRoi, classes: Tensor, convention: str) -> Tensor:
    """Do `egal_kernels.cam_loss` for checked arguments. Autograd keeps maps at the ROI's resolution for backward."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    area = roi.area()
    empty = area == 0
    # a sample without ROI has neither NaN nor gradient, whatever its features
    a = features.to(dtype).masked_fill(empty[:, None, None, None], 0)
    alpha = weight.to(dtype)[classes] / (a.shape[2] * a.shape[3])  # [B, C]
    class_map = torch.einsum("bc,bchw->bhw", alpha, a)
    finite = class_map.isfinite().flatten(1).all(1)
    class_map = class_map * torch.where(finite, 1.0, torch.nan)[:, None, None]
    cam = RECIPES[convention](class_map, roi.shape[1:])
    intersection, total = (cam * roi.unpack(dtype)).sum((1, 2)), cam.sum((1, 2)) + area
    return (1 - 2 * intersection / total.masked_fill(empty, 1)).masked_fill(empty, 0)
