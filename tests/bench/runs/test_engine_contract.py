"""What every engine must hold, whatever it executes the runs with."""

import multiprocessing
import traceback
from collections import defaultdict

import pytest

from bench.tiny import tiny_config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.runs.engine import USER_ERRORS, Engine
from egal_bench.runs.events import RoundDone, RunDone
from egal_bench.runs.grid import resolved, tasks_of
from egal_bench.runs.local_engine import LocalEngine, load_ahead
from egal_bench.runs.run import run
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.schemas import TIMINGS

LOCAL = {"in this process": LocalEngine(1), "in two processes": LocalEngine(2)}


@pytest.fixture(params=[*LOCAL, pytest.param("on Ray", marks=pytest.mark.xdist_group("ray"))])
def engine(request, user_module, tmp_path) -> Engine:
    if request.param in LOCAL:
        return LOCAL[request.param]
    request.getfixturevalue("ray_cluster")
    from egal_bench.runs.ray_engine import RayEngine
    from egal_bench.runs.ray_worker import Driver

    return RayEngine(tiny_config("set", engine="ray", workers=None), Driver(tmp_path, tmp_path.resolve()), gpus=0.0)


@pytest.fixture(scope="module", autouse=True)
def loaded_ahead():
    """Load what worker processes need, once for all tests of this module."""
    load_ahead("finetune")


@pytest.fixture(autouse=True)
def no_process_remains():
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.fixture
def tasks(phantom_dataset, user_module, tmp_path):
    """Return a function that gives the tasks of a tiny comparison in the folder tmp_path."""

    def build(*strategies: str, **settings) -> list[Task]:
        shards = phantom_dataset(150).shards.where
        config = resolved(tiny_config(shards, strategies=strategies, rounds=1, **settings))
        return tasks_of(config, [open_dataset(shards)], ResultsFolder(tmp_path))

    return build


def rounds_by_run(events) -> dict[str, list[str]]:
    """Return the rows of each finished round, without the columns that measure time, as text by run.

    Text, since NaN is not equal to itself. Each run must end with its RunDone.
    """
    rounds, ended = defaultdict(list), []
    for event in events:
        if isinstance(event, RunDone):
            ended.append(str(event.task.run))
            continue
        assert isinstance(event, RoundDone)
        assert str(event.task.run) not in ended
        tables = {
            t: [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows] for t, rows in event.tables.items()
        }
        rounds[str(event.task.run)].append(repr(tables))
    assert sorted(ended) == sorted(rounds)
    return dict(rounds)


@pytest.mark.parametrize("regime", ["finetune", "frozen"])
def test_tables_are_those_of_each_run_alone(engine, tasks, regime):
    grid = tasks("random", "egal", regime=regime, seeds=2)
    results = rounds_by_run(engine.execute(grid))
    alone = rounds_by_run(event for task in grid for event in run(task, Workspace()))
    assert results == alone


def test_every_round_is_reported_in_order(engine, tasks):
    grid, rounds = tasks("random", "entropy"), defaultdict(list)
    for event in engine.execute(grid):
        if isinstance(event, RoundDone):
            (row,) = event.tables["rounds"]
            rounds[event.task.run.strategy].append((row["round"], row["labels"]))
    assert rounds == {"random": [(0, 15), (1, 25)], "entropy": [(0, 15), (1, 25)]}


def test_tasks_are_taken_only_when_a_run_can_start(engine, tasks):
    grid, taken = tasks("random", seeds=6), []
    results = engine.execute(taken.append(task) or task for task in grid)
    next(results)
    assert len(taken) < len(grid)
    results.close()


def test_no_tasks_give_no_tables(engine):
    assert list(engine.execute([])) == []


def test_mistake_of_a_user_names_the_run(engine, tasks, user_module):
    user_module("short", """
        from egal_bench import strategy
        @strategy("short")
        def short(pool): return [0, 1]
        """)  # fmt: skip
    with pytest.raises(BenchError, match=r"^set, short:short, seed 0: strategy 'short:short' returned .*at least 10"):
        list(engine.execute(tasks("short:short")))


def test_exception_in_a_users_strategy_names_its_file_and_line(engine, tasks, user_module):
    user_module("wrong", """
        def wrong(pool):
            return pool.entropy.no_such_attribute
        wrong.needs_roi = wrong.needs_features = False
        """)  # fmt: skip
    with pytest.raises(BenchError, match=r"^set, wrong:wrong, seed 0: .*AttributeError: .*\(wrong\.py, line 3\)") as e:
        list(engine.execute(tasks("wrong:wrong")))
    assert "pool.entropy.no_such_attribute" in text_of(e.value)


@pytest.mark.parametrize("exception", ["KeyboardInterrupt", "GeneratorExit", "BaseException"])
def test_exception_that_would_end_a_worker_is_the_users(tasks, user_module, exception):
    user_module("ends", f"""
        def ends(pool):
            raise {exception}
        ends.needs_roi = ends.needs_features = False
        """)  # fmt: skip
    with pytest.raises(BenchError, match=rf"^set, ends:ends, seed 0: .* raised {exception}: .*\(ends\.py, line 3\)"):
        list(LocalEngine(2).execute(tasks("ends:ends")))


def test_ctrl_c_inside_a_strategy_stays_an_interrupt(tasks, user_module):
    user_module("interrupted", """
        def interrupted(pool):
            raise KeyboardInterrupt
        interrupted.needs_roi = interrupted.needs_features = False
        """)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine(1).execute(tasks("interrupted:interrupted")))


DEFECT = """
    import numpy as np
    from egal_bench.runs import record
    evaluate = record.evaluate
    def evaluate_wrongly(logits, labels):
        record.evaluate = evaluate  # the process may go on with other runs
        raise ValueError("a mistake of ours")
    record.evaluate = evaluate_wrongly
    def harmless(pool): return np.arange(len(pool))
    harmless.needs_roi = harmless.needs_features = False
    """


def test_defect_is_raised_as_one_with_its_place(engine, tasks, user_module, monkeypatch):
    """The user's module breaks a function of ours, in whatever process imports it."""
    from egal_bench.runs import record

    monkeypatch.setattr(record, "evaluate", record.evaluate)  # restored afterwards
    path = user_module("breaks", DEFECT)
    with pytest.raises(Exception, match="a mistake of ours") as e:
        list(engine.execute(tasks("breaks:harmless")))
    assert not isinstance(e.value, USER_ERRORS)
    assert f'{path}", line 7, in evaluate_wrongly' in text_of(e.value)


def text_of(error: BaseException) -> str:
    """Return the traceback of the error and of its causes, as --debug shows it."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("ending", ["close", "throw"])
def test_early_end_of_the_iteration_stops_all_processes(engine, tasks, ending):
    results = engine.execute(tasks("random", seeds=4))
    next(results)
    if ending == "close":
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt())


def test_engine_writes_no_results(engine, tasks, tmp_path):
    list(engine.execute(tasks("random")))
    assert {path.name for path in tmp_path.iterdir()} <= {"unfinished", "features"}
    assert not list(tmp_path.rglob("*.parquet"))
