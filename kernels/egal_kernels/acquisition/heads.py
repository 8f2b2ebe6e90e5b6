"""The two forms in which `acquire` is given a head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from egal_kernels.errors import ArgumentError
from egal_kernels.shared.checks import FLOATS, check_tensor


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear head on global average pooling, whose logits and explanation the op computes itself."""

    weight: Tensor  # [K, C]
    bias: Tensor | None  # [K]
    classes: Tensor | None  # int64 [B], the classes to explain; None explains the predicted ones

    @property
    def count(self) -> int:
        """The number of classes K."""
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class ExplainedLogits:
    """The logits of any other head, and the Grad-CAM channel weights of the logits to explain."""

    alpha: Tensor  # [B, C]
    logits: Tensor  # [B, K]

    @property
    def count(self) -> int:
        """The number of classes K."""
        return self.logits.shape[1]


Head = LinearHead | ExplainedLogits


def head_of(
    weight: Tensor | None, bias: Tensor | None, classes: Tensor | None, alpha: Tensor | None, logits: Tensor | None
) -> Head:
    """Return the head that the arguments of `acquire` describe. Raise ArgumentError if they do not describe one."""
    if (weight is None) == (alpha is None):
        state = "neither" if weight is None else "both"
        raise ArgumentError(f"weight, alpha: give weight (a linear head) or alpha with logits (any head), got {state}")
    if weight is not None:
        if logits is not None:
            raise ArgumentError("logits: goes with alpha; with weight the logits are computed, so leave it out")
        return LinearHead(weight, bias, classes)
    for name, value in (("bias", bias), ("classes", classes)):
        if value is not None:
            raise ArgumentError(f"{name}: goes with weight; alpha already is that of one class, so leave it out")
    return ExplainedLogits(alpha, logits)  # type: ignore[arg-type]  # check_head names what is missing


def check_head(head: Head, sizes: dict[str, int], device: torch.device) -> None:
    """Raise ArgumentError if a tensor of the head does not fit features of `sizes` (B and C) on `device`."""
    if isinstance(head, LinearHead):
        check_tensor("weight", head.weight, "K C", sizes, FLOATS, device)
        if head.bias is not None:
            check_tensor("bias", head.bias, "K", sizes, FLOATS, device)
        if head.classes is not None:
            check_tensor("classes", head.classes, "B", sizes, [torch.int64], device)
    else:
        check_tensor("alpha", head.alpha, "B C", sizes, FLOATS, device)
        check_tensor("logits", head.logits, "B K", sizes, FLOATS, device)
