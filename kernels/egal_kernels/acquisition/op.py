"""`acquire`: checks its arguments once and hands them to a backend."""

import torch
from torch import Tensor

from egal_kernels.acquisition.types import Acquisition
from egal_kernels.backends import BACKENDS, choose, load
from egal_kernels.checks import check_choice, check_tensor
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.roi import PackedRoi

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    """Logits, entropy, predicted class and the overlap of CAM and ROI of B samples, from their last feature map.

    features: [B, C, h, w], f32, bf16, f16 or f64, contiguous or channels_last. f64 is computed in f64, the rest in f32.
    weight [K, C], bias [K] or None: a linear head on global average pooling; its Grad-CAM is exact without a backward.
    roi: the regions, B of them, at the resolution (H, W) at which CAM and ROI are compared.
    threshold: τ in [0, 1], in the compute dtype; the CAM counts where its min-max-normalised value is ≥ τ.
    convention: how a class map becomes a normalised H×W map; a key of `CONVENTIONS`.
    classes: int64 [B], the classes to explain instead of the predicted ones. On an accelerator its range check waits
        for the device.
    alpha [B, C], logits [B, K]: any other head, with weight and bias None. alpha_c is the mean over h, w of ∂y/∂A_c,
        y being the logit to explain (Selvaraju et al. 2017, eq. 1), so 1/(h·w) is in it.
    backend: "reference", "cpu" or "triton" (not f64), or "auto", the fastest that takes the features and is installed.

    Raises ValueError naming the argument when a shape, dtype, device or value is wrong, or when not exactly one form of
    head is given. Samples that are not finite do not raise: see `Acquisition`. No gradient flows through the result.
    """
    sizes: dict[str, int] = {}
    check_tensor("features", features, "B C h w", sizes, FLOATS)
    if not isinstance(roi, PackedRoi):
        raise ValueError(f"roi: expected a PackedRoi, got {type(roi).__name__}; pack a bool mask [B, H, W] by pack_roi")
    check_tensor("roi.bits", roi.bits, "B W words", sizes, [torch.int32], features.device)
    _check_head(features.device, sizes, weight, bias, alpha, logits, classes)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], got {threshold!r}")
    check_choice("convention", convention, CONVENTIONS)
    check_choice("backend", backend, ["auto", *BACKENDS])
    if torch.compiler.is_compiling():
        return Acquisition(*_compiled(features, weight, bias, roi.bits, roi.height, float(threshold), convention,
                                      classes, alpha, logits, backend))  # fmt: skip
    # a dispatched op costs tens of microseconds a call: eager calls do without
    return _run(features, weight, bias, roi, threshold, convention, classes, alpha, logits, backend)


def _run(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    roi: PackedRoi,
    threshold: float,
    convention: str,
    classes: Tensor | None,
    alpha: Tensor | None,
    logits: Tensor | None,
    backend: str,
) -> Acquisition:
    if classes is not None and weight is not None:
        wrong = classes[(classes < 0) | (classes >= len(weight))]
        if wrong.numel():
            raise ValueError(f"classes: expected values in [0, {len(weight)}), got {int(wrong[0])}")
    run = load("acquisition", choose("acquisition", backend, features.device, features.dtype))
    return run.acquire(
        features,
        weight,
        bias,
        roi,
        threshold=threshold,
        convention=convention,
        classes=classes,
        alpha=alpha,
        logits=logits,
    )


@torch.library.custom_op("egal_kernels::acquire", mutates_args=())
def _compiled(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    bits: Tensor,
    height: int,
    threshold: float,
    convention: str,
    classes: Tensor | None,
    alpha: Tensor | None,
    logits: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`acquire` as an operator of PyTorch: one opaque node of a compiled graph, returning the fields in their order."""
    roi = PackedRoi(bits, height)
    out = _run(features, weight, bias, roi, threshold, convention, classes, alpha, logits, backend)
    return (out.logits, out.entropy, out.predicted, out.intersection, out.cam_area, out.roi_area,
            out.soft_intersection, out.soft_area)  # fmt: skip


@_compiled.register_fake
def _(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, bits: Tensor, height: int, threshold: float,
    convention: str, classes: Tensor | None, alpha: Tensor | None, logits: Tensor | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch = features.shape[0]
    count = logits.shape[1] if weight is None else weight.shape[0]  # type: ignore[union-attr]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    dtypes = dtype, torch.int64, torch.int32, torch.int32, torch.int32, dtype, dtype
    return features.new_empty(batch, count, dtype=dtype), *(features.new_empty(batch, dtype=t) for t in dtypes)


def _check_head(
    device: torch.device,
    sizes: dict[str, int],
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    logits: Tensor | None,
    classes: Tensor | None,
) -> None:
    """ValueError unless the head is given in one form, whole, and fits features of `sizes`."""
    if (weight is None) == (alpha is None):
        given = "neither" if weight is None else "both"
        raise ValueError(f"weight, alpha: give weight (a linear head) or alpha with logits (any head), got {given}")
    if weight is not None:
        if logits is not None:
            raise ValueError("logits: goes with alpha; with weight the logits are computed, so leave it out")
        check_tensor("weight", weight, "K C", sizes, FLOATS, device)
        if bias is not None:
            check_tensor("bias", bias, "K", sizes, FLOATS, device)
    else:
        for name, extra in (("bias", bias), ("classes", classes)):
            if extra is not None:
                raise ValueError(f"{name}: goes with weight; alpha already is that of one class, so leave it out")
        check_tensor("alpha", alpha, "B C", sizes, FLOATS, device)
        check_tensor("logits", logits, "B K", sizes, FLOATS, device)
    if classes is not None:
        check_tensor("classes", classes, "B", sizes, [torch.int64], device)
