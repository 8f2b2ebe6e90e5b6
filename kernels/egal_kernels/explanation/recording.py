"""One forward pass of a head or a network, of which only the part after a feature map is recorded for gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from egal_kernels.errors import ArgumentError
from egal_kernels.shared.checks import FLOATS, check_tensor, did_you_mean


def run_head(head: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """Return `features` as a leaf, and the logits that the head computes from it."""
    leaf = _leaf("inputs", features)
    with torch.enable_grad():
        return leaf, head(leaf.clone())  # a clone, since the head may overwrite its input


def run_model(model: Callable[[Tensor], Tensor], inputs: Tensor, at: str) -> tuple[Tensor, Tensor]:
    """Return the output of layer `at` as a leaf, and the model's logits, recorded from that leaf on."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if leaves:
            raise ArgumentError(f"at: {at!r} runs more than once in a forward pass; name a layer that runs once")
        leaves.append(_leaf(f"output of {at!r}", output))
        torch.set_grad_enabled(True)  # it lasts until the no_grad around the model ends
        return leaves[0].clone()  # a clone, since the next layer may overwrite its input

    handle = _layer(model, at).register_forward_hook(cut)
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        handle.remove()
    if not leaves:
        raise ArgumentError(f"at: {at!r} did not run in a forward pass; name a layer that does")
    return leaves[0], logits


def _layer(model: Callable[[Tensor], Tensor], at: str) -> nn.Module:
    """Return the layer `at` of the model."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model: expected a torch.nn.Module to find the layer {at!r} in, got {type(model).__name__}"
        )
    layers = dict(model.named_modules())
    if at not in layers:
        hint = did_you_mean(at, layers, most=3) or "see model.named_modules()"
        raise ArgumentError(f"at: {type(model).__name__} has no layer {at!r}; {hint}")
    return layers[at]


def _leaf(name: str, features: Tensor) -> Tensor:
    """Return the features as a leaf of the graph to record."""
    check_tensor(name, features, "B C h w", {}, FLOATS)
    if features.shape[1] == features.shape[2] < features.shape[3]:
        raise ArgumentError(
            f"{name}: {list(features.shape)} looks like a channels-last map [B, h, w, C]; permute(0, 3, 1, 2) it"
        )
    # a tensor made in inference mode can be read, but only a copy of it can require grad
    return (features.clone() if features.is_inference() else features.detach()).requires_grad_()


def check_eval(model: object) -> None:
    """Raise ArgumentError if a sample's logits depend on random draws or on the other samples of the batch."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        label = f"layer {name!r}" if name else type(module).__name__
        if module.training:
            raise ArgumentError(f"model: {label} is in training mode, where batch norm mixes samples and dropout "
                                "draws; call eval() first")  # fmt: skip
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ArgumentError(f"model: {label} keeps no running statistics and so mixes the samples of a batch")
