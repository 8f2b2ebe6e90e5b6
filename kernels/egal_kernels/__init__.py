"""Kernels: feature maps and ROIs in; logits, entropy, overlap of CAM and ROI, and its gradients out.

Each name is imported on first use, so that `egal_kernels.conventions` and `egal_kernels.ArgumentError` can be used
without loading PyTorch.

Imports inside the package go one way: `errors`, `conventions` and `methods` import nothing of the package; `shared`
imports only those; the ops `acquisition`, `loss` and `explanation` import those and `shared`, and never each other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egal_kernels.acquisition import Acquisition, acquire
    from egal_kernels.errors import ArgumentError
    from egal_kernels.explanation import Explanation, explain, linear_head
    from egal_kernels.loss import cam_loss
    from egal_kernels.shared.roi import PackedRoi, pack_boxes, pack_roi

_MODULES = {
    "Acquisition": "acquisition",
    "ArgumentError": "errors",
    "Explanation": "explanation",
    "PackedRoi": "shared.roi",
    "acquire": "acquisition",
    "cam_loss": "loss",
    "explain": "explanation",
    "linear_head": "explanation",
    "pack_boxes": "shared.roi",
    "pack_roi": "shared.roi",
}

__all__ = [
    "Acquisition",
    "ArgumentError",
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
