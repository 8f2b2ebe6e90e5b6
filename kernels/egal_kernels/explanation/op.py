"""`explain`: one forward pass, recorded only after the explained layer, and one backward pass through that part."""

from collections.abc import Callable

import torch
from torch import Tensor

from egal_kernels.errors import ArgumentError
from egal_kernels.explanation.recording import check_eval, run_head, run_model
from egal_kernels.explanation.types import Explanation
from egal_kernels.methods import METHODS
from egal_kernels.shared.checks import FLOATS, check_choice, check_classes, check_tensor


def explain(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    at: str | None = None,
    classes: Tensor | None = None,
    method: str = "grad-cam",
) -> Explanation:
    """Return the Explanation of B samples, for `acquire(e.features, None, None, roi, alpha=e.alpha, logits=e.logits)`.

    There is one backward pass per batch, of the sum of its explained logits. No parameter's `grad` is changed.

    Args:
        model: a head, that is any callable from feature maps [B, C, h, w] to logits [B, K]; with `at`, a whole network.
            A sample's logits must not depend on the other samples, so modules must be in eval mode.
        inputs: the input of the model: feature maps in f32, bf16, f16 or f64; with `at`, usually images.
        at: the name, as in `model.named_modules()`, of the layer whose output [B, C, h, w] is explained. The network
            runs without gradients as far as that layer: the part before it is neither recorded nor differentiated.
        classes: int64 [B], the classes to explain instead of the predicted ones (the lowest class of a tie).
        method: a key of `METHODS`. "grad-cam++" uses the ε of pytorch-grad-cam, 1e-6.

    Raises ArgumentError, a ValueError, naming the argument: a module in training mode, an unknown layer or one that
    runs twice, shapes, dtypes or classes that do not fit, logits that do not depend on the features. Values that are
    not finite do not raise; `acquire` marks their samples.
    """
    check_choice("method", method, METHODS)
    check_eval(model)
    with torch.inference_mode(False), torch.no_grad():
        features, logits = run_head(model, inputs) if at is None else run_model(model, inputs, at)
        g = _gradient(features, logits, classes)
        return Explanation(*_weigh(features.detach(), g, method), logits.detach())


def _gradient(features: Tensor, logits: Tensor, classes: Tensor | None) -> Tensor:
    """Return the gradient of each sample's explained logit in its features, [B, C, h, w]; f32, or f64 if they are."""
    sizes = {"B": features.shape[0]}
    check_tensor("logits of model", logits, "B K", sizes, FLOATS, features.device)
    if classes is None:
        classes = logits.argmax(1)
    else:
        check_tensor("classes", classes, "B", sizes, [torch.int64], features.device)
        check_classes(classes, sizes["K"])
    seed = torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), 1)
    g = torch.autograd.grad(logits, features, seed, allow_unused=True)[0] if logits.requires_grad else None
    if g is None:
        raise ArgumentError("model: its logits have no gradient with respect to the features; is there a detach, a "
                            "no_grad, or another branch around the layer?")  # fmt: skip
    return g if g.dtype == torch.float64 else g.float()


def _weigh(features: Tensor, g: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Return the features and alpha of an Explanation, from features A and gradient g, both [B, C, h, w]."""
    if method == "grad-cam":
        return features, g.mean((2, 3))
    if method == "grad-cam++":
        g = g.relu()  # the paper's weights multiply relu(g), so they do not matter where g ≤ 0
        total = features.sum((2, 3), keepdim=True, dtype=g.dtype)
        return features, (g**3 / (2 * g**2 + total * g**3 + 1e-6)).sum((2, 3))
    g = g.relu() if method == "layercam" else g
    return (g * features).sum(1, keepdim=True), g.new_ones(len(g), 1)
