"""The audit passes for fair runs, and names each way in which runs are not."""

from bench.reports.made_up import write_results
from egal_bench.reports.audit import audit
from egal_bench.reports.joining import join
from egal_bench.tables.folder import ResultsFolder, RunName


def statuses(*folders):
    return {check.name: check.status for check in audit(join(folders))}


def detail(name, *folders):
    (check,) = [check for check in audit(join(folders)) if check.name == name]
    return check.detail


def rewrite(out, run, change):
    """Write a run anew after `change(tables, record)`."""
    folder = ResultsFolder(out)
    tables, record = folder.tables(run), folder.record(run)
    change(tables, record)
    folder.write(run, tables, record)


def test_fair_runs_pass_every_check_that_can_be_made(tmp_path):
    assert set(statuses(write_results(tmp_path)).values()) == {"pass"}


def test_training_that_stopped_too_early_is_named(tmp_path):
    out = write_results(tmp_path)
    for seed in range(2):
        run = RunName("cheng", "egal", seed)
        rewrite(out, run, lambda tables, _: [row.update(train_accuracy=0.8) for row in tables["rounds"]])
    assert statuses(out)["Training converged"] == "fail"
    assert "% of the rounds of egal the network has fitted less than 95 %" in detail("Training converged", out)


def test_another_initial_set_is_found(tmp_path):
    out = write_results(tmp_path)
    rewrite(out, RunName("cheng", "egal", 2), lambda tables, _: tables["selections"][0].update(key="another"))
    assert statuses(out)["Same initial sets"] == "fail"
    assert "seed 2" in detail("Same initial sets", out)


def test_another_test_set_is_found(tmp_path):
    out = write_results(tmp_path)
    rewrite(out, RunName("cheng", "egal", 2), lambda tables, _: tables["predictions"][-1].update(group="another"))
    assert statuses(out)["Same test set"] == "fail"


def test_without_predictions_the_test_set_is_unknown(tmp_path):
    assert statuses(write_results(tmp_path, predictions=False))["Same test set"] == "unknown"


def test_a_missing_seed_is_named(tmp_path):
    out = write_results(tmp_path, missing=[("cheng", "egal", 3)])
    assert detail("Complete seeds", out) == "cheng: egal has no finished run with seed 3."


def test_another_machine_is_named(tmp_path):
    out = write_results(tmp_path)
    rewrite(out, RunName("cheng", "egal", 2), lambda _, record: record["hardware"].update(device="a GPU"))
    assert detail("Same hardware and precision", out) == "The runs come from a CPU, 2 cores and a GPU."


def test_masks_that_are_not_counted_are_found(tmp_path):
    out = write_results(tmp_path)

    def uncount(tables, _):
        for row in tables["rounds"]:
            row["masks"] = 0

    for seed in range(5):
        rewrite(out, RunName("cheng", "egal", seed), uncount)
    assert statuses(out)["Costs declared"] == "fail"


def test_a_strategy_of_the_users_own_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    out = write_results(tmp_path / "out", strategies=("random", "trap:Mine"))
    assert statuses(out)["Costs declared"] == "unknown"


def test_ties_that_decide_are_named(tmp_path):
    out = write_results(tmp_path, strategies=("random", "misalignment"))
    expected = "misalignment on cheng: 100 % of the purchases were tied, so chance chose."
    assert detail("Scores decide, not ties", out) == expected


def test_an_oracle_is_flagged(tmp_path):
    out = write_results(tmp_path, strategies=("random", "class-balanced-random"))
    assert statuses(out)["No oracle among the strategies"] == "fail"


def test_prototypes_of_the_last_episode_are_flagged_like_an_oracle(tmp_path):
    out = write_results(tmp_path, settings={"prototypes": "last-episode"})
    assert statuses(out)["No oracle among the strategies"] == "fail"
    assert "--prototypes last-episode" in detail("No oracle among the strategies", out)
