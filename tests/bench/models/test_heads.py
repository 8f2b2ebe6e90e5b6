"""Heads: their logits, and the weights by which each explains a class."""

import pytest
import torch
from torch import Tensor, nn

from egal_bench.models.heads import Head, LinearHead

CHANNELS, CLASSES = 6, 4


class Curved(Head):
    """A head that is not linear and leaves its explanation to automatic differentiation."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = CLASSES
        self.layers = nn.Sequential(nn.Linear(CHANNELS, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()

    def logits(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)


@pytest.fixture(params=[Curved, lambda: LinearHead(CHANNELS, CLASSES).double()], ids=["curved", "linear"])
def head(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def pooled():
    return torch.randn(5, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CHOSEN = torch.tensor([3, 0, 0, 2, 1])


def test_alpha_is_the_gradient_of_the_chosen_logit(head, pooled):
    """Central differences of one channel of one sample at a time."""
    alpha, step = head.alpha(pooled, CHOSEN), 1e-6
    for channel in range(CHANNELS):
        shift = torch.zeros_like(pooled)
        shift[:, channel] = step
        difference = (head.logits(pooled + shift) - head.logits(pooled - shift)) / (2 * step)
        torch.testing.assert_close(alpha[:, channel], difference[range(5), CHOSEN], rtol=1e-7, atol=1e-7)


def test_channel_weights_are_alpha_by_row(head, pooled):
    weights, rows = head.channel_weights(pooled, CHOSEN)
    torch.testing.assert_close(weights[rows], head.alpha(pooled, CHOSEN))


def test_alpha_is_known_where_no_gradient_is_recorded(head, pooled):
    expected = head.alpha(pooled, CHOSEN)
    with torch.inference_mode():
        alpha = head.alpha(pooled.clone(), CHOSEN.clone())  # both are made in inference mode
    assert torch.equal(alpha, expected)
    assert [parameter.grad for parameter in head.parameters() if parameter.grad is not None] == []


def test_training_can_differentiate_alpha(head, pooled):
    """The explanation loss needs the gradient of alpha itself with respect to the head's parameters."""
    alpha = head.alpha(pooled.clone().requires_grad_(), CHOSEN)
    first = next(head.parameters())
    (gradient,) = torch.autograd.grad(alpha.square().sum(), first)
    assert gradient.abs().sum() > 0


def test_linear_head_is_a_linear_layer_and_states_its_classes():
    head = LinearHead(CHANNELS, CLASSES)
    pooled = torch.randn(3, CHANNELS)
    expected = pooled @ head.weight.T + head.bias
    torch.testing.assert_close(head(pooled), expected)
    torch.testing.assert_close(head.logits(pooled), expected)
    assert head.classes == CLASSES
