"""The labelled samples of a round, and their augmentation: one flip and one shift per image, its ROI with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_kernels import PackedRoi, pack_roi


@dataclass(frozen=True, eq=False)
class Samples:
    """L labelled samples on one device.

    Attributes:
        images: uint8 or uint16 [L, C, H, W].
        labels: int64 [L].
        roi: their ROIs; None where training does not read them.
    """

    images: Tensor
    labels: Tensor
    roi: PackedRoi | None = None


def augmented(samples: Samples, rows: np.ndarray, rng: np.random.Generator) -> Samples:
    """Return the samples at `rows`, each mirrored with probability ½ and shifted by up to 1/16 of its side."""
    images, roi = samples.images, samples.roi
    side = images.shape[-1]
    reach = side // 16
    shifts = rng.integers(0, 2 * reach + 1, size=(len(rows), 2))
    flip = rng.random(len(rows)) < 0.5
    draws = torch.from_numpy(np.column_stack([rows, shifts, flip]))
    chosen, down, right, mirrored = uploaded(draws, images.device).unbind(1)
    pixels = _pixels(down, right, mirrored > 0, side, reach)
    # every device can move int16, but not uint16
    bits = images.view(torch.int16) if images.dtype == torch.uint16 else images
    moved = _moved(bits[chosen], pixels, reach).view(images.dtype)
    if roi is not None:
        roi = pack_roi(_moved(roi[chosen].unpack()[:, None], pixels, reach)[:, 0])
    return Samples(moved, samples.labels[chosen], roi)


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor`, of the CPU, on `device`, by one copy for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _pixels(down: Tensor, right: Tensor, mirrored: Tensor, side: int, reach: int) -> Tensor:
    """Return where each pixel of the moved planes stands in the padded ones, int64 [B, H·W].

    Args:
        down: int64 [B], row of the padded plane that becomes the first one.
        right: int64 [B], its first column.
        mirrored: bool [B].
        side: pixels per side, H = W.
        reach: pixels of padding on each side.
    """
    steps = torch.arange(side, device=down.device)
    columns = torch.where(mirrored[:, None], steps.flip(0), steps) + right[:, None]
    return ((steps + down[:, None])[:, :, None] * (side + 2 * reach) + columns[:, None, :]).flatten(1)


def _moved(planes: Tensor, pixels: Tensor, reach: int) -> Tensor:
    """Return `planes` [B, C, H, W], padded with zeros by `reach`, at `pixels` int64 [B, H·W]."""
    padded = F.pad(planes, (reach, reach, reach, reach)).flatten(2)
    return padded.gather(2, pixels[:, None].expand(-1, planes.shape[1], -1)).view(planes.shape)
