"""k-center greedy, the core-set strategy (Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks:
A Core-Set Approach", ICLR, Algorithm 1).

Each step buys the sample x with the largest min over c of |h(x) − h(c)|, where h are pooled features and c goes over
the labelled samples and those that are chosen already. This is a 2-approximation of the smallest radius with which
balls around L + budget samples cover the pool.

Cost: N·(L + budget) distances, and one number per sample of memory. Access: features; no ROI, no label of the pool.
"""

import numpy as np

from egal_bench.strategies.distances import nearest, squared_distances, squared_norms
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.selection import largest


@strategy("kcenter", needs={"features"}, groups={"diversity"})
def kcenter(pool: Pool) -> Query:
    """Farthest sample from all labelled and chosen ones, one after the other (k-center greedy, Sener & Savarese 2018).

    The score is the distance. Samples whose features are not finite come last.
    """
    features, threads = pool.features, pool.config.threads
    distances, _ = nearest(features, pool.labelled_features, threads)
    distances[~np.isfinite(squared_norms(features, threads))] = -1.0
    chosen, scores = [], []
    for _ in range(min(pool.budget, len(pool))):
        best = largest(distances, pool.tie_order)
        chosen.append(best)
        scores.append(np.sqrt(distances[best]) if distances[best] >= 0 else np.nan)
        distances = np.minimum(distances, squared_distances(features, features[best], threads))
        distances[chosen] = -np.inf
    return Query(np.array(chosen), np.array(scores))
