"""The Triton backend of `cam_loss` in Triton's interpreter; run by test_cam_loss_triton.py in a process of its own.

Outputs and scratch start as NaN: PyTorch fills uninitialised memory so in its deterministic mode.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from egal_kernels import cam_loss, pack_roi
from egal_kernels.loss import triton as backend
from egal_kernels.shared.recipes import RECIPES
from kernels.problems import assert_gradients, extremes_are_unique, gradients, scene, whole_number_losses

assert backend.INTERPRETED, "set TRITON_INTERPRET=1"
torch.use_deterministic_algorithms(True)

LARGEST = {torch.float32: 250, torch.bfloat16: 250, torch.float16: 250}
SIDES, SIZES = st.sampled_from([1, 2, 3, 7]), st.sampled_from([1, 2, 13, 31, 32, 33, 70])
PROBLEMS = whole_number_losses(st.integers(1, 2), st.sampled_from([1, 3, 17]), st.just(3), SIDES, SIZES, LARGEST)


@given(PROBLEMS, st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_gradients_equal_autograd_in_binary64(problem, convention):
    assume(extremes_are_unique(*problem[:4], convention))
    # the interpreter truncates a float32 to bfloat16, where devices round it
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[problem[0].dtype]
    result = gradients(*problem, convention=convention, backend="triton")
    assert_gradients(result, problem, convention, rounding, 2e-6)


def test_awkward_samples_are_treated_as_on_the_cpu():
    features, weight, _, roi, _ = scene(6, 4, 3, 3, 17)
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


@pytest.mark.parametrize("index", [0, 1])
def test_only_tensors_that_require_grad_get_a_gradient(index):
    features, weight, _, roi, classes = scene(2, 4, 3, 2, 9)
    both = gradients(features, weight, roi, classes, backend="triton")
    x = (features, weight)[index].requires_grad_()
    (only,) = torch.autograd.grad(cam_loss(features, weight, roi, classes, backend="triton").sum(), x)
    assert torch.equal(only, both[1 + index])


def test_an_empty_batch_gives_an_empty_loss():
    roi, none = pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool)), torch.zeros(0, dtype=torch.int64)
    loss, a, w = gradients(torch.zeros(0, 2, 3, 3), torch.ones(4, 2), roi, none, backend="triton")
    assert (loss.shape, a.shape) == ((0,), (0, 2, 3, 3))
    assert not w.any()
