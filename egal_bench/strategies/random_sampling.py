"""Random sampling: the baseline with which every other strategy is compared."""

import numpy as np

from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy


@strategy("random", groups={"baselines"})
def random(pool: Pool) -> Query:
    """Uniform, without replacement: the baseline every other strategy is compared with."""
    return Query(pool.rng.permutation(len(pool)), np.full(len(pool), np.nan))
