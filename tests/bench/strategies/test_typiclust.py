"""TypiClust: its steps on clusters that are known, and its typicality against a plain loop."""

import numpy as np
import pytest

from egal_bench.strategies import typiclust as module


def blobs(sizes, seed=0):
    """Return features of well-separated clusters of these sizes, and the cluster of each row."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    centres = 100.0 * np.eye(len(sizes), 12)
    return (centres[cluster] + rng.normal(size=(len(cluster), 12))).astype(np.float32), cluster


def by_loop(rows):
    rows, k = rows.astype(float), min(20, len(rows) // 2)
    means = []
    for i, row in enumerate(rows):
        distances = sorted(np.linalg.norm(row - other) for j, other in enumerate(rows) if j != i)
        means.append(sum(distances[:k]) / k)
    return 1 / np.array(means)


@pytest.mark.parametrize("number", [2, 3, 17, 41, 90])
def test_typicality_is_one_over_the_mean_neighbour_distance(monkeypatch, number):
    monkeypatch.setattr(module, "BLOCK", 300)
    rows = np.random.default_rng(number).normal(size=(number, 5)).astype(np.float32)
    np.testing.assert_allclose(module.typicality(rows), by_loop(rows), rtol=1e-7)


def test_typicality_of_copies_and_of_a_single_row_is_infinite():
    assert module.typicality(np.ones((1, 3))).tolist() == [np.inf]
    assert module.typicality(np.ones((6, 3))).tolist() == [np.inf] * 6


def test_uncovered_clusters_are_bought_first_the_largest_ahead(make):
    features, cluster = blobs([9, 30, 12, 20, 15])
    labelled = np.flatnonzero(np.isin(cluster, [1, 2]))[[0, -1]]  # one of cluster 1, one of cluster 2
    left = np.setdiff1d(np.arange(len(cluster)), labelled)
    strategy, pool = make(
        "typiclust", features=features[left], labelled_features=features[labelled], n=len(left), budget=3
    )
    query = strategy(pool)  # 2 + 3 clusters, as many as there are
    assert cluster[left][query.indices].tolist() == [3, 4, 0]
    for index, score in zip(query.indices, query.scores, strict=True):
        values = by_loop(pool.features[cluster[left] == cluster[left][index]])
        np.testing.assert_allclose(score, values.max(), rtol=1e-6)


def test_a_cluster_is_visited_again_without_what_it_has_sold(make, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLUSTERS", 2)
    features, cluster = blobs([20, 12])
    labelled = np.array([0, 31])
    left = np.arange(1, 31)
    strategy, pool = make("typiclust", features=features[left], labelled_features=features[labelled], n=30, budget=4)
    bought = strategy(pool).indices
    assert cluster[left][bought].tolist() == [0, 1, 0, 1]
    second = np.setdiff1d(np.flatnonzero(cluster[left] == 0), bought[0])
    assert bought[2] == second[by_loop(pool.features[second]).argmax()]


def test_small_clusters_are_left_out_while_others_have_samples(make):
    features, cluster = blobs([3, 10, 10])
    strategy, pool = make(
        "typiclust", features=features, labelled_features=features[:0], n=len(features), budget=3, seed=1
    )
    assert 0 not in cluster[strategy(pool).indices]


def test_more_clusters_than_distinct_samples_are_no_error(make):
    features = np.array([[0.0, 0], [5, 5]], np.float32)[np.arange(30) % 2]
    strategy, pool = make("typiclust", features=features, labelled_features=features[:4], n=30, budget=10)
    assert set(strategy(pool).indices[:2] % 2) == {0, 1}


def test_batch_k_means_serves_many_clusters(make):
    features, _ = blobs([15] * 12)
    strategy, pool = make("typiclust", features=features, labelled_features=features[:60], n=180, budget=100)
    assert len(set(strategy(pool).indices)) == 100
