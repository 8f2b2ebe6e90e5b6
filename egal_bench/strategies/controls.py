"""Controls: what must be beaten, or matched, before a gain is put down to what a strategy claims.

See `egal` for its own controls, `roi=shuffled` and `area-matched=true`.
"""

import numpy as np

from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy


@strategy("roi-area", needs={"roi"}, groups={"controls"})
def roi_area(pool: Pool) -> Query:
    """Largest ROI first: what of EG-AL is due to the dependence of D on the area of the ROI.

    The score is the area in pixels. Cost: the ROI of every pool sample. Samples without ROI come last.
    """
    return pool.rank(pool.overlap.roi_area)


@strategy("class-balanced-random", needs={"pool-labels"}, groups={"controls"})
def class_balanced_random(pool: Pool) -> Query:
    """Random samples of the class with the fewest labels so far, by the true labels: an oracle.

    What a strategy can gain by the class balance of its labels alone. Each step counts the labelled samples and those
    that are chosen already; classes with equal counts take turns in a random order. Cost: the label of every pool
    sample, which no real study has.
    """
    order = np.argsort(pool.tie_order)
    order = order[pool.rng.permutation(len(pool))]
    classes = len(pool.classes)
    turns = pool.rng.permutation(classes)
    counts = np.bincount(pool.labelled_labels, minlength=classes)
    waiting = [list(order[pool.labels[order] == label][::-1]) for label in range(classes)]
    chosen = []
    for _ in range(min(pool.budget, len(pool))):
        label = min((label for label in range(classes) if waiting[label]), key=lambda k: (counts[k], turns[k]))
        chosen.append(waiting[label].pop())
        counts[label] += 1
    return Query(np.array(chosen), np.full(len(chosen), np.nan))
