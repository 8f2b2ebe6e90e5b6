"""BALD (Houlsby et al. 2011, "Bayesian Active Learning for Classification and Preference Learning", arXiv:1112.5745;
for deep networks Gal et al. 2017, "Deep Bayesian Active Learning with Image Data", ICML).

The mutual information of the class and the model, H(E p) − E H(p) in nats, where p is the class distribution of one of
T stochastic heads and E the mean over them.

Cost: T predictions per sample from the learner. Access: draws; no ROI, no label of the pool.
"""

import numpy as np
from scipy.special import entr, softmax

from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy

CHUNK = 4096  # samples at a time, so that the probabilities of all draws need not be in memory


@strategy("bald", needs={"draws"}, groups={"uncertainty"})
def bald(pool: Pool) -> Query:
    """Largest disagreement of stochastic heads, H(E p) − E H(p) (BALD, Houlsby et al. 2011)."""
    draws = pool.draws
    return pool.rank(
        np.concatenate([mutual_information(draws[start : start + CHUNK]) for start in range(0, len(pool), CHUNK)])
    )


def mutual_information(draws: np.ndarray) -> np.ndarray:
    """Return H(E p) − E H(p) in nats, float64 [N], of logits float [N, T, K]; NaN where a logit is NaN."""
    p = softmax(draws.astype(np.float64), axis=2)
    return entr(p.mean(axis=1)).sum(axis=1) - entr(p).sum(axis=2).mean(axis=1)
