"""A round of training: its loss and gradients, its recipe, and the weights that it keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from bench.learners.squares import moved_by, squares
from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.learners.augmentation import Samples
from egal_bench.learners.dropout import dropout_mask
from egal_bench.learners.training import Objective, class_weights, fitted, train
from egal_bench.models.heads import Head
from egal_bench.models.network import Network
from egal_kernels import pack_roi

pytestmark = pytest.mark.usefixtures("one_thread")


def misalignment(network: Network, images, labels, masks) -> torch.Tensor:
    """Return 1 − soft Dice of the true class's Grad-CAM with each mask, [B], in plain float64."""
    maps = torch.einsum("bc,bchw->bhw", network.head.weight.double()[labels], network.features(images).double())
    cam = low_high((maps / maps[0].numel()).relu())
    cam = low_high(F.interpolate(cam[:, None], masks.shape[1:], mode="bilinear")[:, 0])
    return 1 - 2 * (cam * masks).sum((1, 2)) / (cam.sum((1, 2)) + masks.sum((1, 2)))


def low_high(maps: torch.Tensor) -> torch.Tensor:
    """Return each of `maps`, [B, H, W], scaled to 0..1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def test_training_without_options_is_the_plain_loop_to_the_bit():
    images, labels, _ = squares(43)
    config = Config(steps=13, batch_size=16, learning_rate=5e-3)
    network, reference = small_cnn(), small_cnn().train()
    train(network, Samples(images, labels), None, config, np.random.default_rng(3))

    rng, steps = np.random.default_rng(3), iter(range(13))
    optimizer = torch.optim.AdamW(reference.parameters(), lr=5e-3, weight_decay=1e-2, fused=True)
    for _ in range(5):
        for rows, step in zip(np.array_split(rng.permutation(43), 3), steps, strict=False):
            moves = zip(rows, rng.integers(0, 5, (len(rows), 2)), rng.random(len(rows)) < 0.5, strict=True)
            moved = np.stack([moved_by(images[i, 0].numpy(), shift, flip) for i, shift, flip in moves])
            done = (step + 0.5) / 13
            rate = done / 0.25 if done < 0.25 else 0.5 + 0.5 * np.cos(np.pi * (done - 0.25) / 0.75)
            optimizer.param_groups[0]["lr"] = 5e-3 * rate
            optimizer.zero_grad()
            F.cross_entropy(reference(torch.from_numpy(moved)[:, None]), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 10.0)
            optimizer.step()
    assert next(steps, None) is None
    for name, value in reference.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert not network.training


def test_objective_adds_the_mean_explanation_of_samples_with_roi():
    network, (images, labels, masks) = small_cnn().eval(), squares(11)
    value = Objective(0.7)(network, Samples(images, labels, pack_roi(masks)))
    with_roi = masks.any(2).any(1)
    assert with_roi.sum() == 8
    explained = misalignment(network, images[with_roi], labels[with_roi], masks[with_roi].double())
    expected = F.cross_entropy(network(images), labels).double() + 0.7 * explained.mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    parameters = [network.head.weight, *network.trunk.parameters()]
    gradients = torch.autograd.grad(value, parameters)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


def test_objective_explains_by_the_convention_it_was_given():
    network, (images, labels, masks) = small_cnn().eval(), squares(11)
    batch = Samples(images, labels, pack_roi(masks))
    values = [Objective(0.7, convention)(network, batch).item() for convention in ("grad-cam", "captum")]
    assert abs(values[0] - values[1]) > 1e-3


class Rescaled(Head):
    """A linear head behind a module of its own: no `weight`, and alpha by automatic differentiation."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner, self.classes = linear, linear.out_features

    def logits(self, pooled):
        return self.inner(pooled)


def test_training_needs_nothing_of_a_head_but_its_protocol():
    """A head that hides the same linear map learns the same, within the rounding of its explanation."""
    images, labels, masks = squares(40)
    samples = Samples(images, labels, pack_roi(masks))
    config = Config(steps=4, batch_size=20, explain_loss=0.5, class_balance=True)
    linear, hidden = small_cnn(), small_cnn()
    hidden.head = Rescaled(hidden.head)
    losses = [train(network, samples, None, config, np.random.default_rng(0))[1] for network in (linear, hidden)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(hidden.head.inner.weight, linear.head.weight, rtol=1e-3, atol=1e-4)


def test_dropout_masks_the_nll_and_leaves_the_explanation_alone():
    network, (images, labels, masks) = small_cnn().eval(), squares(11)
    batch, objective = Samples(images, labels, pack_roi(masks)), Objective(0.7, dropout=0.5)
    mask = dropout_mask((11, 64), 0.5, np.random.default_rng(4))
    pooled = network.features(images).mean((2, 3))
    explained = Objective(0.7)(network, batch) - F.cross_entropy(network.head.logits(pooled), labels)
    expected = F.cross_entropy(network.head.logits(pooled * mask), labels) + explained
    assert objective(network, batch, np.random.default_rng(4)).item() == pytest.approx(expected.item(), abs=1e-5)
    assert objective(network, batch).item() == pytest.approx(Objective(0.7)(network, batch).item(), abs=1e-6)


def test_training_draws_dropout_anew_in_each_step_from_its_stream():
    images, labels, _ = squares(30)
    heads = []
    for rate in (0.0, 0.5, 0.5):
        network = small_cnn()
        config = Config(steps=3, batch_size=15, head_dropout=rate)
        train(network, Samples(images, labels), None, config, np.random.default_rng(0))
        heads.append(network.head.weight.detach().clone())
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])


def test_training_until_settled_fits_every_label():
    images, labels, _ = squares(30)
    network, samples = small_cnn(), Samples(images, labels)
    config = Config(steps="auto", batch_size=15, learning_rate=5e-3)
    steps, _ = train(network, samples, None, config, np.random.default_rng(0))
    loss, accuracy = fitted(network, samples, "float32")
    assert accuracy == 1
    assert loss < 0.1
    assert 37 < steps < 500


def test_batch_without_any_roi_has_the_plain_loss():
    network, (images, labels, masks) = small_cnn().eval(), squares(6)
    value = Objective(0.7)(network, Samples(images, labels, pack_roi(masks & False)))
    assert value.item() == pytest.approx(F.cross_entropy(network(images), labels).item(), abs=1e-7)


def test_bfloat16_gives_nearly_the_same_loss_and_float32_gradients():
    network, (images, labels, masks) = small_cnn().eval(), squares(16)
    batch = Samples(images, labels, pack_roi(masks))
    full, half = (Objective(0.3, precision=precision)(network, batch) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert 0 < abs(full.item() - half.item()) < 0.02
    half.backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.trunk[0].weight.grad.norm() > 0


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60))
@settings(max_examples=50)
def test_class_weights_are_scikit_learns_balanced_ones(labels):
    weights = class_weights(torch.tensor(labels), 6).numpy()
    present = np.unique(labels)
    np.testing.assert_allclose(weights[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-6)
    assert weights[np.setdiff1d(np.arange(6), present)].tolist() == [0.0] * (6 - len(present))
    assert weights[labels].mean() == pytest.approx(1.0, rel=1e-5)


def test_class_balance_gives_classes_equal_shares_of_the_loss():
    network, (images, labels, _) = small_cnn().eval(), squares(23)
    value = Objective(weight=class_weights(labels, 3))(network, Samples(images, labels))
    log_p = network(images).double().log_softmax(1)
    expected = -torch.stack([log_p[labels == k, k].mean() for k in range(3)]).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(value.item() - F.cross_entropy(network(images), labels).item()) > 1e-4


def test_training_balances_classes_where_configured():
    images, labels, _ = squares(40)
    biases = {}
    for balance in (False, True):
        network = small_cnn()
        config = Config(steps=2, batch_size=20, class_balance=balance)
        train(network, Samples(images, labels % 2 * 2), None, config, np.random.default_rng(0))
        biases[balance] = network.head.bias.detach().clone()
    assert not torch.equal(biases[False], biases[True])
    assert (biases[True][1] - small_cnn().head.bias[1]) < 0  # a class without samples is only pushed away


@pytest.fixture
def watched():
    """A network, and the list of the states in which its held-out NLL was measured."""
    network, states = small_cnn(), []
    features = network.features

    def watch(images):
        if not network.training and len(images) == 64:  # the first batch of a measurement
            states.append({name: value.clone() for name, value in network.state_dict().items()})
        return features(images)

    network.features = watch
    return network, states


@pytest.mark.parametrize("task", ["learnable", "nonsense"])
def test_early_stop_keeps_the_lowest_nll_and_waits_ten_checks(watched, task):
    (network, states), (images, labels, _), (held_images, held_labels, _) = watched, squares(40), squares(70, seed=1)
    if task == "nonsense":
        held_labels = (held_labels + 1) % 3  # the more is learned, the worse
    config = Config(steps=40, batch_size=20, learning_rate=5e-3)
    train(network, Samples(images, labels), Samples(held_images, held_labels), config, np.random.default_rng(0))
    final, measured = network.state_dict(), list(states)
    reference, nll = small_cnn().eval(), []
    for state in measured:
        reference.load_state_dict(state)
        with torch.no_grad():
            nll.append(F.cross_entropy(reference(held_images).double(), held_labels).item())
    best = int(np.argmin(nll))
    assert len(measured) == min(20, best + 1 + 10)
    assert (best > 12) == (task == "learnable")
    for name, value in final.items():
        assert torch.equal(value, measured[best][name]), name
