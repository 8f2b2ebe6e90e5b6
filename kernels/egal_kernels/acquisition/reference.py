"""The reference backend: plain PyTorch on any device, against which every other backend is tested."""

import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.acquisition.heads import Head, LinearHead
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.roi import PackedRoi

# Pixels at full resolution per chunk. On a CPU, 8 images of 224²: they fit into the cache, and there are enough of them
# that the cost of dispatching operations is small
CHUNK_PIXELS = {"cpu": 8 * 224 * 224}
CHUNK_PIXELS_ACCELERATOR = 1 << 26


def acquire(features: Tensor, head: Head, roi: PackedRoi, *, threshold: float, convention: str) -> Acquisition:
    """Do `egal_kernels.acquire` for checked arguments, on one chunk of the batch at a time.

    Logits and class maps are sums in float64, rounded once: the order in which a backend adds does not matter.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    wide = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has no float64
    batch, height, width = roi.shape
    chunk = max(1, CHUNK_PIXELS.get(features.device.type, CHUNK_PIXELS_ACCELERATOR) // (height * width))
    heads, overlaps = [], []
    for start in range(0, max(batch, 1), chunk):
        part = slice(start, start + chunk)
        a = features[part].to(wide)  # [n, C, h, w]
        if isinstance(head, LinearHead):
            z, alpha = _linear_head(a, head, part, dtype)
        else:
            z, alpha = head.logits[part].to(dtype), head.alpha[part].to(wide)
        class_map = torch.einsum("nc,nchw->nhw", alpha, a).to(dtype)
        heads.append((z, class_map))
        overlaps.append(_overlap(RECIPES[convention](class_map, (height, width)), roi[part], threshold))
    z, class_map = map(torch.cat, zip(*heads, strict=True))
    finite = z.isfinite().all(1) & class_map.isfinite().flatten(1).all(1)
    intersection, cam_area, soft_intersection, soft_cam = map(torch.cat, zip(*overlaps, strict=True))
    roi_area = roi.area()
    return Acquisition(
        logits=z,
        entropy=torch.where(finite, _entropy(z), torch.nan),
        predicted=torch.where(finite, z.argmax(1), -1),
        intersection=torch.where(finite, intersection, -1),
        cam_area=torch.where(finite, cam_area, -1),
        roi_area=torch.where(finite, roi_area, -1),
        soft_intersection=torch.where(finite, soft_intersection, torch.nan),
        soft_area=torch.where(finite, soft_cam + roi_area, torch.nan),
    )


def _linear_head(a: Tensor, head: LinearHead, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the logits [n, K], rounded to `dtype`, and the Grad-CAM channel weights [n, C] of a linear head.

    z_k = Σ_c W[k, c]·mean(A_c) + b_k, hence ∂z_k/∂A_c = W[k, c]/(h·w) at every position. The mean of that over the
    positions needs no backward pass.

    Args:
        a: the features [n, C, h, w] of samples `part`.
        head: the head of all samples.
        part: which samples of the batch these are.
        dtype: the dtype of the logits.
    """
    weight, bias = head.weight.to(a.dtype), None if head.bias is None else head.bias.to(a.dtype)
    logits = F.linear(a.mean((2, 3)), weight, bias).to(dtype)
    explained = logits.argmax(1) if head.classes is None else head.classes[part]
    return logits, weight[explained] / (a.shape[2] * a.shape[3])


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits), [B] in nats: −Σ p·log p, with 0·log 0 = 0 for any logits."""
    log_p = logits.log_softmax(1).clamp_min(torch.finfo(logits.dtype).min)  # −inf·0 would be NaN
    return 0 - (log_p.exp() * log_p).sum(1)


def _overlap(cam: Tensor, roi: PackedRoi, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return |cam ≥ τ ∧ ROI|, |cam ≥ τ|, Σ cam·ROI and Σ cam, each [n], of maps [n, H, W]; overwrite `cam`."""
    mask = roi.unpack(cam.dtype)  # PyTorch multiplies and sums floats several times faster than bools
    soft_intersection, soft_cam = (cam * mask).sum((1, 2)), cam.sum((1, 2))
    hit = cam.ge_(threshold)
    cam_area = _count(hit)
    return _count(hit.mul_(mask)), cam_area, soft_intersection, soft_cam


def _count(mask: Tensor) -> Tensor:
    """Count the ones of a float mask [n, H, W], int32 [n].

    Rows are summed as floats, which is exact for up to 2²⁴ columns, and their sums as integers.
    """
    return mask.sum(2).int().sum(1, dtype=torch.int32)
