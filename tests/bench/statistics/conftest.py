"""Tables for the tests of statistics: they hold what a test states, and their rows are in no order."""

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def outcomes():
    """Return outcomes from {strategy: values by seed}; a NaN is a run that is missing."""

    def build(values: dict[str, list[float]], dataset: str = "d", metric: str = "accuracy") -> pd.DataFrame:
        rows = [
            {"dataset": dataset, "strategy": name, "seed": seed, "metric": metric, "outcome": "final", "value": value}
            for name, by_seed in values.items()
            for seed, value in enumerate(by_seed)
            if not np.isnan(value)
        ]
        return pd.DataFrame(rows).sample(frac=1, random_state=0)

    return build


@pytest.fixture
def rounds():
    """Return a `rounds` table from {strategy: accuracy [seed][round]} at 10, 20, 40 … labels."""

    def build(accuracy: dict[str, list[list[float]]], dataset: str = "d") -> pd.DataFrame:
        rows = [
            {"dataset": dataset, "strategy": name, "seed": seed, "round": r, "labels": 10 * 2**r, "masks": 3 * r}
            | {"accuracy": value, "nll": 1 - value}
            for name, runs in accuracy.items()
            for seed, values in enumerate(runs)
            for r, value in enumerate(values)
        ]
        return pd.DataFrame(rows).sample(frac=1, random_state=0)

    return build


@pytest.fixture
def curves(rounds):
    """Return curves of accuracy from {strategy: accuracy [seed][round]} at 10, 20, 40 … labels, 0, 3, 6 … masks."""
    from egal_bench.statistics.outcomes import curves as from_rounds

    return lambda accuracy, dataset="d": from_rounds(rounds(accuracy, dataset), ["accuracy"])


@pytest.fixture
def predictions():
    """Return a `predictions` table from {strategy: logits [S, N, K]}, labels [N] and groups [N]."""

    def build(logits: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
        rows = [
            {"dataset": "d", "strategy": name, "seed": seed, "round": 2, "key": f"k{i:05}", "group": str(groups[i])}
            | {"label": int(labels[i]), "logits": list(run[i])}
            for name, runs in logits.items()
            for seed, run in enumerate(runs)
            for i in range(len(labels))
        ]
        return pd.DataFrame(rows).sample(frac=1, random_state=0)

    return build
