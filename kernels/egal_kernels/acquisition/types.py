"""What `acquire` returns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from egal_kernels.shared.checks import check_choice

EMPTY = {"nan": float("nan"), "zero": 0.0, "one": 1.0}  # policy → Dice of a sample whose ROI is empty


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What a strategy can use of B samples. Floats are f32, or f64 if the features were.

    Areas are in pixels of the ROI. If the features, logits or class map of a sample contain a NaN or an infinity, its
    entropy and soft sums are NaN, and its predicted class and counts are −1. The other samples are not affected.
    """

    logits: Tensor  # [B, K]
    entropy: Tensor  # [B] of softmax(logits), in nats
    predicted: Tensor  # [B] int64, the class of the greatest logit; the lowest class of a tie
    intersection: Tensor  # [B] int32, |CAM ≥ τ ∧ ROI|
    cam_area: Tensor  # [B] int32, |CAM ≥ τ|
    roi_area: Tensor  # [B] int32, |ROI|
    soft_intersection: Tensor  # [B] Σ CAM·ROI
    soft_area: Tensor  # [B] Σ CAM + |ROI|

    def dice(self, empty: Literal["nan", "zero", "one"] = "nan") -> Tensor:
        """Return the Dice of thresholded CAM and ROI, 2·|CAM ∧ ROI| / (|CAM| + |ROI|), [B] in [0, 1].

        Dice is NaN, under every policy, for a sample that is not finite.

        Args:
            empty: the value for a sample whose ROI is empty, whatever its CAM, since such a sample has no Dice.
        """
        return self._overlap(self.intersection, self.cam_area.double() + self.roi_area, empty)

    def soft_dice(self, empty: Literal["nan", "zero", "one"] = "nan") -> Tensor:
        """Return the Dice of the CAM's values and the ROI, 2·Σ CAM·ROI / (Σ CAM + |ROI|), [B] in [0, 1].

        Args:
            empty: as for `dice`.
        """
        return self._overlap(self.soft_intersection, self.soft_area.double(), empty)

    def _overlap(self, intersection: Tensor, total: Tensor, empty: str) -> Tensor:
        check_choice("empty", empty, EMPTY)
        dice = (2 * intersection.double() / total).masked_fill(self.roi_area == 0, EMPTY[empty])
        return dice.masked_fill(self.roi_area < 0, torch.nan).to(self.entropy.dtype)
