"""The reference: plain PyTorch on any device, and the oracle that every other backend is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.acquisition.conventions import RECIPES
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.roi import PackedRoi

# Full-resolution pixels at a time. On a CPU: 8 images of 224², few enough for the cache, enough to hide the dispatch
CHUNK_PIXELS = {"cpu": 8 * 224 * 224}
CHUNK_PIXELS_ACCELERATOR = 1 << 26


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
    """`egal_kernels.acquire` for checked arguments; features and maps are taken a chunk of the batch at a time.

    Logits and class maps are sums in float64, rounded once: in which order a backend adds up is no part of the rule.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    wide = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has no float64
    weight, bias, alpha = (x if x is None else x.to(wide) for x in (weight, bias, alpha))
    batch, height, width = roi.shape
    chunk = max(1, CHUNK_PIXELS.get(features.device.type, CHUNK_PIXELS_ACCELERATOR) // (height * width))
    heads, overlaps = [], []
    for start in range(0, max(batch, 1), chunk):
        part = slice(start, start + chunk)
        a = features[part].to(wide)  # [n, C, h, w]
        if weight is None:
            z, channel_weights = logits[part].to(dtype), alpha[part]  # type: ignore[index]
        else:
            z, channel_weights = _linear_head(a, weight, bias, None if classes is None else classes[part], dtype)
        class_map = torch.einsum("nc,nchw->nhw", channel_weights, a).to(dtype)
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


def _linear_head(
    a: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Logits [n, K], rounded, and Grad-CAM channel weights [n, C] of a linear head on global average pooling.

    z_k = Σ_c W[k, c]·mean(A_c) + b_k, hence ∂z_k/∂A_c = W[k, c]/(h·w) at every position: its mean needs no backward.
    """
    logits = F.linear(a.mean((2, 3)), weight, bias).to(dtype)
    explained = logits.argmax(1) if classes is None else classes
    return logits, weight[explained] / (a.shape[2] * a.shape[3])


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, [B]: −Σ p·log p, with 0·log 0 = 0 however far apart the logits are."""
    log_p = logits.log_softmax(1).clamp_min(torch.finfo(logits.dtype).min)  # −inf·0 would be NaN
    return 0 - (log_p.exp() * log_p).sum(1)


def _overlap(cam: Tensor, roi: PackedRoi, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """|cam ≥ τ ∧ ROI|, |cam ≥ τ|, Σ cam·ROI and Σ cam, each [n], of maps [n, H, W]; overwrites `cam`."""
    mask = roi.unpack(cam.dtype)  # 0 and 1 as floats: PyTorch multiplies and sums these several times faster than bools
    soft_intersection, soft_cam = (cam * mask).sum((1, 2)), cam.sum((1, 2))
    hit = cam.ge_(threshold)
    cam_area = _count(hit)
    return _count(hit.mul_(mask)), cam_area, soft_intersection, soft_cam


def _count(mask: Tensor) -> Tensor:
    """Ones of a 0/1 float mask [n, H, W], int32 [n]: rows summed as floats, exact to 2²⁴ columns, then as integers."""
    return mask.sum(2).int().sum(1, dtype=torch.int32)
