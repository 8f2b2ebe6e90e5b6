"""Everything that the report shows of the numbers, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from egal_bench.errors import BenchError, unknown
from egal_bench.reports.joining import Joined
from egal_bench.reports.question import LABELS, PRIMARY, SHOWN_METRICS, Question
from egal_bench.statistics import testset
from egal_bench.statistics.class_rates import class_curves
from egal_bench.statistics.efficiency import EFFICIENCY, efficiency, needs
from egal_bench.statistics.estimates import estimates
from egal_bench.statistics.outcomes import CURVE, both, curves, final, split
from egal_bench.statistics.penalty import penalties
from egal_bench.statistics.ranks import (
    LEAST_DATASETS,
    RankStability,
    RankTest,
    average_ranks,
    dataset_scores,
    rank_stability,
)
from egal_bench.statistics.verdicts import verdicts


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
        test_set: intervals from the test set for the question's metric.
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
    notes = [*joined.problems, *joined.separated]
    names = sorted(set(joined.rounds["strategy"]))
    if question.baseline not in names and question.baseline != Question.baseline:
        raise unknown("baseline", question.baseline, names)
    strategies = tuple(sorted(names, key=lambda name: (name != question.baseline, name)))
    table = curves(joined.rounds, SHOWN_METRICS).dropna(subset=["value"])
    classes = _class_finals(joined, notes)
    outcomes = pd.concat([both(table), classes], ignore_index=True) if len(table) else both(table)
    difference = _differences(table, question.baseline)
    rule = {"margin": question.margin / 100, "alpha": question.alpha, "test": question.test}
    judged = verdicts(outcomes, question.baseline, rng=question.generator(), **rule)  # type: ignore[arg-type]
    main = table[table["metric"] == question.metric]
    headline = outcomes[(outcomes["metric"] == question.metric) & (outcomes["outcome"] == PRIMARY)]
    needed = needs(main, question.baseline)
    ranks, stability = _ranks(headline, question, notes)
    _note_gaps(joined, question, table, notes)
    return Analysis(
        joined, question, strategies, table, estimates(table, question.generator()), difference,
        estimates(difference, question.generator()), outcomes,
        estimates(outcomes, question.generator()), judged, penalties(main), needed,
        efficiency(needed) if len(needed) else pd.DataFrame(columns=EFFICIENCY), ranks, stability,
        _test_set(joined, question, notes), tuple(notes),
    )  # fmt: skip


def _class_finals(joined: Joined, notes: list[str]) -> pd.DataFrame:
    """Return sensitivity and specificity of every class after the last round, as outcomes."""
    if joined.predictions.empty:
        notes.append(
            "No run has a readable table predictions (--keep), so there are no results per class, no calibration, no "
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
    ranks, stability = (
        average_ranks(dataset_scores(headline), alpha=question.alpha),
        rank_stability(headline, question.generator()),
    )
    datasets = headline["dataset"].nunique()
    if datasets < LEAST_DATASETS:
        notes.append(f"No rank tests: they need {LEAST_DATASETS} data sets, and this report has {datasets}.")
    elif ranks.reason:
        notes.append(f"No rank tests: {ranks.reason}.")
    if ranks.left_out:
        notes.append(f"Without rank, because a data set lacks them: {', '.join(ranks.left_out)}.")
    if stability.reason:
        notes.append(f"No stability of the ranking: {stability.reason}.")
    return ranks, stability


def _test_set(joined: Joined, question: Question, notes: list[str]) -> pd.DataFrame:
    parts = []
    for key, cell in split(joined.predictions, ["dataset"]):
        last = cell[cell["round"] == cell["round"].max()]
        try:
            parts.append(testset.uncertainty(last, question.metric, question.baseline, rng=question.generator()))
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
