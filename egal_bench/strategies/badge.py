"""BADGE (Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR).

The embedding of a sample is the gradient of the NLL of its predicted class ŷ with respect to the weights of the last
layer, g = (p − onehot(ŷ)) ⊗ h, with h the pooled features. k-means++ on these embeddings chooses the query; its first
centre is the sample with the longest embedding, as in the authors' code.

The matrix of embeddings, N×KC, is never built. With q = p − onehot(ŷ),
|g − g'|² = |q|²|h|² + |q'|²|h'|² − 2(q·q')(h·h'), which is computed as the equal
|q − q'|²|h|² + |q'|²|h − h'|² + ((q − q')·q')(|h|² + |h − h'|² − |h'|²), so that copies have the distance 0 exactly.

Cost: N·budget distances, and K numbers per sample of memory. Access: features; no ROI, no label of the pool.
"""

import numpy as np

from egal_bench.strategies.distances import squared_distances, squared_norms
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.selection import followed_by_rest, largest, plus_plus


@strategy("badge", needs={"features"}, groups={"diversity"})
def badge(pool: Pool) -> Query:
    """k-means++ on the gradients of the last layer: uncertain and diverse samples (BADGE, Ash et al. 2020).

    The score is the squared distance with which a sample was drawn; of the first, its squared length. Samples whose
    features or logits are not finite come last.
    """
    features, threads = pool.features, pool.config.threads
    lengths = squared_norms(features, threads)  # |h|²
    usable = np.isfinite(lengths) & np.isfinite(pool.logits).all(axis=1)
    lengths[~usable] = 0.0
    gradient = np.where(usable[:, None], pool.probabilities, 0.0).astype(np.float64)  # q
    gradient[np.arange(len(pool)), gradient.argmax(axis=1)] -= usable
    gradient_lengths = (gradient * gradient).sum(axis=1)  # |q|²

    def distances_to(centre: int) -> np.ndarray:
        change = gradient - gradient[centre]
        apart = np.where(usable, squared_distances(features, features[centre], threads), 0.0)  # |h − h'|²
        squared = (
            (change * change).sum(axis=1) * lengths
            + gradient_lengths[centre] * apart
            + (change * gradient[centre]).sum(axis=1) * (lengths + apart - lengths[centre])
        )
        return np.maximum(squared, 0.0)

    order = np.argsort(pool.tie_order)
    if not usable.any():
        return Query(order, np.full(len(pool), np.nan))
    squared_gradients = np.where(usable, gradient_lengths * lengths, -1.0)
    first = largest(squared_gradients, pool.tie_order)
    chosen, drawn_with = plus_plus(first, pool.budget, order[usable[order]], distances_to, pool.rng)
    drawn_with[0] = squared_gradients[first]
    scores = np.concatenate([drawn_with, np.full(len(pool) - len(chosen), np.nan)])
    return Query(followed_by_rest(chosen, order), scores)
