"""The acquisition op: logits, entropy and CAM-ROI overlap from one read of the last feature map."""

from egal_kernels.acquisition.op import acquire
from egal_kernels.acquisition.types import Acquisition

__all__ = ["Acquisition", "acquire"]
