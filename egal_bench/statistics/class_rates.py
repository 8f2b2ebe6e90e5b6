"""Sensitivity and specificity of every class, from the `predictions` table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egal_bench.statistics.outcomes import CURVE, RUN, split


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix, int [K, K]: row the true class, column the predicted one.

    Args:
        labels: int [N], the true classes.
        predicted: int [N].
        classes: K.
    """
    return np.bincount(classes * labels + predicted, minlength=classes * classes).reshape(classes, classes)


def confusions(predictions: pd.DataFrame) -> dict[tuple[str, str, int, int], np.ndarray]:
    """Return the confusion matrix of every (dataset, strategy, seed, round) of the `predictions` table."""
    matrices = {}
    for names, run in split(predictions, [*RUN, "round"]):
        logits = np.stack(run["logits"].to_list())
        key = names["dataset"], names["strategy"], names["seed"], names["round"]
        matrices[key] = confusion(run["label"].to_numpy(), logits.argmax(axis=1), logits.shape[1])
    return matrices


def class_curves(predictions: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return curves of the metrics "sensitivity[k]" and "specificity[k]" for every class k.

    Args:
        predictions: the `predictions` table.
        rounds: the `rounds` table, which knows the labels and masks of each round.
    The sensitivity of a class without a test sample is NaN, and so is the specificity where no other class has one.
    """
    rows = []
    for (dataset, strategy, seed, number), counts in confusions(predictions).items():
        right, true, called, total = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0), counts.sum()
        rejected = total - true - called + right  # neither of the class nor taken for it
        for name, part, base in (("sensitivity", right, true), ("specificity", rejected, total - true)):
            values = np.divide(part, base, out=np.full(len(counts), np.nan), where=base > 0)
            rows += [
                {"dataset": dataset, "strategy": strategy, "seed": seed, "round": number}
                | {"metric": f"{name}[{k}]", "value": value}
                for k, value in enumerate(values)
            ]
    if not rows:
        return pd.DataFrame(columns=CURVE)
    budgets = rounds[[*RUN, "round", "labels", "masks"]]
    return pd.DataFrame(rows).merge(budgets, on=[*RUN, "round"], how="inner", validate="many_to_one")[CURVE]
