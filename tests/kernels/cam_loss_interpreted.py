"""The Triton backend of `cam_loss` in Triton's interpreter; run by test_cam_loss_triton.py in a process of its own.

Outputs and scratch start as NaN: PyTorch fills uninitialised memory so in its deterministic mode.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from egal_kernels import cam_loss, pack_roi
from egal_kernels.acquisition.conventions import RECIPES
from egal_kernels.loss import triton as backend
from kernels.test_cam_loss import extremes_are_unique, gradients, scenes

assert backend.INTERPRETED, "set TRITON_INTERPRET=1"
torch.use_deterministic_algorithms(True)

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@st.composite
def problems(draw):
    """Features and weights of whole numbers, such that the class map is exact in float32: what differs is not it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b, c, sides = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 17])), st.sampled_from([1, 2, 3, 7])
    h, w, dtype = draw(sides), draw(sides), draw(DTYPES)
    features = torch.from_numpy(rng.integers(draw(st.sampled_from([-250, 1])), 250, (b, c, h, w))).to(dtype)
    weight = torch.from_numpy(rng.integers(draw(st.sampled_from([-9, 1])), 10, (3, c)) * h * w).float()
    layout = draw(st.sampled_from(["contiguous", "channels_last", "strided"]))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    sizes = st.sampled_from([1, 2, 13, 31, 32, 33, 70])
    roi = torch.from_numpy(rng.random((b, draw(sizes), draw(sizes))) < draw(st.sampled_from([0.02, 0.3, 1.0])))
    return (
        features,
        weight,
        pack_roi(roi),
        torch.from_numpy(rng.integers(3, size=b)),
        torch.from_numpy(rng.normal(size=b)),
    )


@given(problems(), st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_it_equals_autograd_of_the_reference_in_binary64(problem, convention):
    features, weight, roi, classes, grad = problem
    assume(extremes_are_unique(features, weight, roi, classes, convention))
    loss, a, w = gradients(features, weight, roi, classes, grad, convention=convention, backend="triton")
    expected = gradients(features.double(), weight.double(), roi, classes, grad, convention=convention)
    assert (loss.dtype, a.dtype, w.dtype) == (torch.float32, features.dtype, torch.float32)
    np.testing.assert_allclose(loss.double(), expected[0], rtol=0, atol=1e-6)
    # the interpreter cuts a float32 off to bfloat16, which devices round
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[features.dtype]
    floor = 2.0**-25 if features.dtype == torch.float16 else 0  # half the least subnormal
    alpha = weight.double()[classes] / features[0, 0].numel()
    class_map = torch.einsum("bc,bchw->bhw", alpha, features.double()).flatten(1)
    natural = grad.abs() / (class_map.amax(1) - class_map.amin(1)).clamp_min(1)
    for i in range(len(features)):
        scale = alpha[i].abs().max().item() * natural[i].item()
        np.testing.assert_allclose(a[i].double(), expected[1][i], rtol=rounding, atol=2e-6 * scale + floor)
    moments = natural[:, None] * features.double().abs().mean((2, 3))
    assert (w - expected[2]).abs().max() <= 2e-6 * moments.sum(0).max()


def test_ties_constants_empties_and_what_is_not_finite_are_as_on_the_cpu():
    features, weight, roi, _ = scenes(6, 4, 3, 3, 17)
    mask, classes = roi.unpack(), torch.tensor([0, 1, 2, 0, 1, 0])
    features[1, 2, 1, 1] = math.nan
    features[2] = 1  # no contrast
    mask[3] = False
    features[3] = math.inf
    features[4] = 0
    features[4, :, 0, 1] = features[4, :, 2, 1] = weight[1]  # a tied peak
    for convention in ("grad-cam", "monai"):
        ours, cpu = (gradients(features, weight, pack_roi(mask), classes, convention=convention, backend=name)
                     for name in ("triton", "cpu"))  # fmt: skip
        assert ours[0].isnan().tolist() == [i == 1 for i in range(6)]
        assert ours[0][2:4].tolist() == [1, 0]
        for x, y in zip(ours, cpu, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_requires_grad_gets_one(wanted):
    features, weight, roi, classes = scenes(2, 4, 3, 2, 9)
    both = gradients(features, weight, roi, classes, backend="triton")
    x = (features, weight)[wanted].requires_grad_()
    (only,) = torch.autograd.grad(cam_loss(features, weight, roi, classes, backend="triton").sum(), x)
    assert torch.equal(only, both[1 + wanted])


def test_an_empty_batch_gives_an_empty_loss():
    roi, none = pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool)), torch.zeros(0, dtype=torch.int64)
    loss, a, w = gradients(torch.zeros(0, 2, 3, 3), torch.ones(4, 2), roi, none, backend="triton")
    assert (loss.shape, a.shape) == ((0,), (0, 2, 3, 3))
    assert not w.any()
