"""Bilinear resizing of maps in PyTorch, and the source points and weights that every backend resizes with."""

from functools import lru_cache

import torch
from torch import Tensor


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `maps` [B, h, w] to `size` (H, W): bilinear, half-pixel centres, clamped at the border, no antialiasing.

    It samples as `F.interpolate(align_corners=False)` and `cv2.resize(INTER_LINEAR)` do; along x, then along y.
    """
    return _resize_axis(_resize_axis(maps, 2, size[1]), 1, size[0])


def _resize_axis(maps: Tensor, dim: int, size: int) -> Tensor:
    """Compute a + t·(b − a) along `dim` between source neighbours a and b. Every operation is rounded, none is fused.

    Every value therefore lies between a and b and is monotone in t: between two source rows, a resized column crosses a
    threshold at most once.
    """
    n = maps.shape[dim]
    source, t = taps(n, size, maps.dtype, maps.device)
    step = maps.diff(dim=dim, append=maps.narrow(dim, n - 1, 1))  # b − a; 0 after the last point, which clamps there
    t = t.unsqueeze(1) if dim == 1 else t
    return step.index_select(dim, source).mul_(t).add_(maps.index_select(dim, source))


@lru_cache(maxsize=64)  # a dozen small operations, which would cost as much per chunk as a pass over its maps
def taps(n: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how `size` outputs are interpolated from n source points.

    Output i is a + t[i]·(b − a), where a is source point source[i] and b the next one, or a again at the end.

    Returns source, int64 [size], and t, [size] of `dtype` in [0, 1).
    """
    with torch.inference_mode(False):  # a later call may need these tensors for a backward pass
        # The source coordinate (i + ½)·n/size − ½ in units of 1/(2·size) is an integer, so it is exact in every dtype.
        # The division is done on the CPU: CUDA multiplies by the inverse of a number, which rounds differently.
        position = torch.arange(1, 2 * size, 2).mul_(n).sub_(size).clamp_min_(0)
        t = (position % (2 * size)).to(dtype).div_(2 * size)
        return (position // (2 * size)).to(device), t.to(device)
