"""A study through the Python API: does a shortcut in the data change which strategy is best?

    python study.py OUT [--seeds 3] [--rounds 5] [--samples 1200] [--steps 80] [--workers N]

Two phantoms are compared: one without a shortcut, and one in which a marker outside the lesion gives the class away in
the pool, but not in the test set. OUT gets the results folder of the comparison and `sensitivity.csv`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import egal_bench


def compare(args: argparse.Namespace) -> pd.DataFrame:
    """Execute the runs that OUT lacks; return the summary, one row per data set and strategy."""
    phantoms = tuple(f"phantom(brain,samples={args.samples},shortcut={dial})" for dial in (0.0, 0.9))
    config = egal_bench.Config(
        shards=phantoms, strategies=("random", "entropy", "egal"), seeds=args.seeds, rounds=args.rounds,
        init=20, budget=20, backbone="small-cnn", steps=args.steps, batch_size=20, learning_rate=2e-3,
        workers=args.workers, out=args.out / "results",
    )  # fmt: skip
    return egal_bench.compare(config).summary


def sensitivity(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the sensitivity of each class after the last round, mean over seeds, from the `predictions` table."""
    last = predictions[predictions["round"] == predictions["round"].max()]
    correct = np.stack(last.logits.to_numpy()).argmax(axis=1) == last.label
    per_run = correct.groupby([last.dataset, last.strategy, last.seed, last.label]).mean()
    return per_run.groupby(level=["dataset", "strategy", "label"]).mean().unstack("label")


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name, default in (("seeds", 3), ("rounds", 5), ("samples", 1200), ("steps", 80), ("workers", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    summary = compare(args)
    print(summary[["dataset", "strategy", "accuracy", "aubc", "gain", "gain_sd", "masks"]].round(3).to_string())

    table = sensitivity(egal_bench.load(args.out / "results")["predictions"])
    table.to_csv(args.out / "sensitivity.csv")
    print(f"\nSensitivity per class after the last round:\n{table.round(3).to_string()}")


if __name__ == "__main__":  # worker processes import this file, so that only the first process may start the study
    main()
