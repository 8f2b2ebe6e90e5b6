"""TypiClust (Hacohen et al. 2022, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML).

1. k-means divides labelled and pool samples into min(L + budget, 500) clusters.
2. Clusters with at most 5 samples are left out, unless all are that small.
3. Clusters are visited in turn, those with the fewest labelled samples first, of these the largest first. Each visit
   buys the most typical sample of the cluster that has no label and is not bought: the one with the largest
   1 / (mean distance to its k nearest neighbours among these samples), where k is 20, or half their number if less.

Steps and constants are those of the authors' code. The features are those of the network instead of a self-supervised
one. Cost: N·(L + budget) distances. Access: features; no ROI, no label of the pool.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from egal_bench.strategies.clusters import cluster_centres, finite_rows
from egal_bench.strategies.distances import nearest
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.selection import followed_by_rest

MAX_CLUSTERS = 500
SMALL = 5  # samples of a cluster that is left out
NEIGHBOURS = 20
BLOCK = 1 << 22  # distances that are in memory at a time


@strategy("typiclust", needs={"features"}, groups={"diversity"})
def typiclust(pool: Pool) -> Query:
    """Most typical sample of each of the clusters that the labels cover least (TypiClust, Hacohen et al. 2022).

    The score is the typicality. Samples whose features are not finite come last.
    """
    features, threads = pool.features, pool.config.threads
    labelled, order, usable = finite_rows(pool)
    if not len(usable):
        return Query(order, np.full(len(pool), np.nan))
    number = min(len(labelled) + pool.budget, MAX_CLUSTERS)
    centres = cluster_centres(labelled, features, usable, number, pool.rng)
    cluster = nearest(features, centres, threads)[1][usable]
    covered = np.bincount(nearest(labelled, centres, threads)[1], minlength=len(centres))
    left = [usable[cluster == i] for i in range(len(centres))]
    sizes = covered + [len(samples) for samples in left]

    chosen: list[int] = []
    scores: list[float] = []
    while len(chosen) < min(pool.budget, len(usable)):
        for i in _visits(left, sizes, covered)[: pool.budget - len(chosen)]:
            values = typicality(features[left[i]])
            best = int(values.argmax())  # argmax returns the first of equal values, so the tie order decides
            chosen.append(int(left[i][best]))
            scores.append(float(values[best]))
            left[i] = np.delete(left[i], best)
    return Query(
        followed_by_rest(np.array(chosen), order), np.concatenate([scores, np.full(len(pool) - len(chosen), np.nan)])
    )


def _visits(left: list[np.ndarray], sizes: np.ndarray, covered: np.ndarray) -> list[int]:
    """Return the clusters in the order in which they are visited: small ones only where no other has samples left.

    Args:
        left: the samples of each cluster that can be bought.
        sizes: int [clusters], all samples of each cluster.
        covered: int [clusters], its labelled samples.
    """
    filled = np.array([len(samples) > 0 for samples in left])
    large = filled & (sizes > SMALL)
    visited = np.flatnonzero(large if large.any() else filled)
    return sorted(visited.tolist(), key=lambda i: (covered[i], -sizes[i]))


def typicality(rows: np.ndarray) -> np.ndarray:
    """Return 1 / (mean distance to the nearest neighbours among the rows), float64 [M]; infinite where that is 0.

    Args:
        rows: float [M, C]; each has the min(20, M // 2) nearest others as neighbours.
    """
    neighbours = min(NEIGHBOURS, len(rows) // 2)
    if neighbours == 0:
        return np.full(len(rows), np.inf)
    rows = rows.astype(np.float64)
    rows -= rows.mean(axis=0)
    lengths = (rows * rows).sum(axis=1)
    means = np.empty(len(rows))
    block = max(1, BLOCK // len(rows))
    with threadpool_limits(1):  # the sums of a product depend on the number of threads
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            squared = lengths[start : start + block, None] + lengths - 2.0 * (part @ rows.T)
            squared[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf  # no neighbour of itself
            distances = np.sqrt(np.maximum(np.partition(squared, neighbours - 1, axis=1)[:, :neighbours], 0.0))
            means[start : start + block] = distances.mean(axis=1)
    with np.errstate(divide="ignore"):
        return 1.0 / means
