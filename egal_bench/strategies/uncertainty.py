"""Uncertainty sampling (Settles 2009, "Active learning literature survey", §3.1): no ROI is looked at."""

import numpy as np

from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy


@strategy("entropy", groups={"baselines", "uncertainty"})
def entropy(pool: Pool) -> Query:
    """Largest entropy of the predicted distribution."""
    return pool.rank(pool.entropy)


@strategy("margin", groups={"uncertainty"})
def margin(pool: Pool) -> Query:
    """Smallest gap between the two most probable classes."""
    second, first = np.partition(pool.probabilities, -2, axis=1)[:, -2:].T
    return pool.rank(second - first)


@strategy("least-confidence", groups={"uncertainty"})
def least_confidence(pool: Pool) -> Query:
    """Smallest probability of the predicted class."""
    return pool.rank(1.0 - pool.probabilities.max(axis=1))
