"""The recipe of each convention: from a class map to the map that is compared with the ROI."""

from dataclasses import dataclass

import torch
from torch import Tensor

from egal_kernels.shared.resampling import resize


@dataclass(frozen=True)
class Recipe:
    """Steps from a class map [B, h, w] to a map [B, H, W]: ReLU, min-max, bilinear resize, min-max.

    Some steps may be left out. A min-max is given by its ε: it subtracts the minimum, then divides by ε plus the
    maximum of the result. A constant map gives zeros, whatever the ε.
    """

    relu: bool
    low: float | None  # ε of the min-max at low resolution, before the resize; None leaves it out
    full: float | None  # ε of the min-max at full resolution, after the resize; None leaves it out

    def __call__(self, class_map: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the map [B, H, W] of a class map [B, h, w], where `size` is (H, W)."""
        low = torch.relu(class_map) if self.relu else class_map
        full = resize(low if self.low is None else _min_max(low, self.low), size)
        return full if self.full is None else _min_max(full, self.full)


RECIPES = {  # the names are the keys of egal_kernels.conventions.CONVENTIONS
    "grad-cam": Recipe(relu=True, low=1e-7, full=1e-7),  # BaseCAM.forward of pytorch-grad-cam 1.5
    "torchcam": Recipe(relu=True, low=1e-8, full=None),  # GradCAM of torchcam 0.5
    "monai": Recipe(relu=True, low=None, full=0.0),  # GradCAM of MONAI 1.6; its default inverts the map
    "captum": Recipe(relu=False, low=None, full=0.0),  # LayerGradCam and LayerAttribution.interpolate of Captum 0.9
    "author": Recipe(relu=True, low=None, full=1e-8),
}


def _min_max(maps: Tensor, epsilon: float) -> Tensor:
    """Scale each of `maps` [B, ·, ·] to [0, 1]. A constant map gives zeros, and its gradient is zero."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    most = maps.amax((1, 2), keepdim=True)
    return maps / (most + epsilon).masked_fill(most == 0, torch.inf)
