"""Made-up samples for training: a bright square on noise, whose place is the class and whose mask is the ROI."""

import numpy as np
import torch


def squares(count: int, size: int = 32, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images uint8 [N, 1, H, W], labels int64 [N] of three classes, and masks bool; every fifth is empty."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (count, 1, size, size), dtype=np.uint8)
    masks, labels = np.zeros((count, size, size), bool), rng.integers(0, 3, count)
    for i, label in enumerate(labels):
        y, x = 4 + 8 * label, rng.integers(2, size - 10)
        masks[i, y : y + 7, x : x + 7] = True
        images[i, 0, y : y + 7, x : x + 7] += 150
    masks[::5] = False
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


def moved_by(plane: np.ndarray, shift: np.ndarray, flip: bool) -> np.ndarray:
    """Return `plane` [H, W] moved by `shift` (y, x), then mirrored left to right if `flip`.

    A shift of side // 16 moves nothing; smaller ones move the image down and right, larger ones up and left.
    """
    side = len(plane)
    y, x = shift
    moved = np.pad(plane, side // 16)[y : y + side, x : x + side]
    return moved[:, ::-1] if flip else moved
