"""ProbCover (Yehuda et al. 2022, "Active Learning Through a Covering Lens", NeurIPS).

This is greedy maximum coverage. A labelled or chosen sample covers all samples in its ball of radius `delta`. Each step
chooses the sample whose ball holds the most samples that are not covered yet; any pool sample, covered or not, may be
chosen. Once all samples are covered, the others follow at random.

Without `delta`, the purity rule of the paper chooses the radius. k-means makes as many clusters as there are classes. A
ball is pure if all its samples belong to one cluster. The radius is the largest one for which the share `purity` of the
balls is pure. A ball is pure until it reaches the nearest sample of another cluster, so the radius is a quantile of the
distances to these samples.

Cost: the first principal axis excludes most pairs of samples. The other pairs, at most N², are compared by 32 numbers,
and the full distance is computed for those that this leaves open, so the time grows with the number of samples in a
ball. Memory: 32 numbers per sample. Access: features; no ROI, no label of the pool.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from threadpoolctl import threadpool_limits

from egal_bench.strategies.balls import Balls
from egal_bench.strategies.clusters import cluster_centres, finite_rows
from egal_bench.strategies.distances import nearest
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.selection import followed_by_rest, largest

PROBES = 500  # balls that the purity rule looks at: all of a smaller pool, a random part of a larger one
CHUNK = 4096  # rows of the features in float64 at a time
BELOW = 1 - 1e-6

Delta = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False, description="radius of a ball in feature space; 0: the purity rule chooses it"),
]
Purity = Annotated[
    float, Field(gt=0, lt=1, description="share of balls that must hold a single cluster, for the purity rule")
]


@strategy("probcover", needs={"features"}, groups={"diversity"})
def probcover(pool: Pool, *, delta: Delta = 0.0, purity: Purity = 0.95) -> Query:
    """Sample whose ball covers the most uncovered samples, one after the other (ProbCover, Yehuda et al. 2022).

    The score is the number of samples that a choice covers. Samples whose features are not finite come last.
    """
    features, threads = pool.features, pool.config.threads
    labelled, order, members = finite_rows(pool)
    if not len(members):
        return Query(order, np.full(len(pool), np.nan))
    radius = delta or pure_radius(pool, labelled, members, purity)
    balls = Balls(features, members, radius, threads)
    uncovered = nearest(features, labelled, threads)[0][members] > radius**2
    gains = balls.counts(uncovered)
    places = np.arange(len(members))  # the members are in tie order
    chosen: list[int] = []
    scores: list[int] = []
    while len(chosen) < pool.budget and uncovered.any():
        best = largest(gains, places)
        chosen.append(int(members[best]))
        scores.append(int(gains[best]))
        covers = balls.within(best) & uncovered
        uncovered &= ~covers
        gains -= balls.counts(covers)
    others = pool.rng.permutation(members[~np.isin(members, chosen)])
    ranked = np.concatenate([np.array(chosen, np.int64), others])
    nothing_to_score = np.full(len(pool) - len(ranked), np.nan)
    return Query(followed_by_rest(ranked, order), np.concatenate([scores, np.zeros(len(others)), nothing_to_score]))


def pure_radius(pool: Pool, labelled: np.ndarray, members: np.ndarray, purity: float) -> float:
    """Return the largest radius for which at least the share `purity` of the balls is pure; see the module.

    Infinite where k-means finds a single cluster, so that every ball is pure.

    Args:
        labelled: float [L, C], finite.
        members: int [M], finite rows of the pool's features, in tie order.
    """
    centres = cluster_centres(labelled, pool.features, members, len(pool.classes), pool.rng)
    rows_of = [labelled, pool.features]
    clusters = [nearest(rows, centres, pool.config.threads)[1] for rows in rows_of]
    probes = pool.features[members[:PROBES]].astype(np.float64)
    probe_clusters = clusters[1][members[:PROBES]]
    squared = np.full(len(probes), np.inf)
    mean = probes.mean(axis=0)
    probes -= mean
    lengths = (probes * probes).sum(axis=1)
    with threadpool_limits(1):  # the sums of a product depend on the number of threads
        for rows, cluster, among in zip(rows_of, clusters, (np.arange(len(labelled)), members), strict=True):
            for start in range(0, len(among), CHUNK):
                part = among[start : start + CHUNK]
                others = rows[part] - mean
                apart = lengths[:, None] + (others * others).sum(axis=1) - 2.0 * (probes @ others.T)
                apart[probe_clusters[:, None] == cluster[part]] = np.inf
                squared = np.minimum(squared, apart.min(axis=1))
    impure = int(np.floor((1.0 - purity) * len(squared) + 1e-9))  # balls that may reach another cluster
    limit = float(np.sqrt(np.maximum(np.sort(squared)[impure], 0.0)))
    return BELOW * limit  # a radius equal to the limit would make one more ball impure
