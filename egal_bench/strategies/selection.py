"""Steps that several strategies share: the largest value, k-means++, and what follows once a strategy has no more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def largest(values: np.ndarray, tie_order: np.ndarray) -> int:
    """Return the index of the largest of `values`, float [N]; of equal ones, that with the smallest `tie_order`."""
    candidates = np.flatnonzero(values == values.max())
    return int(candidates[tie_order[candidates].argmin()])


def plus_plus(
    first: int, number: int, candidates: np.ndarray, squared_distances: Callable[[int], np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return `number` of the candidates, drawn as centres by k-means++ (Arthur & Vassilvitskii 2007).

    Each centre after the first is drawn with a probability in proportion to the squared distance to the nearest centre
    so far. Where all of these are zero, since only copies of centres are left, it is drawn uniformly.

    Args:
        first: the first centre, one of the candidates.
        number: centres; all candidates are returned where there are fewer.
        candidates: int [M], in an order that does not depend on file names: the draws go through it.
        squared_distances: returns the squared distances of all samples to one sample, float [N].
        rng: one uniform number is drawn per centre after the first.

    Returns:
        The centres, int [number], and the squared distance with which each was drawn, infinite for the first.
    """
    nearest = squared_distances(first)[candidates]
    left = candidates != first
    centres, drawn_with = [first], [np.inf]
    while len(centres) < min(number, len(candidates)):
        weights = np.where(left, nearest, 0.0)
        cumulative = np.cumsum(weights)
        if cumulative[-1] == 0:
            cumulative = np.cumsum(left)
        place = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        place = min(int(place), int(np.searchsorted(cumulative, cumulative[-1])))  # the product may round up to the sum
        centres.append(int(candidates[place]))
        drawn_with.append(float(nearest[place]))
        left[place] = False
        nearest = np.minimum(nearest, squared_distances(centres[-1])[candidates])
    return np.array(centres), np.array(drawn_with)


def followed_by_rest(chosen: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return `chosen`, int [M], and after it the indices of `order`, int [N], that it lacks."""
    return np.concatenate([chosen, order[~np.isin(order, chosen)]])
