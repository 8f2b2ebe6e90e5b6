"""verdict.json says what the statistics say, and what a hand-made case must give."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.reports.made_up import write_results
from egal_bench.errors import BenchError
from egal_bench.reports.analysis import analyse
from egal_bench.reports.audit import audit
from egal_bench.reports.joining import join
from egal_bench.reports.question import Question
from egal_bench.reports.verdict import seeds_to_decide, short_verdict, too_few_seeds, verdict_json
from egal_bench.tables.results import load


def verdict_of(*folders, **question):
    analysis = analyse(join(folders), Question(**question))
    return verdict_json(analysis, audit(analysis.joined))


def test_a_large_gain_is_better_a_large_loss_worse_and_none_equivalent(tmp_path):
    gains = {"egal": 0.05, "misalignment": -0.05}
    strategies = ("random", "egal", "misalignment", "entropy")
    out = write_results(tmp_path, seeds=range(10), strategies=strategies, gains=gains, noise=0.002)
    verdict = verdict_of(out)["datasets"]["cheng"]
    words = {name: entry["verdict"] for name, entry in verdict["strategies"].items()}
    assert words == {"egal": "better", "misalignment": "worse", "entropy": "equivalent"}
    assert verdict["sentence"] == (
        "On cheng, egal is better than random, misalignment is worse than random, and entropy is equivalent to random "
        "within 1 point."
    )


def test_the_difference_and_its_p_value_are_those_of_scipy(tmp_path):
    out = write_results(tmp_path, seeds=range(7), strategies=("random", "egal"), gains={"egal": 0.01})
    entry = verdict_of(out, test="wilcoxon")["datasets"]["cheng"]["strategies"]["egal"]
    rounds = load(out)["rounds"]
    areas = {
        key: np.trapezoid(run["accuracy"], run["labels"]) / np.ptp(run["labels"])
        for key, run in rounds.groupby(["strategy", "seed"])
    }
    d = np.array([areas["egal", seed] - areas["random", seed] for seed in range(7)])
    assert entry["aubc"]["difference"] == pytest.approx(d.mean(), abs=1e-12)
    interval = stats.ttest_1samp(d, 0).confidence_interval()
    assert (entry["aubc"]["low"], entry["aubc"]["high"]) == pytest.approx(tuple(interval), abs=1e-12)
    assert entry["aubc"]["p"] == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, abs=1e-12)
    assert entry["aubc"]["won"] == (d > 0).sum()


def test_of_nll_the_lower_one_is_better(tmp_path):
    out = write_results(tmp_path, seeds=range(8), strategies=("random", "egal"), gains={"egal": 0.05}, noise=0.002)
    entry = verdict_of(out, metric="nll")["datasets"]["cheng"]["strategies"]["egal"]
    assert entry["verdict"] == "better"
    assert entry["aubc"]["difference"] < 0


def test_a_wider_margin_makes_a_small_difference_equivalent(tmp_path):
    out = write_results(tmp_path, seeds=range(8), strategies=("random", "egal"), gains={"egal": 0.02}, noise=0.002)
    words = {m: verdict_of(out, margin=m)["datasets"]["cheng"]["strategies"]["egal"]["verdict"] for m in (1, 5)}
    assert words == {1: "better", 5: "equivalent"}


def test_folders_join_into_one_report_whatever_their_order(tmp_path):
    a = write_results(tmp_path / "a", strategies=("random", "egal"), seeds=range(4))
    b = write_results(tmp_path / "b", strategies=("entropy",), seeds=range(4))
    c = write_results(tmp_path / "c", datasets=("siim",), seeds=range(4))
    verdict, other = verdict_of(a, b, c), verdict_of(c, b, a)
    assert set(verdict["datasets"]) == {"cheng", "siim"}
    assert set(verdict["datasets"]["cheng"]["strategies"]) == {"egal", "entropy"}
    assert verdict["datasets"] == other["datasets"]


def test_the_same_run_in_two_folders_is_refused(tmp_path):
    folders = [write_results(tmp_path / name, strategies=("random",), seeds=[3]) for name in "ab"]
    with pytest.raises(BenchError, match="cheng, random, seed 3 stands in"):
        join(folders)


def test_runs_of_different_settings_are_never_compared(tmp_path):
    plain = write_results(tmp_path / "plain")
    ablation = write_results(tmp_path / "ablation", settings={"explain_loss": 1.0})
    verdict = verdict_of(plain, ablation)
    assert set(verdict["datasets"]) == {"cheng (explain-loss 0.0)", "cheng (explain-loss 1.0)"}
    (check,) = [c for c in verdict["audit"] if c["check"] == "One setting per data set"]
    assert check["status"] == "fail"
    assert "explain-loss" in check["detail"]


def test_an_unknown_baseline_is_named_with_the_nearest(tmp_path):
    out = write_results(tmp_path, seeds=range(2))
    with pytest.raises(BenchError, match="unknown baseline 'entropi': did you mean"):
        verdict_of(out, baseline="entropi")


@pytest.mark.parametrize("question", [{"metric": "speed"}, {"test": "z"}, {"margin": 0}, {"margin": float("nan")}])
def test_a_question_that_makes_no_sense_is_refused(question):
    with pytest.raises(BenchError):
        Question(**question)


@pytest.fixture
def short(tmp_path):
    """Return a function from the settings of made-up runs to their short verdict."""

    def sentences(oracles=(), **settings):
        return short_verdict(join([write_results(tmp_path, **settings)]).rounds, Question(), oracles)

    return sentences


def test_the_short_verdict_is_that_of_the_report(short, tmp_path):
    sentences = short(datasets=("cheng", "siim"), strategies=("random", "egal"), gains={"egal": 0.05}, seeds=range(6))
    assert sentences == [dataset["sentence"] for dataset in verdict_of(tmp_path)["datasets"].values()]
    assert sentences[0] == "On cheng, egal is better than random."


def test_the_short_verdict_knows_what_is_missing(short):
    sentences = short(strategies=("egal", "entropy"), seeds=range(2))
    assert sentences == ["On cheng, nothing can be concluded: random was not run."]


def test_variants_that_the_sentence_leaves_out_have_their_own(short):
    variants = ("egal", *(f"egal(lambda={i})" for i in range(2, 5)))
    first, family, _ = short(strategies=("random", "entropy", "badge", *variants), seeds=range(2), noise=0.1)
    assert first.endswith("and 2 others are undecided against random.")
    assert all(name in family for name in variants)
    assert "entropy" not in family


def undecided(**needed):
    """Return rows of `verdicts` on strategies that need these numbers of seeds."""
    rows = pd.DataFrame({"strategy": list(needed), "seeds_needed": list(needed.values())})
    return rows.assign(verdict="undecided", pairs=3, comparisons=4)


@pytest.mark.parametrize(
    ("needed", "sentence"),
    [
        ({"egal": 27.0, "badge": 189.0}, "About 27 to 189 seeds would decide the undecided strategies."),
        ({"egal": 27.0}, "About 27 seeds would decide egal."),
        ({"egal": 9.0, "badge": np.inf}, "About 9 to more than 1000 seeds would decide the undecided strategies."),
        ({"egal": np.nan}, ""),
    ],
)
def test_the_next_step_names_the_seeds_that_decide(needed, sentence):
    assert seeds_to_decide(undecided(**needed)) == sentence


def test_too_few_seeds_are_named_with_the_number_that_can():
    rows = undecided(egal=27.0)
    assert too_few_seeds(rows, Question()) == "3 seeds cannot show a difference; 8 can."
    assert too_few_seeds(rows.assign(pairs=8), Question()) == ""
    assert too_few_seeds(rows.assign(verdict="better"), Question()) == ""


def test_a_class_with_most_test_samples_is_a_caution(tmp_path):
    out = write_results(tmp_path / "equal", seeds=range(2))
    assert verdict_of(out)["datasets"]["cheng"]["caution"] == ""
    unequal = write_results(tmp_path / "unequal", seeds=range(2), test_size=1)
    assert verdict_of(unequal)["datasets"]["cheng"]["caution"] == (
        "The classes are unequal (100 % of the test samples have one class): also read --metric balanced_accuracy."
    )
    assert verdict_of(unequal, metric="balanced_accuracy")["datasets"]["cheng"]["caution"] == ""


def test_an_oracle_is_marked_in_the_sentence(short):
    assert "egal (oracle)" in short(oracles={"egal"}, seeds=range(2))[0]
