"""What `acquire` returns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egal_kernels.checks import check_choice

EMPTY = {"nan": float("nan"), "zero": 0.0, "one": 1.0}  # policy → Dice of a sample whose ROI is empty


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What B samples tell a strategy; floats are f32, or f64 where the features were.

    Areas are in pixels of the ROI. A sample with a NaN or an infinity in its features, logits or class map has NaN for
    entropy and soft sums, and −1 for predicted class and counts; the other samples of its batch are untouched.
    """

    logits: Tensor  # [B, K]
    entropy: Tensor  # [B] nats, of softmax(logits)
    predicted: Tensor  # [B] int64, the lowest class of a tie
    intersection: Tensor  # [B] int32, |CAM ≥ τ ∧ ROI|
    cam_area: Tensor  # [B] int32, |CAM ≥ τ|
    roi_area: Tensor  # [B] int32, |ROI|
    soft_intersection: Tensor  # [B] Σ CAM·ROI
    soft_area: Tensor  # [B] Σ CAM + |ROI|

    def dice(self, empty: Literal["nan", "zero", "one"] = "nan") -> Tensor:
        """Dice of thresholded CAM and ROI, 2·|CAM ∧ ROI| / (|CAM| + |ROI|), [B] in [0, 1].

        An empty ROI has no Dice: `empty` is its value whatever the CAM, an empty CAM included. NaN where the sample was
        not finite, under every policy.
        """
        return self._overlap(self.intersection, self.cam_area.double() + self.roi_area, empty)

    def soft_dice(self, empty: Literal["nan", "zero", "one"] = "nan") -> Tensor:
        """Dice of the CAM's values and the ROI, 2·Σ CAM·ROI / (Σ CAM + |ROI|), [B] in [0, 1]; `empty` as in `dice`."""
        return self._overlap(self.soft_intersection, self.soft_area.double(), empty)

    def _overlap(self, intersection: Tensor, total: Tensor, empty: str) -> Tensor:
        check_choice("empty", empty, EMPTY)
        dice = (2 * intersection.double() / total).masked_fill(self.roi_area == 0, EMPTY[empty])
        return dice.masked_fill(self.roi_area < 0, torch.nan).to(self.entropy.dtype)
