"""Which labelled samples are held out of training, to tell when to stop."""

from __future__ import annotations

import numpy as np


def held_out(labels: np.ndarray, classes: int, share: float, loader: np.random.SeedSequence) -> np.ndarray:
    """Return which samples to hold out, bool [L]: every 1/share-th of each class, but never the first of a class.

    Samples count in the order of labelling, and `loader` sets where each class starts to count. Samples that are
    labelled later do not change the choice, so that no weights meet a held-out sample on which they were trained in
    an earlier round.

    Args:
        labels: int64 [L], in the order in which they were bought.
        classes: K.
        share: 0 to 1, 1 excluded.
        loader: stream of the starting points.
    """
    starts = np.random.default_rng(loader).random(classes) * (1 - share)
    held = np.zeros(len(labels), dtype=bool)
    for label, start in enumerate(starts):
        rows = np.flatnonzero(labels == label)
        counts = np.floor(start + share * np.arange(len(rows) + 1))
        held[rows] = np.diff(counts) > 0
    return held
