"""From a class map to the map that is compared with the ROI: a named recipe for each library."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """Class map [B, h, w], (H, W) → map [B, H, W]: ReLU, min-max, bilinear resize, min-max, of which some are left out.

    A min-max is given by its ε, None where there is none: subtract the minimum, divide by ε + the maximum of what is
    left. A constant map gives zeros, whatever the ε.
    """

    relu: bool
    low: float | None  # ε of the min-max at low resolution
    full: float | None  # ε of the min-max at full resolution

    def __call__(self, class_map: Tensor, size: tuple[int, int]) -> Tensor:
        low = torch.relu(class_map) if self.relu else class_map
        full = resize(low if self.low is None else _min_max(low, self.low), size)
        return full if self.full is None else _min_max(full, self.full)


RECIPES = {  # the names are those of egal_kernels.conventions
    "grad-cam": Recipe(relu=True, low=1e-7, full=1e-7),  # BaseCAM.forward of pytorch-grad-cam 1.5
    "torchcam": Recipe(relu=True, low=1e-8, full=None),  # GradCAM of torchcam 0.5
    "monai": Recipe(relu=True, low=None, full=0.0),  # GradCAM of MONAI 1.6, its default normaliser turned upright
    "captum": Recipe(relu=False, low=None, full=0.0),  # LayerGradCam and LayerAttribution.interpolate of Captum 0.9
    "author": Recipe(relu=True, low=None, full=1e-8),
}


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`maps` [B, h, w] at `size` (H, W): bilinear, half-pixel centres, clamped at the border, no antialiasing.

    The sampling of `F.interpolate(align_corners=False)` and `cv2.resize(INTER_LINEAR)`; along x, then along y.
    """
    return _resize_axis(_resize_axis(maps, 2, size[1]), 1, size[0])


def _resize_axis(maps: Tensor, dim: int, size: int) -> Tensor:
    """a + t·(b − a) along `dim` between source neighbours a and b; each operation is rounded, none is fused.

    So written, every value lies between a and b and moves monotonically with t: where a resized column passes a
    threshold between two source rows, it does so once.
    """
    n = maps.shape[dim]
    source, t = taps(n, size, maps.dtype, maps.device)
    step = maps.diff(dim=dim, append=maps.narrow(dim, n - 1, 1))  # b − a; 0 past the last, which is the clamp there
    t = t.unsqueeze(1) if dim == 1 else t
    return step.index_select(dim, source).mul_(t).add_(maps.index_select(dim, source))


@lru_cache(maxsize=64)  # a dozen small ops that would otherwise cost each chunk as much as a pass over its maps
def taps(n: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index of neighbour a, int64 [size], and weight t of neighbour b, [size] in [0, 1), resampling n to `size`."""
    with torch.inference_mode(False):  # a later call may need them for a backward pass
        # source coordinate (i + ½)·n/size − ½ in units of 1/(2·size): integers, so that it is exact in every dtype;
        # on the CPU, which divides: CUDA multiplies by the inverse of a number, and rounds otherwise
        position = torch.arange(1, 2 * size, 2).mul_(n).sub_(size).clamp_min_(0)
        t = (position % (2 * size)).to(dtype).div_(2 * size)
        return (position // (2 * size)).to(device), t.to(device)


def _min_max(maps: Tensor, epsilon: float) -> Tensor:
    """`maps` [B, ·, ·], each scaled to [0, 1]; a constant one is zeros, and so is its gradient."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    most = maps.amax((1, 2), keepdim=True)
    return maps / (most + epsilon).masked_fill(most == 0, torch.inf)
