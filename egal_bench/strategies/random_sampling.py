"""Random sampling: the baseline with which every other strategy is compared."""

import numpy as np

from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy


@strategy("random", groups={"baselines"})
def random(pool: Pool) -> Query:
    """Uniform, without replacement: the baseline every other strategy is compared with."""
    # a permutation of the tie order, not of the pool's own order, which follows the names of files
    indices = np.argsort(pool.tie_order)[pool.rng.permutation(len(pool))]
    return Query(indices, np.full(len(pool), np.nan))
