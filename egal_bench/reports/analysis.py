"""Everything that the report shows of the numbers, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from egal_bench.errors import BenchError, unknown
from egal_bench.reports.joining import Joined
from egal_bench.statistics import testset
from egal_bench.statistics.class_rates import class_curves
from egal_bench.statistics.efficiency import EFFICIENCY, efficiency, needs
from egal_bench.statistics.estimates import estimates
from egal_bench.statistics.outcomes import CURVE, LOWER_IS_BETTER, METRICS, both, curves, final, split
from egal_bench.statistics.penalty import penalties
from egal_bench.statistics.ranks import RankStability, RankTest, average_ranks, dataset_scores, rank_stability
from egal_bench.statistics.significance import TESTS
from egal_bench.statistics.verdicts import verdicts

SHOWN_METRICS = (*METRICS, "test_dice")
LABELS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auc": "macro AUC", "macro_f1": "macro F1",
    "nll": "NLL", "ece": "ECE", "test_dice": "Dice of Grad-CAM and ROI",
}  # fmt: skip
OUTCOMES = {"aubc": "averaged over the labels (AUBC)", "final": "after the last round"}
PRIMARY = "aubc"  # the verdict rests on this outcome, which was fixed before any result was seen
_SEED = 2602  # seed of every bootstrap, so that the same folders always give the same report


@dataclass(frozen=True)
class Question:
    """What the report asks of the runs.

    Attributes:
        baseline: name of the strategy that the others are compared with.
        metric: one of METRICS.
        margin: smaller differences do not matter; in points: 1 is 0.01 of the metric (for nll, 0.01 nats).
        test: one of `significance.TESTS`.
        alpha: level of each family of tests.
    """

    baseline: str = "random"
    metric: str = "accuracy"
    margin: float = 1.0
    test: str = "sign-flip"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Raise BenchError for a value that is not allowed."""
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if self.test not in TESTS:
            raise unknown("test", self.test, TESTS)
        if not (np.isfinite(self.margin) and self.margin > 0):
            raise BenchError(f"--margin {self.margin:g}: must be a positive number of points, such as 1")


def factor(metric: str) -> float:
    """Return the factor from the metric to the unit in which it is shown: 100 for points, 1 for nats."""
    return 1.0 if metric == "nll" else 100.0


def unit(metric: str) -> str:
    """Return the unit in which a difference of the metric is shown."""
    return "nats" if metric == "nll" else "points"


@dataclass(frozen=True)
class Analysis:
    """The frames of the report; see the functions of `egal_bench.statistics` that return them.

    Attributes:
        joined: the tables of all runs.
        question: what the report asks.
        strategies: names, the baseline first.
        curves: value of each metric per run and budget.
        curve_estimates: mean, IQM and intervals of `curves` over seeds.
        differences: `curves` minus the curve of the baseline with the same seed.
        difference_estimates: mean, IQM and intervals of `differences` over seeds.
        outcomes: value of each metric per run, averaged over the labels and after the last round; and the sensitivity
            and specificity of each class after the last round.
        estimates: mean, IQM and intervals of `outcomes` over seeds.
        verdicts: tests of `outcomes` against the baseline.
        penalties: pairwise penalties of the strategies for the question's metric.
        needs: labels and masks that each run needs to reach the baseline's final value of the question's metric.
        efficiency: medians of `needs` over seeds.
        ranks: test of average ranks for the question's metric and PRIMARY; None if no run has a value.
        stability: stability of that ranking over seeds; None if no run has a value.
        test_set: intervals from the test set for the question's metric, or for accuracy if `testset` lacks the metric.
        notes: what could not be computed, and why.
    """

    joined: Joined
    question: Question
    strategies: tuple[str, ...]
    curves: pd.DataFrame
    curve_estimates: pd.DataFrame
    differences: pd.DataFrame
    difference_estimates: pd.DataFrame
    outcomes: pd.DataFrame
    estimates: pd.DataFrame
    verdicts: pd.DataFrame
    penalties: pd.DataFrame
    needs: pd.DataFrame
    efficiency: pd.DataFrame
    ranks: RankTest | None
    stability: RankStability | None
    test_set: pd.DataFrame
    notes: tuple[str, ...]

    def of_question(self, frame: pd.DataFrame, outcome: str | None = None) -> pd.DataFrame:
        """Return the rows of the question's metric, and of one outcome where one is given."""
        rows = frame[frame["metric"] == self.question.metric]
        return rows if outcome is None else rows[rows["outcome"] == outcome]


def analyse(joined: Joined, question: Question) -> Analysis:
    """Return the analysis of these runs.

    Raises:
        BenchError: no run has the baseline, and it is not the default one.
    """
    notes = list(joined.separated)
    names = sorted(set(joined.rounds["strategy"]))
    if question.baseline not in names and question.baseline != Question.baseline:
        raise unknown("baseline", question.baseline, names)
    strategies = tuple(sorted(names, key=lambda name: (name != question.baseline, name)))
    table = curves(joined.rounds, SHOWN_METRICS).dropna(subset=["value"])
    classes = _class_finals(joined, notes)
    outcomes = pd.concat([both(table), classes], ignore_index=True) if len(table) else both(table)
    difference = _differences(table, question.baseline)
    rule = {"margin": question.margin / 100, "alpha": question.alpha, "test": question.test}
    judged = verdicts(outcomes, question.baseline, rng=_rng(), **rule)  # type: ignore[arg-type]
    main = table[table["metric"] == question.metric]
    headline = outcomes[(outcomes["metric"] == question.metric) & (outcomes["outcome"] == PRIMARY)]
    needed = needs(main, question.baseline)
    ranks, stability = _ranks(headline, question, notes)
    _note_gaps(joined, question, table, notes)
    return Analysis(
        joined, question, strategies, table, _estimates(table), difference, _estimates(difference), outcomes,
        _estimates(outcomes), judged, penalties(main), needed,
        efficiency(needed) if len(needed) else pd.DataFrame(columns=EFFICIENCY), ranks, stability,
        _test_set(joined, question, notes), tuple(notes),
    )  # fmt: skip


def _rng() -> np.random.Generator:
    return np.random.default_rng(_SEED)


def _estimates(table: pd.DataFrame) -> pd.DataFrame:
    return estimates(table, _rng())


def _class_finals(joined: Joined, notes: list[str]) -> pd.DataFrame:
    """Return sensitivity and specificity of every class after the last round, as outcomes."""
    if joined.predictions.empty:
        notes.append(
            "No run has kept its predictions (--keep), so there are no results per class, no calibration, no "
            "confusion matrices and no intervals from the test set."
        )
    rates = class_curves(joined.predictions, joined.rounds) if len(joined.predictions) else pd.DataFrame(columns=CURVE)
    last = joined.rounds.groupby("dataset")["round"].max()
    return final(rates[rates["round"] == rates["dataset"].map(last)])


def _differences(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the curves minus the baseline's of the same seed and labels, without the baseline."""
    keys = ["dataset", "seed", "metric", "labels"]
    base = table.loc[table["strategy"] == baseline, [*keys, "value"]].rename(columns={"value": "base"})
    joined = table[table["strategy"] != baseline].merge(base, on=keys)
    return joined.assign(value=joined["value"] - joined["base"])[CURVE]


def _ranks(
    headline: pd.DataFrame, question: Question, notes: list[str]
) -> tuple[RankTest | None, RankStability | None]:
    if headline.empty:
        notes.append(f"No run reaches the last round with a value of {LABELS[question.metric]}: there is no verdict.")
        return None, None
    ranks, stability = average_ranks(dataset_scores(headline), alpha=question.alpha), rank_stability(headline, _rng())
    if ranks.reason:
        notes.append(f"No rank tests: {ranks.reason}.")
    if ranks.left_out:
        notes.append(f"Without rank, because a data set lacks them: {', '.join(ranks.left_out)}.")
    if stability.reason:
        notes.append(f"No stability of the ranking: {stability.reason}.")
    return ranks, stability


def _test_set(joined: Joined, question: Question, notes: list[str]) -> pd.DataFrame:
    metric = question.metric if question.metric in testset.METRICS else "accuracy"
    parts = []
    for key, cell in split(joined.predictions, ["dataset"]):
        last = cell[cell["round"] == cell["round"].max()]
        try:
            parts.append(testset.uncertainty(last, metric, question.baseline, rng=_rng()))
        except BenchError as error:
            notes.append(f"No intervals from the test set of {key['dataset']}: {error}.")
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=testset.COLUMNS)


def _note_gaps(joined: Joined, question: Question, table: pd.DataFrame, notes: list[str]) -> None:
    """Add a sentence for each thing that the runs do not allow to compute."""
    for key, runs in split(joined.rounds, ["dataset"]):
        name, strategies = key["dataset"], runs["strategy"].unique()
        if question.baseline not in strategies:
            notes.append(f"{name}: {question.baseline} was not run, so nothing can be compared with it.")
        elif len(strategies) == 1:
            notes.append(f"{name}: only {question.baseline} was run, so there is nothing to compare with it.")
        if runs["seed"].nunique() == 1:
            notes.append(f"{name}: with 1 seed there are no standard deviations, intervals or tests.")
        if runs["round"].max() == 0:
            notes.append(f"{name}: no query round was run, so all strategies are the same initial set.")
        if not runs["masks"].any() and runs["test_dice"].isna().all():
            notes.append(f"{name}: no ROI was used and no test sample has one, so nothing is said about ROIs.")
        own = table[(table["dataset"] == name) & (table["metric"] == question.metric)]
        if own.empty:
            notes.append(f"{name}: {LABELS[question.metric]} is not defined in any round.")
        elif np.ptp(own["value"].to_numpy()) == 0:
            notes.append(f"{name}: {LABELS[question.metric]} is the same in every run and round.")


__all__ = ["LABELS", "LOWER_IS_BETTER", "OUTCOMES", "PRIMARY", "Analysis", "Question", "analyse", "factor", "unit"]
