"""The L2 penalty of the linear head, chosen by cross-validation on the labelled set alone."""

from __future__ import annotations

import numpy as np

from egal_bench.learners.logistic import log_probabilities, minimise
from egal_bench.statistics.folds import folds_of

GRID = tuple(10 ** (exponent / 2) for exponent in range(4, -7, -1))  # 100 to 0.001
PATIENCE = 2  # penalties in a row without a lower loss, after which weaker ones are not tried
# A fit ends below this gradient. The error that then remains in a loss is smaller than the difference between the
# losses of neighbouring penalties.
TOLERANCE = 3e-4


def chosen_penalty(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Return the penalty of GRID whose heads predict held-out samples best, by mean NLL; the larger one of a tie.

    A labelled set of one class, or of one group, leaves nothing to compare: all penalties tie.

    Args:
        x: float [N, C], the standardised features of the labelled set.
        labels: int [N].
        groups: [N], the group (patient) of each sample.
    """
    return GRID[int(np.argmin(held_out_losses(x, labels, folds_of(labels, groups))))]


def held_out_losses(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the mean NLL of the held-out samples for the first penalties of GRID, float [G].

    Weaker penalties than these are not tried, since PATIENCE of them in a row gave no lower loss. A sample whose class
    the other folds lack is left out of the mean. Without any sample the losses are 0.

    Args:
        x: float [N, C].
        labels: int [N].
        folds: int [N].
    """
    rows, squares = _rotated(np.asarray(x, np.float64))
    parts = [_Fold(rows, squares, labels, folds == fold) for fold in np.unique(folds)]
    samples = max(sum(len(part.fold_labels) for part in parts), 1)
    losses: list[float] = []
    for l2 in GRID:
        losses.append(sum(part.loss(l2) for part in parts) / samples)
        if len(losses) - 1 - np.argmin(losses) >= PATIENCE:
            break
    return np.array(losses)


class _Fold:
    """The fits without one fold, from the strongest penalty on; each fit starts where the one before has ended."""

    def __init__(self, rows: np.ndarray, squares: np.ndarray, labels: np.ndarray, is_in_fold: np.ndarray) -> None:
        self.rows, self.squares = rows[~is_in_fold], squares
        classes, self.labels = np.unique(labels[~is_in_fold], return_inverse=True)
        self.classes = len(classes)
        is_scored = is_in_fold & np.isin(labels, classes)
        self.fold_rows, self.fold_labels = rows[is_scored], np.searchsorted(classes, labels[is_scored])
        self.weight, self.bias = np.zeros((len(classes), rows.shape[1])), np.zeros(len(classes))

    def loss(self, l2: float) -> float:
        """Return the summed NLL of the held-out samples, by the head that the other samples give with `l2`."""
        if not len(self.fold_rows):
            return 0.0
        # the square root of the inverse Hessian where all classes are equally probable: all directions converge alike
        scale = 1 / np.sqrt(self.squares / (len(self.rows) * self.classes) + l2)
        start = np.column_stack([self.weight / scale, self.bias])
        weight, self.bias = minimise(
            self.rows * scale, self.labels, self.classes, l2, scale=scale, start=start, tolerance=TOLERANCE
        )
        self.weight = weight * scale
        log_p = log_probabilities(self.fold_rows, self.weight, self.bias)
        return -float(log_p[np.arange(len(log_p)), self.fold_labels].sum())


def _rotated(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x in the basis of its right singular vectors, float [N, min(N, C)], and its squared singular values.

    A rotation changes neither scores nor |W|, and directions without any sample have no weight (see logistic.py).
    """
    if len(x) < x.shape[1]:
        squares, left = np.linalg.eigh(x @ x.T)
        squares = np.maximum(squares, 0)
        return left * np.sqrt(squares), squares
    squares, right = np.linalg.eigh(x.T @ x)
    return x @ right, np.maximum(squares, 0)
