"""The example of the kernels alone: its picture and its numbers, against each other and against the closed form."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from egal_kernels import acquire, pack_roi

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "kernels_alone" / "cam_picture.py"


@pytest.fixture
def cam_picture():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("cam_picture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def problem():
    """An untrained network in evaluation mode, two images and their ROIs."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=5).eval()
    roi = torch.zeros(2, 224, 224, dtype=torch.bool)
    roi[:, 60:120, 80:150] = True
    return model, torch.randn(2, 3, 224, 224), roi


def test_the_numbers_are_those_of_the_closed_form(cam_picture, problem):
    model, images, roi = problem
    acquisition, _ = cam_picture.explained(model, images, roi)
    with torch.no_grad():
        features = model.forward_features(images)
        expected = acquire(features, model.fc.weight, model.fc.bias, pack_roi(roi))
    assert torch.equal(acquisition.predicted, expected.predicted)
    assert (acquisition.cam_area - expected.cam_area).abs().max() <= 2  # rounding moves pixels at the threshold
    torch.testing.assert_close(acquisition.entropy, expected.entropy)
    torch.testing.assert_close(acquisition.soft_dice(), expected.soft_dice())


def test_the_drawn_map_is_the_one_that_was_counted(cam_picture, problem):
    model, images, roi = problem
    acquisition, class_maps = cam_picture.explained(model, images, roi)
    for i, class_map in enumerate(class_maps):
        hot = cam_picture.grad_cam(class_map) >= 0.5
        assert abs(hot.sum() - acquisition.cam_area[i]) <= 2
        assert abs((hot & roi[i]).sum() - acquisition.intersection[i]) <= 2


def test_the_script_writes_the_picture_with_the_outline(cam_picture, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 50), np.uint8)).save(tmp_path / "image.png")
    mask = np.zeros((60, 50), np.uint8)
    mask[20:40, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.setattr(sys, "argv", ["cam_picture", *(str(tmp_path / f"{n}.png") for n in ("image", "mask", "out"))])
    cam_picture.main()
    assert "Dice of Grad-CAM and ROI" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as shown:
        pixels = np.asarray(shown)
    green = np.argwhere((pixels == (0, 255, 0)).all(axis=2))
    assert pixels.shape == (224, 224, 3)
    # pixel i of 224 shows pixel floor((i + 1/2)·60/224) of 60 rows, or of 50 columns
    assert green.min(axis=0).tolist() == [75, 45]
    assert green.max(axis=0).tolist() == [148, 133]
