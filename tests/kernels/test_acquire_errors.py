"""Wrong arguments of `acquire`, and the errors that name them."""

import re

import pytest
import torch

from egal_kernels import ArgumentError, acquire, pack_roi


def arguments(**changes):
    right = {
        "features": torch.zeros(2, 3, 4, 4),
        "weight": torch.zeros(5, 3),
        "bias": torch.zeros(5),
        "roi": pack_roi(torch.zeros(2, 8, 8, dtype=torch.bool)),
    }
    return right | changes


ANY_HEAD = {"weight": None, "bias": None, "alpha": torch.zeros(2, 3), "logits": torch.zeros(2, 5)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, "features: expected shape [B, C, h, w], got [2, 3, 4]"),
        ({"features": torch.zeros(2, 3, 0, 4)}, "got [2, 3, 0, 4]"),
        (
            {"features": torch.zeros(2, 3, 4, 4, dtype=torch.int32)},
            "features: expected dtype float32, bfloat16, float16, float64, got int32 [2, 3, 4, 4]",
        ),
        ({"weight": torch.zeros(5, 4)}, "weight: expected shape [K, C=3], got [5, 4]"),
        ({"weight": torch.zeros(5, 3, dtype=torch.int64)}, "weight: expected dtype"),
        ({"weight": torch.zeros(5, 3, device="meta")}, "weight: expected device cpu, that of features, got meta"),
        ({"bias": torch.zeros(4)}, "bias: expected shape [K=5], got [4]"),
        ({"roi": torch.zeros(2, 8, 8, dtype=torch.bool)}, "roi: expected a PackedRoi, got Tensor"),
        ({"roi": pack_roi(torch.zeros(3, 8, 8, dtype=torch.bool))}, "roi.bits: expected shape [B=2, W, words], got [3"),
        ({"weight": None}, "weight, alpha: give weight (a linear head) or alpha with logits (any head), got neither"),
        ({"alpha": torch.zeros(2, 3)}, "got both"),
        ({"logits": torch.zeros(2, 5)}, "logits: goes with alpha"),
        (ANY_HEAD | {"logits": None}, "logits: expected a tensor [B, K], got NoneType"),
        (ANY_HEAD | {"logits": torch.zeros(3, 5)}, "logits: expected shape [B=2, K], got [3, 5]"),
        (ANY_HEAD | {"alpha": torch.zeros(2, 4)}, "alpha: expected shape [B=2, C=3], got [2, 4]"),
        (ANY_HEAD | {"bias": torch.zeros(5)}, "bias: goes with weight"),
        (ANY_HEAD | {"classes": torch.zeros(2, dtype=torch.int64)}, "classes: goes with weight"),
        ({"classes": torch.zeros(2, dtype=torch.int32)}, "classes: expected dtype int64, got int32 [2]"),
        ({"classes": torch.zeros(3, dtype=torch.int64)}, "classes: expected shape [B=2], got [3]"),
        ({"classes": torch.tensor([0, 5])}, "classes: expected values in [0, 5), got 5"),
        ({"classes": torch.tensor([-1, 0])}, "classes: expected values in [0, 5), got -1"),
        ({"threshold": 1.5}, "threshold: expected a number in [0, 1], got 1.5"),
        ({"threshold": float("nan")}, "threshold: expected a number in [0, 1], got nan"),
        (
            {"convention": "gradcam"},
            "convention: unknown value 'gradcam'; did you mean 'grad-cam'? choices: 'grad-cam', 'torchcam'",
        ),
        ({"backend": "tritn"}, "backend: unknown value 'tritn'; did you mean 'triton'? choices: 'auto', 'reference'"),
        ({"backend": "triton"}, "backend: 'triton' takes features on a CUDA or ROCm device, got cpu; move them there"),
        (
            {"backend": "triton", "features": torch.zeros(2, 3, 4, 4, dtype=torch.float64)},
            "backend: 'triton' computes in float32, got float64 features; choose 'auto' or 'reference'",
        ),
        (
            {"backend": "cpu", "features": torch.zeros(2, 3, 4, 4, dtype=torch.float64)},
            "backend: 'cpu' computes in float32, got float64 features; choose 'auto' or 'reference'",
        ),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ArgumentError, match=re.escape(message)) as error:
        acquire(**arguments(**changes))
    assert "\n" not in str(error.value)


def test_the_unspoiled_arguments_are_accepted():
    for changes in ({}, ANY_HEAD, {"classes": torch.tensor([4, 0]), "backend": "reference", "threshold": 1}):
        out = acquire(**arguments(**changes))
        assert out.logits.shape[0] == len(out.predicted) == 2
        assert (out.predicted >= 0).all()


def test_dice_suggests_the_nearest_policy():
    out = acquire(**arguments())
    with pytest.raises(ArgumentError, match="empty: unknown value 'zeros'; did you mean 'zero'"):
        out.dice("zeros")
