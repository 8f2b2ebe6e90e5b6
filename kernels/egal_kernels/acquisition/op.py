"""`acquire`: it checks its arguments once and passes them to a backend."""

import torch
from torch import Tensor

from egal_kernels.acquisition.heads import Head, LinearHead, check_head, head_of
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.errors import ArgumentError
from egal_kernels.shared.backends import BACKENDS, choose, load
from egal_kernels.shared.checks import FLOATS, check_choice, check_classes, check_tensor
from egal_kernels.shared.roi import PackedRoi, check_roi


@torch.no_grad()
def acquire(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    roi: PackedRoi,
    *,
    threshold: float = 0.5,
    convention: str = "grad-cam",
    classes: Tensor | None = None,
    alpha: Tensor | None = None,
    logits: Tensor | None = None,
    backend: str = "auto",
) -> Acquisition:
    """Return logits, entropy, predicted class and the overlap of CAM and ROI of B samples, from their feature map.

    The head is given in one of two forms: `weight` and `bias`, or `alpha` and `logits`. No gradient flows through the
    result.

    Args:
        features: [B, C, h, w], contiguous or channels_last; f64 is computed in f64; f32, bf16 and f16 in f32.
        weight: [K, C], of a linear head on global average pooling, whose Grad-CAM is exact without a backward pass.
        bias: [K], of that head, or None.
        roi: the regions of the B samples, at the resolution (H, W) at which CAM and ROI are compared.
        threshold: τ in [0, 1]. A pixel counts if its normalised CAM is ≥ τ, compared in the dtype of the computation.
        convention: how a class map becomes a normalised map [H, W]; a key of `CONVENTIONS`.
        classes: int64 [B], the classes to explain instead of the predicted ones; goes with `weight`. On an accelerator
            the check of their range waits for the device.
        alpha: [B, C], for any other head: the mean over h and w of ∂y/∂A_c, where y is the logit to explain (Selvaraju
            et al. 2017, eq. 1), so it includes the factor 1/(h·w).
        logits: [B, K], the logits of that head.
        backend: "reference", "cpu" or "triton" (both not for f64), or "auto" for the fastest that accepts the features
            and is installed.

    Raises ArgumentError, a ValueError, naming the argument if a shape, dtype, device or value is wrong, or if the head
    is not given in exactly one form. A sample that is not finite does not raise: see `Acquisition`.
    """
    sizes: dict[str, int] = {}
    check_tensor("features", features, "B C h w", sizes, FLOATS)
    check_roi(roi, sizes, features.device)
    head = head_of(weight, bias, classes, alpha, logits)
    check_head(head, sizes, features.device)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ArgumentError(f"threshold: expected a number in [0, 1], got {threshold!r}")
    check_choice("convention", convention, CONVENTIONS)
    check_choice("backend", backend, ["auto", *BACKENDS])
    if torch.compiler.is_compiling():
        return Acquisition(*_compiled(features, weight, bias, roi.bits, roi.height, float(threshold), convention,
                                      classes, alpha, logits, backend))  # fmt: skip
    # a dispatched operator costs tens of microseconds per call, so eager calls go straight to the backend
    return _run(features, head, roi, threshold, convention, backend)


def _run(features: Tensor, head: Head, roi: PackedRoi, threshold: float, convention: str, backend: str) -> Acquisition:
    """Call the chosen backend with checked arguments."""
    if isinstance(head, LinearHead) and head.classes is not None:
        check_classes(head.classes, head.count)
    run = load("acquisition", choose("acquisition", backend, features.device, features.dtype))
    return run.acquire(features, head, roi, threshold=threshold, convention=convention)


@torch.library.custom_op("egal_kernels::acquire", mutates_args=())
def _compiled(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, bits: Tensor, height: int, threshold: float,
    convention: str, classes: Tensor | None, alpha: Tensor | None, logits: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run `acquire` as an operator of PyTorch, one opaque node of a compiled graph; return the fields in their order.

    The arguments of an operator are tensors and plain values, so the head is taken apart here.
    """
    head = head_of(weight, bias, classes, alpha, logits)
    out = _run(features, head, PackedRoi(bits, height), threshold, convention, backend)
    return (out.logits, out.entropy, out.predicted, out.intersection, out.cam_area, out.roi_area,
            out.soft_intersection, out.soft_area)  # fmt: skip


@_compiled.register_fake
def _(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, bits: Tensor, height: int, threshold: float,
    convention: str, classes: Tensor | None, alpha: Tensor | None, logits: Tensor | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, head = features.shape[0], head_of(weight, bias, classes, alpha, logits)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    dtypes = dtype, torch.int64, torch.int32, torch.int32, torch.int32, dtype, dtype
    return features.new_empty(batch, head.count, dtype=dtype), *(features.new_empty(batch, dtype=t) for t in dtypes)
