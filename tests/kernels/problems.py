"""Inputs of the kernels that several test files share: names of fields, hypothesis strategies, realistic scenes."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from egal_kernels import PackedRoi, cam_loss, pack_roi
from egal_kernels.shared.recipes import RECIPES

COUNTS = ("intersection", "cam_area", "roi_area")
SOFT = ("soft_intersection", "soft_area")
LAYOUTS = ("contiguous", "channels_last", "strided")
HALVES_AND_SINGLES = (torch.float32, torch.bfloat16, torch.float16)
seeds = st.integers(0, 2**32 - 1)


class Scene(NamedTuple):
    """The arguments of `acquire` (the first four) and of `cam_loss`."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    roi: PackedRoi
    classes: Tensor


def scene(b=16, c=64, k=3, side=7, size=224, positive=False) -> Scene:
    """Return smooth feature maps as a network gives them, a linear head, discs as ROIs, and classes.

    Features are uniform in [0, 1) before they are smoothed if `positive`, else normal.
    """
    g = torch.Generator().manual_seed(0)
    coarse = (torch.rand if positive else torch.randn)(b, c, 4, 4, generator=g)
    features = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    weight, bias = torch.randn(k, c, generator=g), torch.randn(k, generator=g)
    y, centre = torch.arange(size), torch.randint(size, (b, 2), generator=g)
    squared = (y[:, None] - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2
    return Scene(features, weight, bias, pack_roi(squared < (size // 6) ** 2), torch.randint(k, (b,), generator=g))


def laid_out(features, layout):
    """Return the features in one of LAYOUTS."""
    if layout == "channels_last":
        return features.contiguous(memory_format=torch.channels_last)
    return features.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0) if layout == "strided" else features


@st.composite
def class_maps(draw, batches, heights, widths, scales):
    """Class maps [B, h, w]: noise, ramps, plateaus, constants, nowhere positive, one hot cell; scaled, on an offset."""
    rng = np.random.default_rng(draw(seeds))
    shape = b, h, w = draw(batches), draw(heights), draw(widths)
    kinds = {
        "noise": lambda: rng.normal(size=shape),
        "ramp": lambda: np.add.outer(rng.normal(size=(b, 1)) * np.arange(h), np.arange(w)),
        "plateaus": lambda: rng.integers(0, 3, size=shape).astype(float),
        "constant": lambda: np.full(shape, rng.normal()),
        "negative": lambda: -rng.random(shape),
        "hot corner": lambda: np.broadcast_to(np.arange(h * w).reshape(h, w) == rng.choice([0, h * w - 1]), shape),
        "hot cell": lambda: np.arange(b * h * w).reshape(shape) == rng.integers(b * h * w),
    }
    m = kinds[draw(st.sampled_from(sorted(kinds)))]()
    m = m * draw(scales) + draw(st.sampled_from([0.0, 0.0, 1.0, -1.0]))
    return torch.from_numpy(m.astype(np.float32))


@st.composite
def masks(draw, batch, heights, widths):
    """ROIs [B, H, W], bool: empty, full or noise; over the whole image, or only below and right of a pixel."""
    rng = np.random.default_rng(draw(seeds))
    mask = rng.random((batch, draw(heights), draw(widths))) < draw(st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    if draw(st.booleans()):
        mask[:, : rng.integers(mask.shape[1])] = False
        mask[:, :, : rng.integers(mask.shape[2])] = False
    return torch.from_numpy(mask)


@st.composite
def whole_number_losses(draw, batches, channels, classes, sides, sizes, largest):
    """Return features, weight, roi, classes of `cam_loss` and a gradient of its result.

    Features and weights are whole numbers, so that the class map is exact in float32: backends cannot differ in it.

    Args:
        batches, channels, classes, sides, sizes: strategies of B, C, K, of h and w, and of H and W.
        largest: dtype → the largest feature.
    """
    rng = np.random.default_rng(draw(seeds))
    b, c, k, h, w = draw(batches), draw(channels), draw(classes), draw(sides), draw(sides)
    dtype = draw(st.sampled_from(HALVES_AND_SINGLES))
    limit = largest[dtype]
    features = torch.from_numpy(rng.integers(draw(st.sampled_from([-limit, 0, 1])), limit, (b, c, h, w))).to(dtype)
    weight = torch.from_numpy(rng.integers(draw(st.sampled_from([-9, 1])), 10, (k, c)) * h * w).float()
    features = laid_out(features, draw(st.sampled_from(LAYOUTS)))
    mask = torch.from_numpy(rng.random((b, draw(sizes), draw(sizes))) < draw(st.sampled_from([0.02, 0.3, 1.0])))
    return (features, weight, pack_roi(mask), torch.from_numpy(rng.integers(k, size=b)),
            torch.from_numpy(rng.normal(size=b)))  # fmt: skip


def extremes_are_unique(features, weight, roi, classes, convention):
    """Return whether all pixels at an extreme of the resized map, or within rounding of it, have the same gradient.

    Where they do not, backends may share the slope of a tied extreme differently.
    """
    alpha = weight.double()[classes] / features[0, 0].numel()
    class_map = torch.einsum("bc,bchw->bhw", alpha, features.double()).requires_grad_()
    recipe = RECIPES[convention]
    resize = type(recipe)(recipe.relu, recipe.low, None)
    u = resize(class_map, roi.shape[1:]).flatten(1)
    for extreme in (u.amax(1), u.amin(1)):
        near = (u - extreme[:, None]).abs() <= 1e-9 * (u.amax(1) - u.amin(1))[:, None]
        shared = torch.autograd.grad(extreme.sum(), class_map, retain_graph=True)[0]
        for i, pixels in enumerate(near):
            single = torch.autograd.grad(u[i, pixels.nonzero()[0, 0]], class_map, retain_graph=True)[0][i]
            if not torch.allclose(single, shared[i], rtol=1e-6, atol=1e-9 * float(shared.abs().max())):
                return False
    return True


def gradients(features, weight, roi, classes, grad=None, op=cam_loss, **options):
    """Return the loss of `cam_loss`, or of another `op`, and the gradients of Σ grad·loss in features and weight."""
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = op(features, weight, roi, classes, **options)
    grad = torch.ones_like(loss) if grad is None else grad.to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (features, weight), grad)


def assert_gradients(result, problem, convention, rounding, tolerance):
    """Assert that a backend's loss and gradients equal those of the reference in binary64, up to rounding.

    Args:
        result: the loss and the gradients of features and weight.
        problem: what `whole_number_losses` returns.
        convention: the convention of the result.
        rounding: the relative rounding error of a gradient in the dtype of the features.
        tolerance: the allowed error, relative to what a slope is before its parts cancel.
    """
    features, weight, roi, classes, grad = problem
    loss, a, w = result
    expected = gradients(features.double(), weight.double(), roi, classes, grad, convention=convention)
    assert (loss.dtype, a.dtype, w.dtype) == (torch.float32, features.dtype, torch.float32)
    np.testing.assert_allclose(loss.double(), expected[0], rtol=0, atol=1e-6)
    floor = 2.0**-25 if features.dtype == torch.float16 else 0  # half the least subnormal
    alpha = weight.double()[classes] / features[0, 0].numel()
    class_map = torch.einsum("bc,bchw->bhw", alpha, features.double()).flatten(1)
    # the loss changes by about 1 if the class map changes by its range
    natural = grad.abs() / (class_map.amax(1) - class_map.amin(1)).clamp_min(1)
    for i in range(len(features)):
        scale = alpha[i].abs().max().item() * natural[i].item()
        np.testing.assert_allclose(a[i].double(), expected[1][i], rtol=rounding, atol=tolerance * scale + floor)
    moments = natural[:, None] * features.double().abs().mean((2, 3))
    assert (w - expected[2]).abs().max() <= tolerance * moments.sum(0).max()
