"""`egal-bench compare` as a person runs it: what it prints, and how flags reach the run and its record."""

import numpy as np
import pytest
import yaml

from bench.command_line import egal_bench, json_of
from egal_bench.dataset import open_dataset
from egal_bench.reports.analysis import analyse
from egal_bench.reports.joining import join
from egal_bench.reports.question import Question
from egal_bench.reports.verdict import verdict_json
from egal_bench.tables.results import load


def test_last_line_is_the_json_of_the_contract(finished):
    out, process = finished
    result = json_of(process)
    assert set(result) == {"out", "datasets", "strategies", "seconds"}
    assert list(result["strategies"]) == ["random", "entropy", "egal"]
    rounds = load(out)["rounds"]
    for name, row in result["strategies"].items():
        assert set(row) == {"accuracy", "macro_auc", "aubc", "labels", "masks"}
        last = rounds[(rounds.strategy == name) & (rounds["round"] == 2)]
        assert row["accuracy"] == pytest.approx(last.accuracy.mean())
        assert row["labels"] == 35
    assert result["out"] == "runs/one"
    (by_strategy,) = result["datasets"].values()
    areas = {name: np.trapezoid(runs.groupby("round").accuracy.mean(), [15, 25, 35]) / 20
             for name, runs in rounds.groupby("strategy")}  # fmt: skip
    for name, row in by_strategy.items():
        last = rounds[(rounds.strategy == name) & (rounds["round"] == 2)]
        assert row["accuracy_sd"] == pytest.approx(last.accuracy.std())
        assert row["gain"] == pytest.approx(areas[name] - areas["random"])
        assert (row["seeds"], row["pairs"]) == (2, 2)


def test_printed_table_says_what_is_needed_to_judge_it(finished):
    _, process = finished
    text = " ".join(process.stdout.split())
    test = "2 seeds cannot show a significant difference (exact paired tests of 2 comparisons"
    for part in ("mean ± sd over 2 seeds", "AUBC−random", "Standard error", test, "tied"):
        assert part in text, part
    assert process.stderr.count("run ") == 6  # without a terminal, one line per finished run


def test_the_end_is_the_verdict_of_the_report_and_its_command(finished):
    out, process = finished
    analysis = analyse(join([out]), Question())
    (dataset,) = verdict_json(analysis, [])["datasets"].values()
    text = " ".join(process.stdout.split())
    assert dataset["sentence"] in text
    assert "egal-bench report runs/one" in text


def test_the_summary_is_in_the_folder_as_it_was_printed(finished):
    out, process = finished
    printed = [line.rstrip() for line in process.stdout.splitlines()]
    saved = (out / "summary.txt").read_text(encoding="utf-8").splitlines()
    assert len(saved) > 10
    assert printed[: len(saved)] == saved


TRAINING = {"explain_loss": 0.25, "early_stop": 0.2, "warm_start": True, "class_balance": False}


def test_flags_reach_training_the_record_and_the_cost(tmp_path):
    flags = [
        "--backbone=small-cnn", "--phantom-samples=120", "--size=32", "--strategies=random,egal", "--seeds=1",
        "--init=15", "--budget=10", "--rounds=1", "--steps=3", "--batch-size=8", "--workers=1", "--out=out", "--json",
        "--explain-loss=0.25", "--early-stop=0.2", "--warm-start", "--no-class-balance",
    ]  # fmt: skip
    process = egal_bench("compare", *flags, cwd=tmp_path, status=0)
    recorded = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert {name: recorded[name] for name in TRAINING} == TRAINING
    masks = load(tmp_path / "out")["rounds"].set_index(["strategy", "round"]).masks
    assert 10 <= masks["random", 0] == masks["egal", 0] <= 14  # the samples it trained on, of 15 labels
    assert masks["random", 0] < masks["random", 1] < 25
    # egal read the ROIs of all unlabelled samples: only the held-out part of the initial set is not counted
    pool = open_dataset(tmp_path / "out/shards/phantom-brain").pool
    assert masks["egal", 1] == len(pool) - (15 - masks["egal", 0])
    assert json_of(process)["strategies"]["random"]["masks"] == masks["random", 1]


def test_parameters_of_a_specification_reach_the_run_and_its_name(tmp_path):
    flags = [
        "--backbone=small-cnn", "--phantom-samples=120", "--size=32", "--seeds=1", "--init=15", "--budget=10",
        "--rounds=1", "--steps=2", "--workers=1", "--out=out",
    ]  # fmt: skip
    egal_bench("compare", *flags, "--strategies=egal(lambda=0.5),egal", "--lambda=2", cwd=tmp_path, status=0)
    queried = load(tmp_path / "out")["selections"].query("round > 0")
    weights = {"egal(lambda=0.5)": 0.5, "egal(lambda=2)": 2.0}
    assert set(queried.strategy) == set(weights)
    for name, of_strategy in queried.groupby("strategy"):
        expected = of_strategy.entropy + weights[name] * of_strategy.misalignment
        assert of_strategy.score.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
