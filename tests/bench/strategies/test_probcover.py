"""ProbCover against a plain loop, scikit-activeml, and the definition of the purity rule."""

import numpy as np
import pytest

from egal_bench.strategies import balls, clusters
from egal_bench.strategies import probcover as module


def distances_of(rows, others):
    return np.sqrt(((rows[:, None].astype(float) - others[None].astype(float)) ** 2).sum(-1))


def by_loop(pool, delta):
    """Return the samples of greedy maximum coverage until all are covered, and how many each covers."""
    within = distances_of(pool.features, pool.features) <= delta
    uncovered = ~(distances_of(pool.features, pool.labelled_features) <= delta).any(1)
    chosen, gains = [], []
    while len(chosen) < pool.budget and uncovered.any():
        gain = [(within[i] & uncovered).sum() for i in range(len(pool))]
        best = min(range(len(pool)), key=lambda i: (-gain[i], pool.tie_order[i]))
        chosen.append(best)
        gains.append(int(gain[best]))
        uncovered &= ~within[best]
    return chosen, gains


@pytest.mark.parametrize("delta", [0.4, 1.0, 1.7, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_probcover_is_greedy_maximum_coverage(make, delta, seed):
    strategy, pool = make(f"probcover(delta={delta})", n=60, budget=30, seed=seed)
    query = strategy(pool)
    chosen, gains = by_loop(pool, delta)
    assert query.indices[: len(chosen)].tolist() == chosen
    assert query.scores[: len(chosen)].tolist() == gains
    assert not query.scores[len(chosen) :].any()


@pytest.mark.parametrize("seed", range(3))
def test_probcover_covers_as_scikit_activemls(make, seed):
    peer = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed (extra `peers`)")
    strategy, pool = make("probcover(delta=1.3)", n=80, budget=12, seed=seed)
    x = np.concatenate([pool.features, pool.labelled_features]).astype(float)
    y = np.concatenate([np.full(len(pool), np.nan), np.zeros(len(pool.labelled_features))])
    theirs = peer.ProbCover(deltas=[1.3], random_state=0)
    _, utilities = theirs.query(x, y, batch_size=1, return_utilities=True)
    query = strategy(pool)
    assert query.scores[0] == np.nanmax(utilities)  # of equal gains theirs is drawn at random
    y[query.indices] = 0  # the gain after all of ours are labelled
    _, utilities = theirs.query(x, y, batch_size=1, return_utilities=True)
    covered = (distances_of(pool.features, x[y == 0]) <= 1.3).any(1)
    within = distances_of(pool.features, pool.features) <= 1.3
    assert np.nanmax(utilities) == max((within & ~covered).sum(1)[np.isnan(y[: len(pool)])])


def test_after_full_coverage_the_rest_follows_at_random(make):
    strategy, pool = make("probcover(delta=100)", labelled=1)
    orders = {tuple(strategy(make("probcover(delta=100)", rng=np.random.default_rng(i))[1]).indices) for i in range(5)}
    assert len(orders) == 5
    assert not strategy(pool).scores.any()


def test_the_radius_is_the_largest_with_the_purity(make, monkeypatch):
    _, pool = make("probcover", n=150, labelled=20, classes=4)
    members = np.argsort(pool.tie_order)
    kept = {}
    centres_of = clusters.cluster_centres
    monkeypatch.setattr(
        module, "cluster_centres", lambda *arguments: kept.setdefault("centres", centres_of(*arguments))
    )
    radius = module.pure_radius(pool, pool.labelled_features, members, 0.9)
    x = np.concatenate([pool.features, pool.labelled_features])
    cluster = distances_of(x, kept["centres"]).argmin(1)
    other = cluster[:150, None] != cluster
    apart = distances_of(pool.features, x)

    def purity(radius):
        return 1 - ((apart <= radius) & other).any(1).mean()

    assert len(np.unique(cluster)) == 4
    assert purity(radius) >= 0.9
    assert purity(radius * (1 + 1e-5)) < 0.9


@pytest.mark.parametrize(("scale", "channels"), [(1.0, 80), (1e-3, 80), (300.0, 40), (1.0, 1), (1.0, 31)])
@pytest.mark.parametrize("low_rank", [True, False])
def test_balls_count_as_the_matrix_of_distances(monkeypatch, scale, channels, low_rank):
    monkeypatch.setattr(balls, "CHUNK", 16)
    monkeypatch.setattr(balls, "BLOCK", 24)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(150, channels))
    if low_rank:
        rows = rng.normal(size=(150, 3)) @ rng.normal(size=(3, channels))
    rows = (scale * (rows + 50)).astype(np.float32)
    members = rng.permutation(150)[:120]
    apart = distances_of(rows[members], rows[members])
    targets = rng.random(120) < 0.4
    for quantile in (0.0, 0.02, 0.3, 0.9):
        radius = np.quantile(apart, quantile) * 1.0001
        counts = balls.Balls(rows, members, radius, threads=2).counts(targets)
        assert counts.tolist() == (apart <= radius)[:, targets].sum(1).tolist()
