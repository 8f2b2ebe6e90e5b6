"""BALD against a plain loop, scikit-activeml and baal."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from egal_bench.strategies import bald


def by_loop(draws):
    """Return H(E p) − E H(p) of logits [T, K]."""
    distributions = [[math.exp(z) / sum(math.exp(v) for v in logits) for z in logits] for logits in draws.tolist()]
    mean = [sum(column) / len(distributions) for column in zip(*distributions, strict=True)]
    entropies = [-sum(p * math.log(p) for p in distribution) for distribution in distributions]
    return -sum(p * math.log(p) for p in mean) - sum(entropies) / len(entropies)


def test_bald_is_the_mutual_information_by_a_plain_loop(make, monkeypatch):
    monkeypatch.setattr(bald, "CHUNK", 7)
    strategy, pool = make("bald")
    query = strategy(pool)
    want = np.array([by_loop(draws) for draws in pool.draws])
    np.testing.assert_allclose(query.scores, want[query.indices], rtol=1e-10)
    assert query.indices.tolist() == np.argsort(-want)[: pool.budget].tolist()


def test_bald_is_scikit_activemls_greedy_bald(make):
    peer = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed (extra `peers`)")
    from skactiveml.pool._bald import batch_bald  # the function behind GreedyBALD

    _, pool = make("bald")
    probabilities = softmax(pool.draws, axis=2)
    assert peer.GreedyBALD
    want = batch_bald(probabilities.transpose(1, 0, 2), batch_size=1)[0]
    np.testing.assert_allclose(bald.mutual_information(pool.draws), want, rtol=1e-6)


def test_bald_is_baals(make):
    heuristics = pytest.importorskip("baal.active.heuristics", reason="baal is not installed (extra `peers`)")
    _, pool = make("bald")
    probabilities = softmax(pool.draws, axis=2)
    want = heuristics.BALD().compute_score(probabilities.transpose(0, 2, 1))
    np.testing.assert_allclose(bald.mutual_information(pool.draws), want, rtol=1e-10)


def test_bald_is_zero_where_all_heads_agree(make):
    draws = np.repeat(np.random.default_rng(0).normal(size=(10, 1, 3)), 4, axis=1)
    np.testing.assert_allclose(bald.mutual_information(draws), 0.0, atol=1e-15)
