"""Dice from counts, against MONAI and torchmetrics, and its policy for empty ROIs."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceHelper, compute_dice
from torchmetrics.functional.segmentation import dice_score

from egal_kernels import Acquisition, acquire, pack_roi
from egal_kernels.shared.recipes import RECIPES


@pytest.fixture(scope="module")
def case():
    """(acquisition, CAM, thresholded CAM, ROI) of 24 images; some ROIs are empty, some thresholded CAMs, some both."""
    rng = np.random.default_rng(0)
    class_map = torch.from_numpy(rng.normal(size=(24, 5, 5)).astype(np.float32))
    class_map[::4] = -1
    roi = torch.from_numpy(rng.random((24, 30, 20)) < rng.uniform(0.1, 0.9, size=(24, 1, 1)))
    roi[::3] = False
    out = acquire(class_map[:, None], None, None, pack_roi(roi), alpha=torch.ones(24, 1), logits=torch.zeros(24, 2))
    cam = RECIPES["grad-cam"](class_map, (30, 20))
    return out, cam, cam >= 0.5, roi


def test_dice_equals_monai_which_has_nan_for_an_empty_roi(case):
    out, _, hit, roi = case
    expected = compute_dice(hit[:, None].float(), roi[:, None].float(), ignore_empty=True)[:, 0]
    assert expected.isnan().any()
    torch.testing.assert_close(out.dice("nan"), expected, rtol=2e-7, atol=0, equal_nan=True)


def test_the_counts_also_give_the_other_policy_of_monai(case):
    out, _, hit, roi = case
    expected = DiceHelper(ignore_empty=False, get_not_nans=False, num_classes=1, include_background=True,
                          reduction="none")(hit[:, None].float(), roi[:, None].float())[:, 0]  # fmt: skip
    both_empty = (out.roi_area == 0) & (out.cam_area == 0)
    assert both_empty.any()
    torch.testing.assert_close(out.dice("zero").masked_fill(both_empty, 1), expected, rtol=2e-7, atol=0)


def test_dice_equals_torchmetrics_for_samples_with_a_roi(case):
    out, _, hit, roi = case
    seen = roi.flatten(1).any(1)
    expected = dice_score(hit[seen, None].long(), roi[seen, None].long(), num_classes=1, average="none")
    torch.testing.assert_close(out.dice()[seen], expected.flatten(), rtol=2e-7, atol=0)


def test_soft_dice_equals_its_definition_in_binary64(case):
    out, cam, _, roi = case
    cam, roi = cam.double().numpy(), roi.numpy()
    with np.errstate(invalid="ignore"):
        expected = 2 * (cam * roi).sum((1, 2)) / (cam.sum((1, 2)) + roi.sum((1, 2)))
    seen = roi.any((1, 2))
    np.testing.assert_allclose(out.soft_dice()[seen], expected[seen], rtol=1e-6)
    assert out.soft_dice()[~seen].isnan().all()


@pytest.mark.parametrize(("empty", "value"), [("zero", 0.0), ("one", 1.0)])
def test_a_policy_applies_to_empty_rois_only(case, empty, value):
    out, _, _, roi = case
    none = ~roi.flatten(1).any(1)
    assert {bool(n) for n in out.cam_area[none] == 0} == {True, False}  # both-empty and one-empty are among them
    for policy, plain in ((out.dice(empty), out.dice()), (out.soft_dice(empty), out.soft_dice())):
        assert (policy[none] == value).all()
        assert torch.equal(policy[~none], plain[~none])


def test_an_empty_cam_on_a_roi_has_dice_zero(case):
    out, _, hit, roi = case
    blind = ~hit.flatten(1).any(1) & roi.flatten(1).any(1)
    assert blind.any()
    for empty in ("nan", "zero", "one"):
        assert (out.dice(empty)[blind] == 0).all()


def test_dice_of_a_centred_cam_depends_on_the_roi_area():
    """The table of docs/kernels.md: one hot cell of 7×7 under centred square ROIs of 224² images."""
    features = torch.zeros(4, 1, 7, 7)
    features[:, 0, 3, 3] = 1
    half = torch.tensor([7, 14, 28, 57])[:, None, None]  # sides of 14 to 114 pixels: .4, 1.6, 6.3, 25.9 % of the image
    y = (torch.arange(224) - 111.5).abs()
    roi = pack_roi(torch.maximum(y[:, None], y) < half)
    out = acquire(features, None, None, roi, alpha=torch.ones(4, 1), logits=torch.zeros(4, 1))
    np.testing.assert_allclose(out.soft_dice(), [0.256, 0.537, 0.488, 0.150], atol=5e-4)
    np.testing.assert_allclose(out.dice(), [0.447, 0.863, 0.356, 0.099], atol=5e-4)


def test_counts_near_the_end_of_int32_do_not_overflow():
    n = torch.tensor([2**31 - 1], dtype=torch.int32)
    f = n.float()
    out = Acquisition(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1).long(), n, n, n, f, 2 * f)
    assert out.dice().tolist() == [1.0]
    assert out.soft_dice().tolist() == [1.0]
