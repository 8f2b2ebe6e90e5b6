"""k-means of pooled features by scikit-learn, fitted to a bounded number of rows; every row is then assigned."""

from __future__ import annotations

import warnings

import numpy as np
from threadpoolctl import threadpool_limits

from egal_bench.strategies.distances import as_float32, squared_norms
from egal_bench.strategies.pool import Pool

FIT_ROWS = 20_000  # rows that the centres are fitted to: a random part of a larger pool, so that memory is bounded
FEW = 50  # clusters; beyond, the batch variant is used, as in the code of TypiClust
BATCH = 5000  # rows of a step of the batch variant
INIT_ROWS = 3000  # rows from which the batch variant draws its first centres, since that takes longest


def finite_rows(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of `pool` that distances are defined for, and the order in which ties are resolved.

    Returns:
        The features of the labelled samples that are finite, float [L, C]; the indices of all pool samples in tie
        order, int [N]; and those of the samples whose features are finite, in the same order, int [M].
    """
    labelled = pool.labelled_features[np.isfinite(pool.labelled_features).all(axis=1)]
    order = np.argsort(pool.tie_order)
    return labelled, order, order[np.isfinite(squared_norms(pool.features, pool.config.threads))[order]]


def cluster_centres(
    labelled: np.ndarray, features: np.ndarray, order: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the centres of a k-means of labelled and pool samples, float32 [at most `number`, C].

    One thread computes, since scikit-learn's sums depend on the number of threads.

    Args:
        labelled: float [L, C], finite.
        features: float [N, C], of the pool.
        order: int [M], finite rows of the pool in an order that does not depend on file names.
        number: clusters; as many as samples where there are fewer samples. Some may be copies of others.
        rng: one number is drawn.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = np.concatenate([as_float32(labelled), as_float32(features[order[: max(0, FIT_ROWS - len(labelled))]])])
    number, seed = min(number, len(rows)), int(rng.integers(2**31))
    if number <= FEW:
        k_means = KMeans(number, n_init=1, random_state=seed)
    else:
        k_means = MiniBatchKMeans(number, n_init=1, batch_size=BATCH, init_size=INIT_ROWS, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters: callers expect it
        return as_float32(k_means.fit(rows).cluster_centers_)
