"""The loss op: 1 − soft Dice of Grad-CAM and ROI, differentiable, without a map at the ROI's resolution."""

from egal_kernels.loss.op import cam_loss

__all__ = ["cam_loss"]
