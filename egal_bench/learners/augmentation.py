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
    reach = images.shape[-1] // 16
    shifts = rng.integers(0, 2 * reach + 1, size=(len(rows), 2))
    flip = torch.from_numpy(rng.random(len(rows)) < 0.5).to(images.device)
    # every device can move int16, but not uint16
    bits = images.view(torch.int16) if images.dtype == torch.uint16 else images
    moved = _moved(bits[rows], shifts, flip, reach).view(images.dtype)
    if roi is not None:
        roi = pack_roi(_moved(roi[torch.from_numpy(rows)].unpack()[:, None], shifts, flip, reach)[:, 0])
    return Samples(moved, samples.labels[rows], roi)


def _moved(planes: Tensor, shifts: np.ndarray, flip: Tensor, reach: int) -> Tensor:
    """Return `planes` [B, C, H, W] padded by `reach`, cropped at `shifts` [B, 2] (y, x), mirrored where `flip` [B]."""
    side = planes.shape[-1]
    padded = F.pad(planes, (reach, reach, reach, reach))
    cropped = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, shifts, strict=True)])
    return torch.where(flip[:, None, None, None], cropped.flip(-1), cropped)
