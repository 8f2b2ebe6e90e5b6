"""`explain`: one forward pass, of which only the part behind a layer is recorded, and one backward pass through it."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from egal_kernels.checks import check_choice, check_tensor
from egal_kernels.methods import METHODS

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `acquire` takes of any head; the map of sample i is Σ_c alpha[i, c]·features[i, c]. None requires grad."""

    features: Tensor  # [B, C, h, w]; for "hirescam" and "layercam", whose weights vary in space, the map: [B, 1, h, w]
    alpha: Tensor  # [B, C], f32, or f64 where the features were; ones [B, 1] for these two
    logits: Tensor  # [B, K]


def explain(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    at: str | None = None,
    classes: Tensor | None = None,
    method: str = "grad-cam",
) -> Explanation:
    """The Explanation of B samples, for `acquire(e.features, None, None, roi, alpha=e.alpha, logits=e.logits)`.

    model: a head, any callable from feature maps [B, C, h, w] to logits [B, K]; with `at`, a whole network. A sample's
        logits must not depend on the other samples, so modules have to be in eval mode.
    inputs: what the model takes: feature maps, f32, bf16, f16 or f64; with `at`, usually images.
    at: name of the layer whose output [B, C, h, w] is explained, as in `model.named_modules()`. The network runs
        without gradients as far as that layer: what lies before it is neither recorded nor differentiated.
    classes: int64 [B], the classes to explain instead of the predicted ones (the lowest of a tie).
    method: a key of `METHODS`. "grad-cam++" has the ε of pytorch-grad-cam, 1e-6.

    One backward pass for the batch, of the sum of its explained logits. No parameter's `grad` is touched.

    Raises ValueError naming the argument: a module in training mode, an unknown layer or one that runs twice, shapes,
    dtypes or classes that do not fit, logits that do not depend on the features. Values that are not finite do not
    raise; `acquire` marks them.
    """
    check_choice("method", method, METHODS)
    _check_eval(model)
    with torch.inference_mode(False), torch.no_grad():
        features, logits = _run_from(model, inputs) if at is None else _run_behind(model, inputs, at)
        g = _gradient(features, logits, classes)
        return Explanation(*_weigh(features.detach(), g, method), logits.detach())


def _gradient(features: Tensor, logits: Tensor, classes: Tensor | None) -> Tensor:
    """Of each sample's explained logit with respect to its features [B, C, h, w]; f32, or f64 where they are."""
    sizes = {"B": features.shape[0]}
    check_tensor("logits of model", logits, "B K", sizes, FLOATS, features.device)
    if classes is None:
        classes = logits.argmax(1)
    else:
        check_tensor("classes", classes, "B", sizes, [torch.int64], features.device)
        wrong = classes[(classes < 0) | (classes >= sizes["K"])]
        if wrong.numel():
            raise ValueError(f"classes: expected values in [0, {sizes['K']}), got {int(wrong[0])}")
    seed = torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), 1)
    g = torch.autograd.grad(logits, features, seed, allow_unused=True)[0] if logits.requires_grad else None
    if g is None:
        raise ValueError("model: its logits have no gradient with respect to the features; is there a detach, a "
                         "no_grad, or another branch around the layer?")  # fmt: skip
    return g if g.dtype == torch.float64 else g.float()


def _weigh(features: Tensor, g: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Features and alpha of an Explanation, from features A and gradient g, both [B, C, h, w]."""
    if method == "grad-cam":
        return features, g.mean((2, 3))
    if method == "grad-cam++":
        g = g.relu()  # the paper's weights multiply relu(g): where g ≤ 0 they do not matter
        total = features.sum((2, 3), keepdim=True, dtype=g.dtype)
        return features, (g**3 / (2 * g**2 + total * g**3 + 1e-6)).sum((2, 3))
    g = g.relu() if method == "layercam" else g
    return (g * features).sum(1, keepdim=True), g.new_ones(len(g), 1)


def _run_from(head: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """`features` as a leaf, and the head's logits of it."""
    leaf = _leaf("inputs", features)
    with torch.enable_grad():
        return leaf, head(leaf.clone())  # a clone: the head may begin in place


def _run_behind(model: Callable[[Tensor], Tensor], inputs: Tensor, at: str) -> tuple[Tensor, Tensor]:
    """The output of layer `at` as a leaf, and the model's logits, recorded from there on."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if leaves:
            raise ValueError(f"at: {at!r} runs more than once in a forward pass; name a layer that runs once")
        leaves.append(_leaf(f"output of {at!r}", output))
        torch.set_grad_enabled(True)  # until the no_grad around the model ends
        return leaves[0].clone()  # a clone: what follows may work in place

    handle = _layer(model, at).register_forward_hook(cut)
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        handle.remove()
    if not leaves:
        raise ValueError(f"at: {at!r} did not run in a forward pass; name a layer that does")
    return leaves[0], logits


def _layer(model: Callable[[Tensor], Tensor], at: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module to find the layer {at!r} in, got {type(model).__name__}")
    layers = dict(model.named_modules())
    if at not in layers:
        near = get_close_matches(at, layers, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see model.named_modules()"
        raise ValueError(f"at: {type(model).__name__} has no layer {at!r}; {hint}")
    return layers[at]


def _leaf(name: str, features: Tensor) -> Tensor:
    check_tensor(name, features, "B C h w", {}, FLOATS)
    # what inference mode made can be read, but only a copy can require grad
    return (features.clone() if features.is_inference() else features.detach()).requires_grad_()


def _check_eval(model: object) -> None:
    """ValueError if a sample's logits depend on chance or on its neighbours in the batch."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        who = f"layer {name!r}" if name else type(module).__name__
        if module.training:
            raise ValueError(f"model: {who} is in training mode, where batch norm mixes samples and dropout draws; "
                             "call eval() first")  # fmt: skip
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(f"model: {who} keeps no running statistics and so mixes the samples of a batch")
