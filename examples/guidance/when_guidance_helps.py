"""A study through the Python API: when does guidance by explanations help?

    python when_guidance_helps.py OUT [--seeds 10] [--rounds 3] [--samples 1000] [--steps auto] [--workers N]

Phantoms with a shortcut of 0, 0.5, 0.8 and 0.95 are compared, each with and without the explanation loss in training.
OUT gets two results folders, `explain-loss-0` and `explain-loss-1`, the table `gains.csv` and the picture
`guidance.png`. A study that was interrupted goes on where it stopped, and both files are written anew after each seed.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from time import perf_counter

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

import egal_bench

SHORTCUTS = (0.0, 0.5, 0.8, 0.95)
EXPLAIN_LOSSES = (0.0, 1.0)
STYLES = {  # colours of Okabe and Ito, which colour-blind readers can tell apart
    "random": {"color": "#4d4d4d", "marker": "o"},
    "entropy": {"color": "#0072b2", "marker": "s"},
    "egal": {"color": "#d55e00", "marker": "D"},
}
ASIDE = {"entropy": -0.008, "egal": 0.008}  # by which a curve is moved, so that no interval hides another


def compare(args: argparse.Namespace, seed: int, explain_loss: float) -> pd.DataFrame:
    """Execute the runs of `seed` that OUT lacks; return the summary of all seeds so far, with the two dials."""
    dials = f"samples={args.samples},size=32,roi_area=0.06"
    config = egal_bench.Config(
        shards=tuple(f"phantom(brain,{dials},shortcut={shortcut})" for shortcut in SHORTCUTS),
        strategies=tuple(STYLES), seeds=f"{seed}:{seed + 1}", rounds=args.rounds, init=20, budget=20,
        backbone="small-cnn", steps=args.steps, batch_size=20, learning_rate=5e-3, explain_loss=explain_loss,
        keep="none", workers=args.workers, out=args.out / f"explain-loss-{explain_loss:.0f}",
    )  # fmt: skip
    summary = egal_bench.compare(config).summary
    return summary.assign(shortcut=summary.dataset.map(shortcut_of), explain_loss=explain_loss)


def shortcut_of(dataset: str) -> float:
    """Return the shortcut of a phantom by its name, which leaves out a dial of 0."""
    dial = re.search(r"shortcut=([\d.]+)", dataset)
    return float(dial[1]) if dial else 0.0


def half_width(sd: pd.Series, seeds: pd.Series) -> pd.Series:
    """Return half the width of the 95 % confidence interval of a mean over `seeds`, by Student's t."""
    return sd / seeds**0.5 * t.ppf(0.975, seeds - 1)


def draw(gains: pd.DataFrame, path: Path) -> None:
    """Draw the gain over random by shortcut, without and with explanation loss, and what random itself reaches."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 1 + len(EXPLAIN_LOSSES))
    axes[0].sharey(axes[1])
    for axis, explain_loss in zip(axes, EXPLAIN_LOSSES, strict=False):
        of_loss = gains[gains.explain_loss == explain_loss]
        for strategy, rows in of_loss[of_loss.strategy != "random"].groupby("strategy", sort=False):
            rows = rows.assign(shortcut=rows.shortcut + ASIDE[str(strategy)])
            curve(axis, rows, "gain", rows.pairs, label=str(strategy), **STYLES[str(strategy)])
        axis.axhline(0, color=STYLES["random"]["color"], linewidth=1)
        axis.set_title(f"explanation loss {explain_loss:g}")
        axis.set_ylabel("AUBC − random, points")
    for explain_loss, dash in zip(EXPLAIN_LOSSES, ("-", "--"), strict=True):
        rows = gains[(gains.explain_loss == explain_loss) & (gains.strategy == "random")]
        label = f"random, explanation loss {explain_loss:g}"
        curve(axes[-1], rows, "aubc", rows.seeds, label=label, linestyle=dash, **STYLES["random"])
    axes[-1].set_title("what training on ROIs does by itself")
    axes[-1].set_ylabel("AUBC, %")
    for axis in axes:
        axis.set_xlabel("shortcut of the phantom")
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(f"When does guidance by explanations help? Mean and 95 % interval over {gains.pairs.max()} seeds")
    figure.savefig(path, dpi=120)


def curve(axis: Axes, rows: pd.DataFrame, column: str, seeds: pd.Series, **style: str) -> None:
    """Draw a column of the summary over the shortcut, in percent, with its confidence interval."""
    rows = rows.assign(error=half_width(rows[f"{column}_sd"], seeds)).sort_values("shortcut")
    axis.errorbar(rows.shortcut, 100 * rows[column], 100 * rows.error, capsize=3, markersize=5, **style)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name, default in (("seeds", 10), ("rounds", 3), ("samples", 1000), ("workers", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", default="auto")
    args = parser.parse_args()

    start = perf_counter()
    for seed in range(args.seeds):
        gains = pd.concat([compare(args, seed, explain_loss) for explain_loss in EXPLAIN_LOSSES], ignore_index=True)
        gains.to_csv(args.out / "gains.csv", index=False)
        draw(gains, args.out / "guidance.png")
        print(f"{seed + 1} of {args.seeds} seeds after {(perf_counter() - start) / 60:.0f} minutes", flush=True)
    columns = [
        "explain_loss",
        "shortcut",
        "strategy",
        "accuracy",
        "aubc",
        "gain",
        "gain_sd",
        "wins",
        "pairs",
        "unfitted",
    ]
    print(gains[columns].sort_values(columns[:2], kind="stable").round(3).to_string(index=False))


if __name__ == "__main__":  # worker processes import this file, so that only the first process may start the study
    main()
