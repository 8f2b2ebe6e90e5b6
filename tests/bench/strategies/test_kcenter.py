"""k-center greedy against a plain loop of the paper's algorithm and against scikit-activeml."""

import numpy as np
import pytest


def by_loop(features, labelled, budget):
    """Return the samples of Sener & Savarese's Algorithm 1, and the distance of each when it is chosen."""
    centres, chosen, distances = [row.astype(float) for row in labelled], [], []
    for _ in range(budget):
        nearest = [min(np.linalg.norm(row.astype(float) - c) for c in centres) for row in features]
        best = max((i for i in range(len(features)) if i not in chosen), key=lambda i: nearest[i])
        chosen.append(best)
        distances.append(nearest[best])
        centres.append(features[best].astype(float))
    return chosen, distances


@pytest.mark.parametrize("seed", range(5))
def test_kcenter_is_the_papers_greedy_loop(make, seed):
    strategy, pool = make("kcenter", seed=seed)
    query = strategy(pool)
    chosen, distances = by_loop(pool.features, pool.labelled_features, pool.budget)
    assert query.indices.tolist() == chosen
    np.testing.assert_allclose(query.scores, distances, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kcenter_is_scikit_activemls_core_set(make, seed):
    peer = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed (extra `peers`)")
    strategy, pool = make("kcenter", n=60, seed=seed)
    x = np.concatenate([pool.features, pool.labelled_features]).astype(float)
    y = np.concatenate([np.full(len(pool), np.nan), np.zeros(len(pool.labelled_features))])
    theirs, utilities = peer.CoreSet(random_state=0).query(x, y, batch_size=pool.budget, return_utilities=True)
    query = strategy(pool)
    assert query.indices.tolist() == theirs.tolist()
    np.testing.assert_allclose(query.scores, np.nanmax(utilities, axis=1), rtol=1e-6)


def test_kcenter_buys_copies_of_labelled_samples_last(make):
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    copies = [3, 7, 8]
    strategy, pool = make("kcenter", features=features, labelled_features=features[copies], n=20, budget=20)
    query = strategy(pool)
    assert set(query.indices[-3:]) == set(copies)
    assert query.scores[-3:].tolist() == [0.0, 0.0, 0.0]
