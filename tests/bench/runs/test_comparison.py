"""A comparison: what it writes, that it is fair, and that it can be repeated and continued."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bench.command_line import egal_bench
from bench.tiny import FLAGS, contents
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.runs import comparison
from egal_bench.runs.comparison import compare
from egal_bench.tables.results import load
from egal_bench.tables.schemas import SCHEMAS, TIMINGS
from egal_shards import ShardSet


def assert_same_tables(left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame]) -> None:
    for table in left:
        pd.testing.assert_frame_equal(left[table], right[table], check_exact=True)


def test_tables_have_a_row_for_each_round_and_each_label(finished):
    tables = load(finished[0])
    for name, schema in SCHEMAS.items():
        assert tables[name].columns.tolist() == schema.names
    assert len(tables["rounds"]) == 3 * 2 * 3
    assert tables["rounds"].groupby("round").labels.unique().map(list).to_dict() == {0: [15], 1: [25], 2: [35]}
    per_run = tables["selections"].groupby(["strategy", "seed", "round"])
    assert per_run.size().unstack().drop_duplicates().values.tolist() == [[15, 10, 10]]
    assert (per_run["rank"].max() + 1 == per_run.size()).all()


def test_results_folder_describes_itself(finished):
    out, _ = finished
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["lambda"], config["shortcut"], config["regime"]) == (1.0, 0.9, "finetune")
    assert config["device"] != "auto"
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"]
    manifest = ShardSet(out / "shards/phantom-brain").manifest
    assert environment["datasets"]["phantom-brain"]["manifest_sha256"] == manifest.sha256
    with Image.open(out / "learning_curves.png") as figure:
        assert figure.format == "PNG"
        assert len(np.unique(np.asarray(figure.convert("RGB")).reshape(-1, 3), axis=0)) > 50  # something is drawn


def test_strategies_share_initial_set_model_and_test_images(finished):
    tables = load(finished[0])
    start = tables["selections"].query("round == 0")
    for _, of_seed in start.groupby("seed"):
        keys = of_seed.groupby("strategy")["key"].agg(list)
        assert len({tuple(of_strategy) for of_strategy in keys}) == 1
    first = tables["rounds"].query("round == 0").drop(columns=["strategy", "config_hash", *TIMINGS])
    assert len(first.drop_duplicates()) == 2  # one per seed, to the last digit
    assert start[start.seed == 0].key.tolist() != start[start.seed == 1].key.tolist()


def test_labels_come_once_from_the_pool_and_share_no_test_group(finished):
    out, _ = finished
    index = ShardSet(out / "shards/phantom-brain").index().set_index("key")
    selections = load(out)["selections"]
    assert (index.loc[selections.key, "split"] == "pool").all()
    assert not selections.duplicated(["strategy", "seed", "key"]).any()
    assert (index.loc[selections.key, "label"].to_numpy() == selections.label).all()
    assert set(index.group[index.split == "pool"]).isdisjoint(index.group[index.split == "test"])
    assert (load(out)["rounds"].test_size == (index.split == "test").sum()).all()


def test_masks_count_every_roi_looked_at_in_the_pool_as_well(finished):
    out, _ = finished
    pool = (ShardSet(out / "shards/phantom-brain").index().split == "pool").sum()
    masks = load(out)["rounds"].groupby(["strategy", "round"]).masks.unique().map(list).to_dict()
    assert {key: value for key, value in masks.items() if key[0] != "egal"} == {
        (name, r): [0] for name in ("random", "entropy") for r in range(3)
    }
    assert [masks["egal", r] for r in range(3)] == [[0], [pool - 15], [pool - 15]]


def test_egal_queries_are_the_top_of_its_score(finished):
    queried = load(finished[0])["selections"].query("strategy == 'egal' and round > 0")
    np.testing.assert_allclose(queried.score, queried.entropy + queried.misalignment, atol=1e-6)
    np.testing.assert_allclose(
        queried.misalignment, 1 - 2 * queried.intersection / (queried.cam_area + queried.roi_area), atol=1e-6
    )
    for _, of_query in queried.groupby(["seed", "round"]):
        assert of_query.sort_values("rank").score.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("cores", "threads", "device", "requested", "workers"),
    [
        (1, 1, "cpu", None, 1), (2, 1, "cpu", None, 2), (8, 1, "cpu", None, 8), (64, 1, "cpu", None, 64),
        (8, 3, "cpu", None, 2), (2, 4, "cpu", None, 1), (8, 1, "mps", None, 1),
        (1, 1, "cpu", 3, 3), (8, 1, "cuda", 2, 2),
    ],
)  # fmt: skip
def test_as_many_runs_at_a_time_as_fill_the_cores(monkeypatch, cores, threads, device, requested, workers):
    monkeypatch.setattr(comparison, "cores", lambda: cores)
    assert comparison.workers_of(Config(threads=threads, workers=requested), device) == workers


@pytest.mark.parametrize(
    ("gibibytes", "cores", "workers"), [(8, 16, 1), (24, 16, 2), (78, 16, 7), (78, 4, 4), (139, 16, 8), (139, 1, 1)]
)
def test_a_gpu_gets_as_many_runs_as_its_free_memory_holds(monkeypatch, gibibytes, cores, workers):
    monkeypatch.setattr(comparison, "cores", lambda: cores)
    monkeypatch.setattr(comparison, "free_memory", {"cuda:1": gibibytes << 30}.get)
    assert comparison.workers_of(Config(), "cuda:1") == workers
    assert comparison.workers_of(Config(workers=3), "cuda:1") == 3


def test_more_workers_than_runs_write_what_one_worker_writes(finished, egal_bench_here, tmp_path):
    process = egal_bench_here("compare", *FLAGS, "--workers=64", "--out=two")
    assert process.returncode == 0, process.stderr
    assert_same_tables(contents(finished[0]), contents(tmp_path / "two"))
    for file in finished[0].glob("selections/**/part.parquet"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(finished[0])).read_bytes()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished comparison, and the flags that continue it."""
    out = shutil.copytree(finished[0], tmp_path / "copy")
    return out, [*FLAGS, "--workers=1", f"--out={out}"]


def test_finished_runs_are_skipped_and_a_missing_one_is_executed(copied, tmp_path):
    out, flags = copied
    before = contents(out)
    files = sorted(out.glob("rounds/**/part.parquet"))
    stamps = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    process = egal_bench("compare", *flags, cwd=tmp_path, status=0)
    assert "5 of 6 runs are already in" in process.stderr
    assert process.stderr.count("run 1/1") == 1
    assert [file for file in files[1:] if file.stat().st_mtime_ns != stamps[file]] == []
    assert_same_tables(before, contents(out))


def test_environment_of_the_shell_does_not_change_the_numbers(finished, tmp_path):
    """Thread counts, hash seeds, a long TMPDIR and a disabled compiler give the same selections."""
    temporary = tmp_path / ("x" * 100)  # longer than the path of a socket may be
    temporary.mkdir()
    shell = {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "77", "TMPDIR": str(temporary), "NUMBA_DISABLE_JIT": "1"}
    flags = [*FLAGS, "--workers=2", "--out=env", "--strategies=egal"]
    process = egal_bench("compare", *flags, cwd=tmp_path, status=0, **shell)
    assert "NUMBA_DISABLE_JIT is ignored" in process.stderr
    selections = contents(tmp_path / "env")["selections"]
    expected = contents(finished[0])["selections"].query("strategy == 'egal'").reset_index(drop=True)
    pd.testing.assert_frame_equal(selections, expected, check_exact=True)


def test_two_sets_of_one_name_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = finished[0] / "shards" / "phantom-brain"
    copy = shutil.copytree(original, tmp_path / "elsewhere" / "phantom-brain")
    with pytest.raises(BenchError, match="two shard sets are named 'phantom-brain'"):
        compare(Config(shards=(str(original), str(copy)), init=5, budget=2, rounds=1))
