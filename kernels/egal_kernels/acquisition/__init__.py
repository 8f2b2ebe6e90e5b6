"""The acquisition op: logits, entropy and the overlap of CAM and ROI, from one read of a feature map."""

from egal_kernels.acquisition.op import acquire
from egal_kernels.acquisition.types import Acquisition

__all__ = ["Acquisition", "acquire"]
