"""Kernels: feature maps and ROIs in; logits, entropy, CAM-ROI overlap and its gradients out.

The names below are imported on first use: `egal_kernels.conventions` can be read without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egal_kernels.acquisition import Acquisition, acquire
    from egal_kernels.explanation import Explanation, explain, linear_head
    from egal_kernels.loss import cam_loss
    from egal_kernels.roi import PackedRoi, pack_boxes, pack_roi

_HOMES = {
    "Acquisition": "acquisition",
    "Explanation": "explanation",
    "PackedRoi": "roi",
    "acquire": "acquisition",
    "cam_loss": "loss",
    "explain": "explanation",
    "linear_head": "explanation",
    "pack_boxes": "roi",
    "pack_roi": "roi",
}

__all__ = [
    "Acquisition",
    "Explanation",
    "PackedRoi",
    "acquire",
    "cam_loss",
    "explain",
    "linear_head",
    "pack_boxes",
    "pack_roi",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
