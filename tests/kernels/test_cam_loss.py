"""`cam_loss`: the reference against loops and finite differences, the CPU backend against the reference in binary64."""

import math
import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from egal_kernels import acquire, cam_loss, pack_roi
from egal_kernels.acquisition.conventions import RECIPES
from egal_kernels.loss import cpu
from kernels.kernel_oracle import truth

BACKENDS = ["reference", "cpu"]
SIDES = st.sampled_from([1, 2, 3, 5, 7, 14])
SIZES = st.sampled_from([1, 2, 5, 13, 31, 32, 33, 64, 97])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(features, weight, roi, classes, grad=None, **options):
    """loss, and the gradients of Σ grad·loss in features and weight."""
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = cam_loss(features, weight, roi, classes, **options)
    grad = torch.ones_like(loss) if grad is None else grad.to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (features, weight), grad)


def scenes(b=16, c=64, k=3, side=7, size=224, seed=0):
    """Smooth features as a network gives them, a linear head, discs for ROIs, classes."""
    g = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.interpolate(torch.randn(b, c, 4, 4, generator=g), (side, side), mode="bicubic")
    weight = torch.randn(k, c, generator=g)
    y, centre = torch.arange(size), torch.randint(size, (b, 2), generator=g)
    far = (y[:, None] - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2
    return features, weight, pack_roi(far < (size // 6) ** 2), torch.randint(k, (b,), generator=g)


@pytest.mark.parametrize("convention", RECIPES)
@pytest.mark.parametrize("shape", [(3, 2, 11, 9), (1, 4, 5, 33), (5, 5, 3, 4)])
def test_finite_differences_of_the_reference(convention, shape):
    h, w, height, width = shape
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, h, w, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, height, width, generator=g) < 0.4
    mask[1] = False
    roi, classes = pack_roi(mask), torch.tensor([0, 3, 3])

    def loss(features, weight):
        return cam_loss(features, weight, roi, classes, convention=convention)

    assert loss(features, weight)[[0, 2]].min() > 0
    assert torch.autograd.gradcheck(loss, (features, weight), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_those_of_the_per_pixel_loops(backend):
    features, weight, roi, classes = scenes(4, 8, 3, 5, 33)
    loss = cam_loss(features, weight, roi, classes, backend=backend)
    for i, k in enumerate(classes):
        true = truth(features[i].tolist(), (weight[k] / 25).tolist(), [0.0], roi[i : i + 1].unpack()[0].tolist(), 0.5)
        assert loss[i].item() == pytest.approx(1 - 2 * true.soft_intersection / true.soft_area, abs=1e-6)


@pytest.mark.parametrize("convention", RECIPES)
def test_it_is_one_minus_the_soft_dice_of_acquire(convention):
    features, weight, roi, classes = scenes()
    out = acquire(features, weight, None, roi, classes=classes, convention=convention)
    loss = cam_loss(features, weight, roi, classes, convention=convention)
    torch.testing.assert_close(loss, 1 - out.soft_dice(), rtol=0, atol=2e-6)


@st.composite
def exact_problems(draw):
    """Features and weights of whole numbers, such that the class map is exact in float32: what differs is not it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b, c, k = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 17])), draw(st.integers(1, 3))
    h, w, dtype = draw(SIDES), draw(SIDES), draw(st.sampled_from(DTYPES))
    limit = {torch.float32: 4000, torch.bfloat16: 256, torch.float16: 2048}[dtype]
    low = draw(st.sampled_from([-limit, 0, 1]))
    features = torch.from_numpy(rng.integers(low, limit, (b, c, h, w))).to(dtype)
    weight = torch.from_numpy(rng.integers(draw(st.sampled_from([-9, 1])), 10, (k, c)) * h * w).float()
    layout = draw(st.sampled_from(["contiguous", "channels_last", "strided"]))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    roi = torch.from_numpy(rng.random((b, draw(SIZES), draw(SIZES))) < draw(st.sampled_from([0.02, 0.3, 1.0])))
    return (
        features,
        weight,
        pack_roi(roi),
        torch.from_numpy(rng.integers(k, size=b)),
        torch.from_numpy(rng.normal(size=b)),
    )


def extremes_are_unique(features, weight, roi, classes, convention):
    """Whether all pixels at an extreme of the resized map, or within rounding of it, have one and the same gradient."""
    alpha = weight.double()[classes] / features[0, 0].numel()
    class_map = torch.einsum("bc,bchw->bhw", alpha, features.double()).requires_grad_()
    recipe = RECIPES[convention]
    without = type(recipe)(recipe.relu, recipe.low, None)
    u = without(class_map, roi.shape[1:]).flatten(1)
    for extreme in (u.amax(1), u.amin(1)):
        near = (u - extreme[:, None]).abs() <= 1e-9 * (u.amax(1) - u.amin(1))[:, None]
        spread = torch.autograd.grad(extreme.sum(), class_map, retain_graph=True)[0]
        for i, pixels in enumerate(near):
            one = torch.autograd.grad(u[i, pixels.nonzero()[0, 0]], class_map, retain_graph=True)[0][i]
            if not torch.allclose(one, spread[i], rtol=1e-6, atol=1e-9 * float(spread.abs().max())):
                return False
    return True


@given(exact_problems(), st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=150)
def test_the_cpu_backend_equals_autograd_of_the_reference_in_binary64(problem, convention):
    features, weight, roi, classes, grad = problem
    assume(extremes_are_unique(features, weight, roi, classes, convention))
    loss, a, w = gradients(features, weight, roi, classes, grad, convention=convention, backend="cpu")
    expected = gradients(features.double(), weight.double(), roi, classes, grad, convention=convention)
    assert (loss.dtype, a.dtype, w.dtype) == (torch.float32, features.dtype, torch.float32)
    assert loss.double().numpy() == pytest.approx(expected[0].numpy(), rel=0, abs=1e-6)
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[features.dtype]
    floor = 2.0**-25 if features.dtype == torch.float16 else 0  # half the least subnormal
    alpha = weight.double()[classes] / features[0, 0].numel()
    class_map = torch.einsum("bc,bchw->bhw", alpha, features.double()).flatten(1)
    # what a slope is before it cancels: the loss changes by about 1 where the map changes by its range
    natural = grad.abs() / (class_map.amax(1) - class_map.amin(1)).clamp_min(1)
    for i in range(len(features)):
        scale = alpha[i].abs().max().item() * natural[i].item()
        np.testing.assert_allclose(a[i].double(), expected[1][i], rtol=rounding, atol=1e-6 * scale + floor)
    moments = natural[:, None] * features.double().abs().mean((2, 3))
    assert (w - expected[2]).abs().max() <= 1e-6 * moments.sum(0).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("convention", RECIPES)
def test_smooth_maps_have_the_gradients_of_binary64(dtype, channels_last, convention):
    features, weight, roi, classes = scenes()
    features = features.to(dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    loss, a, w = gradients(features, weight, roi, classes, convention=convention, backend="cpu")
    expected = gradients(features.double(), weight.double(), roi, classes, convention=convention)
    assert a.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(loss.double(), expected[0], rtol=0, atol=2e-6)
    rounding = 1e-4 if dtype == torch.float32 else 2**-7
    for ours, true in ((a, expected[1]), (w, expected[2])):
        assert (ours.double() - true).abs().max() <= rounding * true.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("convention", RECIPES)
@pytest.mark.parametrize("kind", ["constant", "negative", "zero"])
def test_a_map_without_contrast_has_loss_one_and_no_gradient(backend, convention, kind):
    features = {
        "constant": torch.ones(2, 3, 4, 4),
        "negative": -torch.rand(2, 3, 4, 4),
        "zero": torch.zeros(2, 3, 4, 4),
    }
    roi = pack_roi(torch.rand(2, 20, 20) < 0.5)
    loss, a, w = gradients(features[kind], torch.full((2, 3), 0.7), roi, torch.tensor([0, 1]), convention=convention,
                           backend=backend)  # fmt: skip
    if convention == "captum" and kind == "negative":  # it keeps negative values, so there is a map
        assert (loss < 1).all()
        assert a.abs().max() > 0
        return
    assert loss.tolist() == [1, 1]
    assert not a.any()
    assert not w.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_an_empty_roi_has_loss_zero_and_no_gradient_whatever_the_features(backend, value):
    features, weight, roi, classes = scenes(3, 8, 3, 5, 40)
    mask = roi.unpack()
    mask[1] = False
    features[1, 2] = value
    loss, a, w = gradients(features, weight, pack_roi(mask), classes, backend=backend)
    assert loss[1] == 0
    assert loss[[0, 2]].min() > 0
    assert not a[1].any()
    rest = gradients(features[[0, 2]], weight, pack_roi(mask[[0, 2]]), classes[[0, 2]], backend=backend)
    torch.testing.assert_close(w, rest[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("silent", [False, True])
def test_what_is_not_finite_stays_with_its_sample_and_its_class(backend, value, dtype, silent):
    features, weight, roi, _ = scenes(3, 8, 3, 5, 40)
    classes = torch.tensor([0, 1, 2])
    weight[:, 2] = 0 if silent else weight[:, 2]
    features = features.to(dtype)
    clean = gradients(features, weight, roi, classes, backend=backend)
    features[1, 2, 3, 3] = value
    loss, a, w = gradients(features, weight, roi, classes, backend=backend)
    assert loss.isnan().tolist() == [False, True, False]
    assert a[1].isnan().all()
    assert w[1].isnan().all()
    for ours, before in ((loss, clean[0]), (a, clean[1]), (w, clean[2])):
        torch.testing.assert_close(ours[[0, 2]], before[[0, 2]], rtol=1e-6, atol=1e-7)


def test_a_tied_peak_shares_its_gradient_evenly():
    """Two cells, mirror images of each other, under an ROI that is one too; inside, and at the border."""
    roi = pack_roi(torch.ones(1, 12, 40, dtype=torch.bool))
    inside, border = [0.0, 1.0, 0.25, 1.0, 0.0], [1.0, 0.5, 0.25, 0.5, 1.0]
    for backend, row in product(BACKENDS, (inside, border)):
        features = torch.tensor([[[row]]]).expand(1, 1, 3, 5).contiguous()
        _, a, _ = gradients(features, torch.ones(1, 1), roi, torch.tensor([0]), backend=backend, convention="monai")
        assert a.abs().max() > 0
        torch.testing.assert_close(a, a.flip(3), rtol=1e-5, atol=1e-7)


def test_gradient_descent_on_features_and_on_the_head_lowers_the_loss():
    for backend in BACKENDS:
        features, weight, roi, classes = scenes(4, 16, 3, 7, 64)
        features.requires_grad_()
        weight.requires_grad_()
        optimiser = torch.optim.Adam([features, weight], lr=0.05)
        losses = []
        for _ in range(15):
            loss = cam_loss(features, weight, roi, classes, backend=backend).mean()
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_rounded_to_half_precision_as_pytorch_rounds(dtype):
    rng = np.random.default_rng(0)
    bits = np.concatenate(
        [rng.integers(0, 2**32, 200_000, dtype=np.uint32), np.arange(0x33000000, 0x33000100).astype(np.uint32)]
    )
    ties = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    ties = torch.cat([ties, (ties + ties.roll(1)) / 2])  # every value, and what lies in the middle of two
    values = torch.cat([torch.from_numpy(bits.view(np.float32)), ties, torch.tensor([65519.9, 65520, -65520, 2**-25])])
    ours = cpu.features_gradient(torch.ones(1), values[None], torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, 1),
                                 dtype, False)[0, :, 0, 0]  # fmt: skip
    theirs = values.to(dtype)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(0, 1e9, -1e9), theirs.nan_to_num(0, 1e9, -1e9))


def test_the_number_of_threads_changes_nothing():
    features, weight, roi, classes = scenes(13)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            outs.append(gradients(features, weight, roi, classes, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for out in outs[1:]:
        assert all(map(torch.equal, out, outs[0]))


def test_every_element_of_the_output_is_written(monkeypatch):
    features, weight, roi, classes = scenes(6, 8, 3, 5, 40)
    mask = roi.unpack()
    mask[4] = False
    features[2] = 1  # no contrast
    clean = gradients(features, weight, pack_roi(mask), classes, backend="cpu")
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full_like(empty(shape, dtype), -77))
    blank = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: blank(*shape, **options).fill_(-77))
    assert all(map(torch.equal, gradients(features, weight, pack_roi(mask), classes, backend="cpu"), clean))


def test_only_what_requires_grad_gets_one():
    features, weight, roi, classes = scenes(3, 8)
    both = gradients(features, weight, roi, classes, backend="cpu")
    for i, x in enumerate((features, weight)):
        x.requires_grad_()
        (only,) = torch.autograd.grad(cam_loss(features, weight, roi, classes, backend="cpu").sum(), x)
        assert torch.equal(only, both[1 + i])
        x.requires_grad_(False)
    assert not cam_loss(features, weight, roi, classes).requires_grad


def test_the_reference_works_after_an_acquisition_in_inference_mode():
    features, weight, roi, classes = scenes(2, 8, 3, 6, 59)
    with torch.inference_mode():
        acquire(features, weight, None, roi, backend="reference")
    found = gradients(features, weight, roi, classes, backend="reference")
    assert all(torch.isfinite(x).all() and x.any() for x in found)


def test_a_second_derivative_of_the_cpu_backend_is_refused():
    features, weight, roi, classes = scenes(2, 8)
    features.requires_grad_()
    loss = cam_loss(features, weight, roi, classes, backend="cpu").sum()
    (a,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        a.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_an_empty_loss(backend):
    roi = pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool))
    loss, a, w = gradients(
        torch.zeros(0, 2, 3, 3), torch.ones(4, 2), roi, torch.zeros(0, dtype=torch.int64), backend=backend
    )
    assert loss.shape == (0,)
    assert a.shape == (0, 2, 3, 3)
    assert not w.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, "features: expected shape [B, C, h, w], got [2, 3, 4]"),
        ({"features": torch.zeros(2, 3, 4, 4).int()}, "features: expected dtype float32, bfloat16, float16, float64"),
        ({"weight": torch.zeros(5, 4)}, "weight: expected shape [K, C=3], got [5, 4]"),
        ({"weight": torch.zeros(5, 3, device="meta")}, "weight: expected device cpu, that of features, got meta"),
        ({"roi": torch.zeros(2, 8, 8, dtype=torch.bool)}, "roi: expected a PackedRoi, got Tensor"),
        ({"roi": pack_roi(torch.zeros(3, 8, 8, dtype=torch.bool))}, "roi.bits: expected shape [B=2, W, words], got [3"),
        ({"classes": torch.zeros(2)}, "classes: expected dtype int64, got float32 [2]"),
        ({"classes": torch.tensor([0, 5])}, "classes: expected values in [0, 5), got 5"),
        ({"classes": torch.tensor([-1, 0])}, "classes: expected values in [0, 5), got -1"),
        ({"convention": "gradcam"}, "convention: unknown value 'gradcam'; did you mean 'grad-cam'?"),
        ({"backend": "cp"}, "backend: unknown value 'cp'; did you mean 'cpu'?"),
        (
            {"backend": "cpu", "features": torch.zeros(2, 3, 4, 4).double()},
            "backend: 'cpu' computes in float32, got float64 features; choose 'auto' or 'reference'",
        ),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    given = {
        "features": torch.zeros(2, 3, 4, 4),
        "weight": torch.zeros(5, 3),
        "roi": pack_roi(torch.zeros(2, 8, 8, dtype=torch.bool)),
        "classes": torch.tensor([4, 0]),
    }
    cam_loss(**given)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        cam_loss(**given | changes)
    assert "\n" not in str(error.value)


def test_without_numba_one_warning_says_what_is_lost():
    script = """
import sys, warnings, torch
sys.modules["numba"] = None
from egal_kernels import cam_loss, pack_roi
arguments = torch.ones(1, 1, 2, 2), torch.ones(2, 1), pack_roi(torch.ones(1, 4, 4, dtype=torch.bool)), torch.tensor([0])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cam_loss(*arguments)
    cam_loss(*arguments)
print(*(w.message for w in caught))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.count("Numba is not installed") == 1
