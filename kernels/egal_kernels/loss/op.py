"""`cam_loss`: it checks its arguments once, passes them to a backend, and registers the gradients with autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from egal_kernels.conventions import CONVENTIONS
from egal_kernels.loss import reference
from egal_kernels.shared.backends import BACKENDS, choose, load
from egal_kernels.shared.checks import FLOATS, check_choice, check_labels, check_tensor
from egal_kernels.shared.roi import PackedRoi, check_roi


def cam_loss(
    features: Tensor,
    weight: Tensor,
    roi: PackedRoi,
    classes: Tensor,
    *,
    convention: str = "grad-cam",
    backend: str = "auto",
) -> Tensor:
    """Return 1 − soft Dice of CAM and ROI, 1 − 2·Σ c·r / (Σ c + Σ r), [B] in f32, or f64 if the features are.

    c is the Grad-CAM, in [0, 1] at the ROI's resolution, of a linear head on global average pooling. The loss is
    differentiable with respect to `features` and `weight`, once; with backend "reference", any number of times.

    Args:
        features: [B, C, h, w], contiguous or channels_last; f64 is computed in f64; f32, bf16 and f16 in f32.
        weight: [K, C], of the head. A CAM does not depend on the head's bias.
        roi: the regions of the B samples. If one is empty, its loss and gradients are 0: average over the others.
        classes: int64 [B], the classes to explain, usually the true ones. On CUDA the device checks their range, and
            the host does not wait: as in PyTorch's losses, a later operation fails with a RuntimeError.
        convention: how a class map becomes a normalised map; a key of `CONVENTIONS`. A constant or nowhere positive
            class map is all zeros: its loss is 1, its gradients are 0.
        backend: "reference", "cpu" or "triton" (both not for f64), or "auto" for the fastest that accepts the features
            and is installed.

    Raises ArgumentError, a ValueError, naming the argument if a shape, dtype, device or value is wrong. If the features
    or the class map of a sample contain a NaN or an infinity, its loss and gradients are NaN, and so are the gradients
    of its class's weights.
    """
    sizes: dict[str, int] = {}
    check_tensor("features", features, "B C h w", sizes, FLOATS)
    check_tensor("weight", weight, "K C", sizes, FLOATS, features.device)
    check_roi(roi, sizes, features.device)
    check_tensor("classes", classes, "B", sizes, [torch.int64], features.device)
    check_choice("convention", convention, CONVENTIONS)
    check_choice("backend", backend, ["auto", *BACKENDS])
    chosen = _choose(backend, features.device, features.dtype)
    moments = torch.is_grad_enabled() and weight.requires_grad
    if torch.compiler.is_compiling() and chosen != "reference":
        return _op(features, weight, roi.bits, roi.height, classes, convention, chosen, moments)[0]
    if not torch.compiler.is_compiling():  # in a compiled graph, the reference's own indexing checks the range
        check_labels(classes, sizes["K"])
    if chosen == "reference":
        return reference.cam_loss(features, weight, roi, classes, convention)
    # a dispatched operator costs tens of microseconds per call, so eager calls do without
    return _CamLoss.apply(features, weight, roi, classes, convention, chosen, moments)


@torch.compiler.assume_constant_result
def _choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the backend, as a constant of a compiled graph."""
    return choose("loss", name, device, dtype)


def _gradients(
    of_features: bool, of_weight: bool, grad: Tensor, weight: Tensor, classes: Tensor, slope: Tensor, moment: Tensor,
    dtype: torch.dtype, channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the features, [B, C, h, w] of `dtype`, and of the weight, [K, C].

    Args:
        of_features: whether the features need a gradient; if not, an empty tensor is returned for it.
        of_weight: whether the weight needs a gradient; if not, an empty tensor is returned for it.
        grad: [B], the gradient of the loss.
        weight: [K, C], of the head.
        classes: int64 [B], the explained classes.
        slope: [B, h, w], as the backend's `forward` returns it.
        moment: [B, C], as the backend's `forward` returns it.
        dtype: that of the features.
        channels_last: the layout of the features.
        backend: the name of the backend.
    """
    run, none = load("loss", backend), grad.new_empty(0)
    a = run.features_gradient(grad, weight, classes, slope, dtype, channels_last) if of_features else none
    w = run.weight_gradient(grad, classes, moment, len(weight)).to(weight.dtype) if of_weight else none
    return a, w


class _CamLoss(torch.autograd.Function):
    """`cam_loss` of a backend other than the reference, for eager calls."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, roi: PackedRoi, classes: Tensor, convention: str, backend: str,
        moments: bool,
    ) -> Tensor:  # fmt: skip
        loss, *saved = load("loss", backend).forward(features, weight, roi, classes, convention, moments)
        ctx.save_for_backward(weight, classes, *saved)
        ctx.how = features.dtype, _is_channels_last(features), backend
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight = ctx.needs_input_grad[:2]
        a, w = _gradients(of_features, of_weight, grad, *ctx.saved_tensors, *ctx.how)
        return a if of_features else None, w if of_weight else None, None, None, None, None, None


def _is_channels_last(features: Tensor) -> bool:
    return not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("egal_kernels::cam_loss", mutates_args=())
def _op(
    features: Tensor, weight: Tensor, bits: Tensor, height: int, classes: Tensor, convention: str, backend: str,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run `cam_loss` as an operator of PyTorch; return the loss, and the slope and moment for the backward pass."""
    check_labels(classes, len(weight))
    return load("loss", backend).forward(features, weight, PackedRoi(bits, height), classes, convention, moments)


@_op.register_fake
def _(
    features: Tensor, weight: Tensor, bits: Tensor, height: int, classes: Tensor, convention: str, backend: str,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, channels, h, w = features.shape
    shapes = (batch,), (batch, h, w), (batch, channels if moments else 0)
    loss, slope, moment = (features.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, slope, moment


_op_gradients = torch.library.custom_op("egal_kernels::cam_loss_backward", _gradients, mutates_args=())


@_op_gradients.register_fake
def _(
    of_features: bool, of_weight: bool, grad: Tensor, weight: Tensor, classes: Tensor, slope: Tensor, moment: Tensor,
    dtype: torch.dtype, channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (slope.shape[0], weight.shape[1], *slope.shape[1:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    a = torch.empty(shape, dtype=dtype, device=grad.device, memory_format=layout)
    none = grad.new_empty(0)
    return a if of_features else none, weight.new_empty(weight.shape) if of_weight else none


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight, _, _, classes, _, backend, _ = inputs
    ctx.save_for_backward(weight, classes, *output[1:])
    ctx.how = features.dtype, _is_channels_last(features), backend


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    of_features, of_weight = ctx.needs_input_grad[:2]
    a, w = _op_gradients(of_features, of_weight, grad, *ctx.saved_tensors, *ctx.how)
    return a if of_features else None, w if of_weight else None, None, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_save)
