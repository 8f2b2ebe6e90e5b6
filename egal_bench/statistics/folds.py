"""Folds of a cross-validation: whole groups, stratified by class, without any random draw."""

from __future__ import annotations

import numpy as np

FOLDS = 5


def folds_of(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the fold, 0 to FOLDS - 1, of each sample, int [N]: whole groups, stratified by class, nothing random.

    Groups are dealt out one by one, the largest first. Each goes to the fold that then spreads the shares of every
    class most evenly, and of several such folds to the smallest one.

    Args:
        labels: int [N].
        groups: [N], the group (patient) of each sample.
    """
    _, classes = np.unique(labels, return_inverse=True)
    _, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((members.max() + 1, classes.max() + 1))  # [groups, classes]
    np.add.at(counts, (members, classes), 1)
    shares = counts / counts.sum(axis=0)
    folds, sizes, fold_of_group = np.zeros((FOLDS, counts.shape[1])), np.zeros(FOLDS), np.zeros(len(counts), int)
    for group in np.argsort(-counts.sum(axis=1), kind="stable"):
        # the sum of squares grows by 2·fold·share + share², where the last term is the same for every fold
        fold = int(np.lexsort((sizes, folds @ shares[group]))[0])
        folds[fold] += shares[group]
        sizes[fold] += counts[group].sum()
        fold_of_group[group] = fold
    return fold_of_group[members]
