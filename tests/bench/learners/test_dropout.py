"""Dropout of the pooled features: its masks, and the stochastic heads that they make."""

import numpy as np
import pytest
import torch
from torch import nn

from egal_bench.learners import dropout
from egal_bench.learners.dropout import dropout_logits, dropout_mask
from egal_bench.models.heads import Head, LinearHead

RATE, DRAWS, CHANNELS = 0.4, 6, 32
POOLED = np.random.default_rng(1).gamma(2, size=(50, CHANNELS)).astype(np.float32)


class TwoLayers(Head):
    """A head that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.classes = nn.Sequential(nn.Linear(CHANNELS, 8), nn.ReLU(), nn.Linear(8, 3)), 3

    def logits(self, pooled):
        return self.layers(pooled)


@pytest.fixture(params=[lambda: LinearHead(CHANNELS, 3), TwoLayers], ids=["linear", "two layers"])
def head(request) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param()


def logits(head, pooled=POOLED, rate=RATE):
    return dropout_logits(head, pooled, rate, DRAWS, np.random.default_rng(0))


def test_mask_keeps_the_mean_and_drops_its_share():
    mask = dropout_mask((400, 500), RATE, np.random.default_rng(0))
    assert mask.dtype == torch.float32
    assert torch.equal(mask.unique(), torch.tensor([0, 1 / (1 - RATE)]))
    assert mask.mean().item() == pytest.approx(1, abs=0.01)


def test_each_draw_is_the_head_behind_one_mask_for_all_samples(head):
    masks = dropout_mask((DRAWS, CHANNELS), RATE, np.random.default_rng(0)).numpy()
    with torch.no_grad():
        expected = [head.logits(torch.from_numpy(POOLED * mask)).numpy() for mask in masks]
    np.testing.assert_allclose(logits(head), np.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_draws_differ_from_each_other_and_repeat_for_a_seed(head):
    first = logits(head)
    np.testing.assert_array_equal(first, logits(head))
    assert np.unique(first, axis=1).shape[1] == DRAWS


def test_logits_do_not_depend_on_the_other_samples(head, monkeypatch):
    together = logits(head)
    monkeypatch.setattr(dropout, "CHUNK", 7)
    np.testing.assert_allclose(logits(head), together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(head, POOLED[::-1]), together[::-1], rtol=1e-5, atol=1e-5)


def test_without_dropout_all_draws_are_the_head(head):
    with torch.no_grad():
        expected = head.logits(torch.from_numpy(POOLED)).numpy()
    np.testing.assert_allclose(logits(head, rate=0.0), np.repeat(expected[:, None], DRAWS, 1), rtol=1e-5)
