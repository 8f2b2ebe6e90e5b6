"""An explanation loss without a gradient: training says so instead of pretending to explain."""

import numpy as np
import pytest
import torch

from bench.learners.squares import squares
from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.learners.augmentation import Samples
from egal_bench.learners.training import Objective, train
from egal_kernels import pack_roi

pytestmark = pytest.mark.usefixtures("one_thread")

LINE = "--explain-loss: no Grad-CAM of the labelled samples is positive anywhere, so this loss has no gradient"


def samples(masks_per_sample=True):
    images, labels, masks = squares(20)
    return Samples(images, labels, pack_roi(masks if masks_per_sample else masks & False))


def network_with_weights_of(sign):
    """Return a network whose head weighs every channel with this sign; its features are 0 or above."""
    network = small_cnn()
    with torch.no_grad():
        network.head.weight.abs_().mul_(sign)
    return network


@pytest.mark.parametrize(
    ("sign", "with_roi", "lines"), [(-1, True, [LINE]), (1, True, []), (-1, False, [])],
    ids=["negative everywhere", "positive", "no ROI to explain"],
)  # fmt: skip
def test_training_says_when_no_cam_is_positive(capsys, sign, with_roi, lines):
    config = Config(steps=1, batch_size=20, learning_rate=1e-9, explain_loss=0.5)
    train(network_with_weights_of(sign), samples(with_roi), None, config, np.random.default_rng(0))
    assert " ".join(capsys.readouterr().err.split()) == " ".join(lines)


@pytest.mark.parametrize(("sign", "has_gradient"), [(-1, False), (1, True)])
def test_the_line_is_true(sign, has_gradient):
    """The gradients with and without the explanation differ exactly where the line is not said."""
    network = network_with_weights_of(sign).eval()
    gradients = [
        torch.autograd.grad(Objective(weight)(network, samples()), network.head.weight)[0] for weight in (0.0, 0.5)
    ]
    assert torch.equal(*gradients) is not has_gradient
