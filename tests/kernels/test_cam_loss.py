"""`cam_loss`: the reference against loops and finite differences, the CPU backend against the reference in binary64."""

import math
import re
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from egal_kernels import ArgumentError, acquire, cam_loss, pack_roi
from egal_kernels.loss import cpu
from egal_kernels.shared.recipes import RECIPES
from kernels.oracle import truth
from kernels.problems import (
    HALVES_AND_SINGLES,
    assert_gradients,
    extremes_are_unique,
    gradients,
    scene,
    whole_number_losses,
)  # fmt: skip

BACKENDS = ["reference", "cpu"]
SIDES = st.sampled_from([1, 2, 3, 5, 7, 14])
SIZES = st.sampled_from([1, 2, 5, 13, 31, 32, 33, 64, 97])


@pytest.mark.parametrize("convention", RECIPES)
@pytest.mark.parametrize("shape", [(3, 2, 11, 9), (1, 4, 5, 33), (5, 5, 3, 4)])
def test_gradients_of_the_reference_equal_finite_differences(convention, shape):
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
def test_values_equal_loops_over_pixels(backend):
    features, weight, _, roi, classes = scene(4, 8, 3, 5, 33)
    loss = cam_loss(features, weight, roi, classes, backend=backend)
    for i, k in enumerate(classes):
        true = truth(features[i].tolist(), (weight[k] / 25).tolist(), [0.0], roi[i : i + 1].unpack()[0].tolist(), 0.5)
        assert loss[i].item() == pytest.approx(1 - 2 * true.soft_intersection / true.soft_area, abs=1e-6)


@pytest.mark.parametrize("convention", RECIPES)
def test_it_is_one_minus_the_soft_dice_of_acquire(convention):
    features, weight, _, roi, classes = scene()
    out = acquire(features, weight, None, roi, classes=classes, convention=convention)
    loss = cam_loss(features, weight, roi, classes, convention=convention)
    torch.testing.assert_close(loss, 1 - out.soft_dice(), rtol=0, atol=2e-6)


LARGEST = {torch.float32: 4000, torch.bfloat16: 256, torch.float16: 2048}
PROBLEMS = whole_number_losses(
    st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 17]), st.integers(1, 3), SIDES, SIZES, LARGEST
)


@given(PROBLEMS, st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=80)
def test_cpu_gradients_equal_autograd_in_binary64(problem, convention):
    assume(extremes_are_unique(*problem[:4], convention))
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[problem[0].dtype]
    result = gradients(*problem, convention=convention, backend="cpu")
    assert_gradients(result, problem, convention, rounding, 1e-6)


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("convention", RECIPES)
def test_smooth_maps_have_the_gradients_of_binary64(dtype, channels_last, convention):
    features, weight, _, roi, classes = scene()
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
def test_an_empty_roi_has_loss_zero_and_no_gradient(backend, value):
    features, weight, _, roi, classes = scene(3, 8, 3, 5, 40)
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
@pytest.mark.parametrize("dtype", HALVES_AND_SINGLES)
@pytest.mark.parametrize("silent", [False, True])
def test_a_non_finite_sample_affects_only_its_class(backend, value, dtype, silent):
    features, weight, _, roi, _ = scene(3, 8, 3, 5, 40)
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


def test_tied_peaks_share_their_gradient_evenly():
    """Two cells, mirror images of each other, under an ROI that is one too; inside, and at the border."""
    roi = pack_roi(torch.ones(1, 12, 40, dtype=torch.bool))
    inside, border = [0.0, 1.0, 0.25, 1.0, 0.0], [1.0, 0.5, 0.25, 0.5, 1.0]
    for backend, row in product(BACKENDS, (inside, border)):
        features = torch.tensor([[[row]]]).expand(1, 1, 3, 5).contiguous()
        _, a, _ = gradients(features, torch.ones(1, 1), roi, torch.tensor([0]), backend=backend, convention="monai")
        assert a.abs().max() > 0
        torch.testing.assert_close(a, a.flip(3), rtol=1e-5, atol=1e-7)


def test_gradient_descent_lowers_the_loss():
    for backend in BACKENDS:
        features, weight, _, roi, classes = scene(4, 16, 3, 7, 64)
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
def test_gradients_are_rounded_to_halves_as_by_pytorch(dtype):
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


def test_every_element_of_the_output_is_written(monkeypatch):
    features, weight, _, roi, classes = scene(6, 8, 3, 5, 40)
    mask = roi.unpack()
    mask[4] = False
    features[2] = 1  # no contrast
    clean = gradients(features, weight, pack_roi(mask), classes, backend="cpu")
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full_like(empty(shape, dtype), -77))
    blank = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: blank(*shape, **options).fill_(-77))
    assert all(map(torch.equal, gradients(features, weight, pack_roi(mask), classes, backend="cpu"), clean))


def test_only_tensors_that_require_grad_get_a_gradient():
    features, weight, _, roi, classes = scene(3, 8)
    both = gradients(features, weight, roi, classes, backend="cpu")
    for i, x in enumerate((features, weight)):
        x.requires_grad_()
        (only,) = torch.autograd.grad(cam_loss(features, weight, roi, classes, backend="cpu").sum(), x)
        assert torch.equal(only, both[1 + i])
        x.requires_grad_(False)
    assert not cam_loss(features, weight, roi, classes).requires_grad


def test_the_reference_works_after_inference_mode():
    features, weight, _, roi, classes = scene(2, 8, 3, 6, 59)
    with torch.inference_mode():
        acquire(features, weight, None, roi, backend="reference")
    results = gradients(features, weight, roi, classes, backend="reference")
    assert all(torch.isfinite(x).all() and x.any() for x in results)


def test_a_second_derivative_of_the_cpu_backend_is_refused():
    features, weight, _, roi, classes = scene(2, 8)
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
    arguments = {
        "features": torch.zeros(2, 3, 4, 4),
        "weight": torch.zeros(5, 3),
        "roi": pack_roi(torch.zeros(2, 8, 8, dtype=torch.bool)),
        "classes": torch.tensor([4, 0]),
    }
    cam_loss(**arguments)
    with pytest.raises(ArgumentError, match=re.escape(message)) as error:
        cam_loss(**arguments | changes)
    assert "\n" not in str(error.value)
