"""What `explain` returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `acquire` takes for any head. The map of sample i is Σ_c alpha[i, c]·features[i, c].

    No tensor of it requires grad.
    """

    features: Tensor  # [B, C, h, w]; for "hirescam" and "layercam", whose weights vary in space, the map: [B, 1, h, w]
    alpha: Tensor  # [B, C], f32, or f64 if the features were; for these two methods, ones [B, 1]
    logits: Tensor  # [B, K]
