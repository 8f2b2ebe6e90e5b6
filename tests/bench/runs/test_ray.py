"""Comparisons on a Ray cluster: the bytes of one machine's, whatever workers and nodes are lost."""

import json
import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

from bench.command_line import EGAL_BENCH
from bench.ray_nodes import NODE
from bench.tiny import tiny_config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.runs import ray_worker
from egal_bench.runs.comparison import compare
from egal_bench.runs.events import RoundDone
from egal_bench.runs.grid import resolved, tasks_of
from egal_bench.runs.local_engine import LocalEngine
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.schemas import TIMINGS
from shards.fault_server import serving

# Ray takes seconds to import, so only the tests that use it do.
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]
SECRET = "h1dden"


@pytest.fixture
def grid(ray_cluster, phantom_dataset, user_module, tmp_path):
    """Return a function that gives an engine on Ray and the tasks of a tiny frozen comparison in tmp_path."""

    from egal_bench.runs.ray_engine import RayEngine

    def build(strategy="random", **settings):
        shards = phantom_dataset(150).shards.where
        config = tiny_config(shards, strategies=(strategy,), rounds=2, regime="frozen", workers=None, engine="ray")
        config = resolved(config.model_copy(update=settings))
        driver = ray_worker.Driver(Path.cwd(), tmp_path.resolve())
        return RayEngine(config, driver, 0.0), tasks_of(config, [open_dataset(shards)], ResultsFolder(tmp_path))

    return build


@pytest.fixture
def patient(user_module):
    """Return a function that writes a strategy `random` that runs `code` first, each time that it is asked."""

    def write(name: str, code: str) -> str:
        user_module(name, f"""
            import os, signal, time
            from pathlib import Path
            import numpy as np
            import ray
            def strategy(pool):
                with open("calls", "a") as file: file.write(f"{{pool.round}}\\n")
                {code}
                return np.arange(len(pool))
            strategy.needs_roi = strategy.needs_features = False
            """)  # fmt: skip
        return f"{name}:strategy"

    return write


def rounds_of(events) -> dict[str, list[str]]:
    """Return the rows of each finished round, without those of time, as text by run."""
    rounds: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, RoundDone):
            rows = [{k: v for k, v in row.items() if k not in TIMINGS} for t in event.tables.values() for row in t]
            rounds.setdefault(str(event.task.run), []).append(repr(rows))
    return rounds


@pytest.mark.usefixtures("unrendered")
def test_tables_of_a_comparison_are_those_of_the_local_engine(ray_cluster, phantom_dataset, tmp_path):
    shards = phantom_dataset(150).shards.where
    for engine in ("local", "ray"):
        settings = {"strategies": ("random", "egal"), "regime": "frozen", "engine": engine}
        compare(tiny_config(shards, out=tmp_path / engine / "out", **settings))
        assert json.loads((tmp_path / engine / "out" / "environment.json").read_text())["engine"] == engine
    files = [file for file in (tmp_path / "local").rglob("*") if file.suffix in (".parquet", ".npy")]
    assert {file.suffix for file in files} == {".parquet", ".npy"}
    for file in files:
        if "rounds" not in file.parts:  # the table that holds timings
            assert file.read_bytes() == (tmp_path / "ray" / file.relative_to(tmp_path / "local")).read_bytes(), file


def test_run_goes_on_after_the_last_round_of_a_killed_worker(grid, patient, capfd):
    name = patient("killed", "if pool.round == 2 and not Path('once').exists(): Path('once').touch(); os._exit(9)")
    engine, tasks = grid(name)
    rounds = rounds_of(engine.execute(tasks))
    assert Path("calls").read_text().split() == ["1", "2", "2"]  # the first round is not repeated
    assert rounds == rounds_of(LocalEngine(1).execute(tasks))
    output = capfd.readouterr()
    assert "its worker was lost (WorkerCrashedError); the run goes on in another one" in output.err.replace("\n", " ")
    assert output.out == ""


def test_workers_lost_again_and_again_end_the_comparison(grid, patient, monkeypatch):
    from egal_bench.runs import ray_engine

    monkeypatch.setattr(ray_engine, "LOSSES", 2)
    engine, tasks = grid(patient("deadly", "os._exit(9)"))
    with pytest.raises(BenchError, match=r"^set, deadly:strategy, seed 0: 2 workers were lost in the same round.*kept"):
        list(engine.execute(tasks))


def test_node_that_is_removed_in_the_midst_changes_nothing(grid, patient, ray_cluster):
    node = ray_cluster.add_node(num_cpus=1, **NODE)
    name = patient("stuck", f"""
                if ray.is_initialized() and ray.get_runtime_context().get_node_id() == {node.node_id!r}:
                    Path("reached").touch()
                    time.sleep(600)""")  # fmt: skip
    engine, tasks = grid(name, seeds=8)
    events = []
    for event in engine.execute(tasks):
        events.append(event)
        if not Path("removed").exists():
            while not Path("reached").exists():
                time.sleep(0.1)
            ray_cluster.remove_node(node, allow_graceful=False)
            Path("removed").touch()
    assert rounds_of(events) == rounds_of(LocalEngine(1).execute(tasks))


def test_early_end_frees_the_cluster(grid, patient):
    import ray

    engine, tasks = grid(patient("slow", "time.sleep(600) if pool.round == 2 else None"), seeds=3)
    events = engine.execute(tasks)
    next(events)
    events.close()
    while ray.available_resources().get("CPU") != 2:
        time.sleep(0.1)


def test_versions_that_differ_between_nodes_are_refused(grid, monkeypatch):
    engine, tasks = grid()
    monkeypatch.setattr(ray_worker, "version", {"torch": "1.0", "egal-bench": "9"}.get)
    with pytest.raises(
        BenchError, match=r"^node .+ has egal-bench .+ \(here 9 .+torch .+ \(here 1\.0\).*same versions"
    ):
        engine.prepare(tasks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: {"shards": "nowhere"}, r"^node .+: .*nowhere/manifest.json: No such file.*at the same path"),
        (
            lambda task: {"settings": {**task.settings, "data": "0"}},
            r"^node .+: set, random: the data; give every node",
        ),
        (lambda task: {"settings": {**task.settings, "weights": "0"}}, r"^node .+: set, random: --weights; give"),
    ],
    ids=["absent shards", "other data", "other weights"],
)
def test_node_without_the_same_files_is_refused(grid, change, message):
    from dataclasses import replace

    engine, (task,) = grid()
    with pytest.raises(BenchError, match=message):
        engine.prepare([replace(task, **change(task))])


def test_run_that_no_node_can_hold_is_refused(grid):
    with pytest.raises(BenchError, match=r"no node of the Ray cluster can hold a run \(64 CPU.*lower --threads"):
        grid(threads=64)[0].resolved()


def test_results_folder_that_a_node_lacks_is_replaced_by_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs" / "out").mkdir(parents=True)
    features = tmp_path / "runs" / "features" / "x"
    assert ray_worker.Driver(tmp_path, tmp_path / "runs" / "out").on_node(features) == features
    elsewhere = ray_worker.Driver(Path("/driver"), Path("/driver/runs/out"))
    expected = tmp_path / "cache" / "nodes" / "features" / "x"
    assert elsewhere.on_node(Path("/driver/runs/features/x")) == expected


@pytest.mark.usefixtures("unrendered")
def test_two_drivers_share_a_folder_and_ray_learns_no_secret(ray_cluster, phantom_dataset, tmp_path, monkeypatch):
    """One driver is the command line on Ray with a URL that has a password, the other one is local."""
    import ray

    monkeypatch.setenv("EGAL_CACHE", str(tmp_path / "cache"))
    settings = {"seeds": 2, "strategies": ("random", "egal"), "regime": "frozen"}
    with serving(Path(phantom_dataset(150).shards.where), login="Basic dXNlcjpoMWRkZW4=") as (url, _):
        secret = url.replace("://", f"://user:{SECRET}@")
        flags = ["--backbone=small-cnn", "--init=15", "--budget=10", "--rounds=2", "--regime=frozen", "--seeds=2"]
        process = subprocess.Popen(
            [EGAL_BENCH, "compare", secret, *flags, "--strategies=random,egal", "--out=out", "--engine=ray",
             f"--ray-address={ray_cluster.address}"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        while process.poll() is None and not list(tmp_path.glob("out/rounds/**/part.parquet")):
            time.sleep(0.05)
        compare(tiny_config(secret, out=tmp_path / "out", **settings))
        output = "".join(process.communicate(timeout=300))
    assert process.returncode == 0, output
    compare(tiny_config(phantom_dataset(150).shards.where, out=tmp_path / "alone", **settings))
    files = list((tmp_path / "alone").glob(f"selections/dataset={quote('set')}/**/part.parquet"))
    assert len(files) == 4
    logs = Path(ray_cluster.head_node.get_session_dir_path())
    written = [path for folder in (tmp_path / "out", logs) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in output + repr(ray._private.state.state.job_table())
