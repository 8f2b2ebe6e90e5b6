"""Runs that continue: with more rounds, after an interruption, and beside another process in the same folder."""

import shutil
import sys
from dataclasses import replace

import pandas as pd
import pytest

from bench.command_line import Command, egal_bench
from bench.in_process import unrendered_figures
from bench.tiny import FLAGS, contents, tiny_config
from egal_bench.runs.comparison import compare
from egal_bench.runs.events import RoundDone, RunDone
from egal_bench.runs.grid import resolved, tasks_of
from egal_bench.runs.local_engine import LocalEngine
from egal_bench.runs.task import History
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.schemas import SCHEMAS

pytestmark = pytest.mark.usefixtures("unrendered")


def assert_same(left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame]) -> None:
    assert left.keys() == right.keys()
    for table in left:
        pd.testing.assert_frame_equal(left[table], right[table], check_exact=True)


@pytest.mark.parametrize("regime", ["finetune", "frozen"])
@pytest.mark.parametrize("strategy", ["random", "egal"])
def test_more_rounds_continue_a_finished_run(phantom_dataset, tmp_path, regime, strategy):
    shards = phantom_dataset(150).shards.where
    settings = {"regime": regime, "strategies": (strategy,)}
    for rounds in (1, 3):
        compare(tiny_config(shards, out=tmp_path / "grown", rounds=rounds, **settings))
    compare(tiny_config(shards, out=tmp_path / "fresh", rounds=3, **settings))
    assert_same(contents(tmp_path / "grown"), contents(tmp_path / "fresh"))
    for table in SCHEMAS.keys() - {"rounds"}:  # which holds timings
        (fresh,) = (tmp_path / "fresh").glob(f"{table}/**/part.parquet")
        assert (tmp_path / "grown" / fresh.relative_to(tmp_path / "fresh")).read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("changes", [{"steps": 3, "replace": True}, {"rounds": 2}], ids=["replaced", "continued"])
def test_the_network_of_earlier_tables_is_removed(phantom_dataset, tmp_path, changes):
    config = tiny_config(phantom_dataset(150).shards.where, out=tmp_path / "out", rounds=1, save_network=True)
    compare(config)
    (network,) = (tmp_path / "out").glob("networks/**/network.safetensors")
    compare(config.model_copy(update=changes | {"save_network": False}))
    assert not network.exists()


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_run_interrupted_after_its_last_round_keeps_its_network(phantom_dataset, tmp_path, warm_start):
    dataset = phantom_dataset(150)
    settings = {"rounds": 1, "save_network": True, "warm_start": warm_start}
    (task,) = tasks_of(resolved(tiny_config(dataset.shards.where, **settings)), [dataset], ResultsFolder(tmp_path))
    *rounds, end = LocalEngine(1).execute([task])
    tables = {table: [row for event in rounds for row in event.tables[table]] for table in SCHEMAS}
    (again,) = LocalEngine(1).execute([replace(task, history=History(tables, rounds[-1].files))])
    assert isinstance(again, RunDone)
    assert again.files == end.files


@pytest.mark.parametrize(
    "settings", [{}, {"warm_start": True}, {"explain_loss": 0.1}], ids=["plain", "warm", "explained"]
)
def test_an_interrupted_run_repeats_no_finished_round(phantom_dataset, tmp_path, settings):
    dataset = phantom_dataset(150)
    config = resolved(tiny_config(dataset.shards.where, strategies=("egal",), rounds=3, **settings))
    (task,) = tasks_of(config, [dataset], ResultsFolder(tmp_path))
    events = [event for event in LocalEngine(1).execute([task]) if isinstance(event, RoundDone)]
    for finished in range(1, 4):
        tables = {t: [row for event in events[:finished] for row in event.tables[t]] for t in SCHEMAS}
        history = History(tables, events[finished - 1].files)
        resumed = [e for e in LocalEngine(1).execute([replace(task, history=history)]) if isinstance(e, RoundDone)]
        assert len(resumed) == 4 - finished
        for again, event in zip(resumed, events[finished:], strict=True):
            timings = ("train_s", "score_s", "eval_s")
            rows = [{k: v for k, v in e.tables["rounds"][0].items() if k not in timings} for e in (again, event)]
            assert rows[0] == rows[1]
            assert [row["key"] for row in again.tables["selections"]] == [
                row["key"] for row in event.tables["selections"]
            ]


def test_two_processes_in_one_folder_share_the_runs(finished, tmp_path):
    commands = [Command("compare", *FLAGS, "--workers=1", "--out=shared", cwd=tmp_path) for _ in range(2)]
    processes = [command.completed() for command in commands]
    errors = [process.stderr for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    executed = [line for text in errors for line in text.splitlines() if line.startswith("run ") and "accuracy" in line]
    assert len(executed) == 6  # each run once
    assert_same(contents(tmp_path / "shared"), contents(finished[0]))


def test_parts_make_the_whole_grid(finished, tmp_path):
    for part in ("1/2", "2/2"):
        egal_bench("compare", *FLAGS, "--workers=1", "--out=parts", f"--part={part}", cwd=tmp_path, status=0)
    assert_same(contents(tmp_path / "parts"), contents(finished[0]))
    process = egal_bench("compare", *FLAGS, "--workers=1", "--out=parts", cwd=tmp_path, status=0)
    assert "6 of 6 runs are already in" in process.stderr


@pytest.fixture(scope="module")
def frozen(phantom_dataset, tmp_path_factory):
    """The configuration of a finished comparison in the frozen regime; its folder also holds the features."""
    out = tmp_path_factory.mktemp("frozen") / "out"
    config = tiny_config(phantom_dataset(150).shards.where, out=out, rounds=1, regime="frozen")
    with unrendered_figures():
        compare(config)
    return config


@pytest.mark.parametrize("table", list(SCHEMAS))
@pytest.mark.parametrize("harm", ["empty", "cut", "flipped"])
def test_a_damaged_table_is_computed_again(frozen, tmp_path, table, harm):
    shutil.copytree(frozen.out.parent, tmp_path, dirs_exist_ok=True)
    config, before = frozen.model_copy(update={"out": tmp_path / "out"}), contents(frozen.out)
    (file,) = (tmp_path / "out").glob(f"{table}/**/part.parquet")
    data = bytearray(file.read_bytes())
    data[60] ^= 255
    file.write_bytes({"empty": b"", "cut": bytes(data[:-9]), "flipped": bytes(data)}[harm])
    compare(config)
    assert_same(contents(tmp_path / "out"), before)


@pytest.mark.skipif(sys.platform != "linux", reason="tables are torn apart by removing one of them")
def test_tables_of_different_runs_are_never_read_together(finished, tmp_path):
    """A selections table that other settings have written makes the run unfinished, not wrong."""
    out = tmp_path / "torn"
    shutil.copytree(finished[0], out)
    other = tmp_path / "other"
    flags = [*FLAGS, "--init=16", "--strategies=random", "--seeds=1", "--workers=1", f"--out={other}"]
    egal_bench("compare", *flags, cwd=tmp_path, status=0)
    torn = next(out.glob("selections/dataset=*/strategy=random/seed=0/part.parquet"))
    shutil.copy(other / torn.relative_to(out), torn)
    process = egal_bench("compare", *FLAGS, "--workers=1", f"--out={out}", cwd=tmp_path, status=0)
    assert "5 of 6 runs are already in" in process.stderr
    assert_same(contents(out), contents(finished[0]))
