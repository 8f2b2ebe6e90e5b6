"""`egal-bench compare` as a person runs it: what it prints and writes, that it is fair, and that it can be repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from egal_bench import comparison
from egal_bench.comparison import compare as run_comparison
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.results import SCHEMAS, TIMINGS, load
from egal_shards import ShardSet

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))
TINY = [
    "--backbone=small-cnn", "--phantom-samples=150", "--size=32", "--shortcut=0.9", "--strategies=random,entropy,egal",
    "--seeds=2", "--init=15", "--budget=10", "--rounds=2", "--steps=4", "--batch-size=16",
]  # fmt: skip


def compare(*flags, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([EGAL_BENCH, "compare", *map(str, flags)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def contents(out: Path) -> dict[str, pd.DataFrame]:
    tables = load(out)
    return tables | {"rounds": tables["rounds"].drop(columns=list(TIMINGS))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what was printed) of a comparison with one worker."""
    cwd = tmp_path_factory.mktemp("finished")
    printed = compare(*TINY, "--workers=1", "--out=runs/one", "--json", cwd=cwd)
    return cwd / "runs" / "one", printed


def test_last_line_is_the_json_of_the_contract(finished):
    out, printed = finished
    result = json.loads(printed.stdout.splitlines()[-1])
    assert set(result) == {"out", "strategies", "seconds"}
    assert list(result["strategies"]) == ["random", "entropy", "egal"]
    rounds = load(out)["rounds"]
    for name, row in result["strategies"].items():
        assert set(row) == {"accuracy", "macro_auc", "aubc", "labels", "masks"}
        last = rounds[(rounds.strategy == name) & (rounds["round"] == 2)]
        assert row["accuracy"] == pytest.approx(last.accuracy.mean())
        assert row["labels"] == 35
    assert result["out"] == "runs/one"


def test_a_person_reads_a_table_with_what_is_needed_to_judge_it(finished):
    text = " ".join(finished[1].stdout.split())
    for part in ("mean ± sd over 2 seeds", "AUBC−random", "Standard error", "2 seeds: an exact paired Wilcoxon test"):
        assert part in text, part
    assert finished[1].stderr.count("run ") == 6  # without a terminal: a line a finished run


def test_tables_have_the_columns_of_the_schema_and_a_row_for_each_round_and_label(finished):
    tables = load(finished[0])
    for name, schema in SCHEMAS.items():
        assert tables[name].columns.tolist() == schema.names
    assert len(tables["rounds"]) == 3 * 2 * 3
    assert tables["rounds"].groupby("round").labels.unique().map(list).to_dict() == {0: [15], 1: [25], 2: [35]}
    per_run = tables["selections"].groupby(["strategy", "seed", "round"])
    assert per_run.size().unstack().drop_duplicates().values.tolist() == [[15, 10, 10]]
    assert (per_run["rank"].max() + 1 == per_run.size()).all()


def test_out_describes_itself(finished):
    out, _ = finished
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["lambda"], config["shortcut"], config["regime"]) == (1.0, 0.9, "finetune")
    found = json.loads((out / "environment.json").read_text())
    assert found["packages"]["torch"]
    assert (
        found["datasets"]["phantom-brain"]["manifest_sha256"] == ShardSet(out / "shards/phantom-brain").manifest.sha256
    )
    with Image.open(out / "learning_curves.png") as figure:
        assert figure.format == "PNG"
        assert len(np.unique(np.asarray(figure.convert("RGB")).reshape(-1, 3), axis=0)) > 50  # something is drawn


def test_every_strategy_starts_from_the_same_set_and_model_and_is_tested_on_the_same_images(finished):
    tables = load(finished[0])
    start = tables["selections"].query("round == 0")
    for _, of_seed in start.groupby("seed"):
        keys = of_seed.groupby("strategy")["key"].agg(list)
        assert len({tuple(of_strategy) for of_strategy in keys}) == 1
    first = tables["rounds"].query("round == 0").drop(columns=["strategy", *TIMINGS])
    assert len(first.drop_duplicates()) == 2  # one a seed, to the last digit
    assert start[start.seed == 0].key.tolist() != start[start.seed == 1].key.tolist()


def test_labels_come_from_the_pool_once_each_and_never_share_a_group_with_the_test_set(finished):
    out, _ = finished
    index = ShardSet(out / "shards/phantom-brain").index().set_index("key")
    picked = load(out)["selections"]
    assert (index.loc[picked.key, "split"] == "pool").all()
    assert not picked.duplicated(["strategy", "seed", "key"]).any()
    assert (index.loc[picked.key, "label"].to_numpy() == picked.label).all()
    assert set(index.group[index.split == "pool"]).isdisjoint(index.group[index.split == "test"])
    assert (load(out)["rounds"].test_size == (index.split == "test").sum()).all()


def test_masks_count_every_roi_looked_at_the_pools_included(finished):
    out, _ = finished
    pool = (ShardSet(out / "shards/phantom-brain").index().split == "pool").sum()
    masks = load(out)["rounds"].groupby(["strategy", "round"]).masks.unique().map(list).to_dict()
    assert {key: value for key, value in masks.items() if key[0] != "egal"} == {
        (name, r): [0] for name in ("random", "entropy") for r in range(3)
    }
    assert [masks["egal", r] for r in range(3)] == [[0], [pool - 15], [pool - 15]]


def test_egal_queries_are_the_top_of_its_score(finished):
    picked = load(finished[0])["selections"].query("strategy == 'egal' and round > 0")
    np.testing.assert_allclose(picked.score, picked.entropy + picked.misalignment, atol=1e-6)
    np.testing.assert_allclose(
        picked.misalignment, 1 - 2 * picked.intersection / (picked.cam_area + picked.roi_area), atol=1e-6
    )
    for _, of_query in picked.groupby(["seed", "round"]):
        assert of_query.sort_values("rank").score.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("cores", "threads", "device", "wanted", "workers"),
    [
        (1, 1, "cpu", None, 1), (2, 1, "cpu", None, 2), (8, 1, "cpu", None, 8), (64, 1, "cpu", None, 64),
        (8, 3, "cpu", None, 2), (2, 4, "cpu", None, 1), (64, 1, "cuda", None, 1), (8, 1, "mps", None, 1),
        (1, 1, "cpu", 3, 3), (8, 1, "cuda", 2, 2),
    ],
)  # fmt: skip
def test_as_many_runs_at_a_time_as_fill_the_cores(monkeypatch, cores, threads, device, wanted, workers):
    monkeypatch.setattr(comparison, "cores", lambda: cores)
    assert comparison._workers(Config(threads=threads, workers=wanted), device) == workers


def test_workers_more_than_runs_write_what_one_writes(finished, tmp_path):
    compare(*TINY, "--workers=64", "--out=two", cwd=tmp_path)
    one, two = contents(finished[0]), contents(tmp_path / "two")
    for table in one:
        pd.testing.assert_frame_equal(one[table], two[table], check_exact=True)
    for file in finished[0].glob("selections/**/part.parquet"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(finished[0])).read_bytes()


def test_a_finished_run_is_skipped_a_missing_or_other_one_is_carried_out(finished, tmp_path):
    out, _ = finished
    flags = [*TINY, "--workers=1", f"--out={out}"]
    before = contents(out)
    parts = sorted(out.glob("rounds/**/part.parquet"))
    stamps = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    again = compare(*flags, cwd=tmp_path)
    assert "5 of 6 runs are already in" in again.stderr
    assert again.stderr.count("run 1/1") == 1
    assert [part for part in parts[1:] if part.stat().st_mtime_ns != stamps[part]] == []
    after = contents(out)
    for table in before:
        pd.testing.assert_frame_equal(before[table], after[table], check_exact=True)
    other = compare(*flags[:-2], "--workers=1", f"--out={out}", "--strategies=random", "--threshold=0.4", cwd=tmp_path)
    assert "2 runs in" in other.stderr
    assert "carried out again" in other.stderr


def test_ctrl_c_keeps_finished_runs_and_says_how_to_resume(tmp_path):
    flags = [*TINY, "--workers=2", "--out=cut", "--seeds=20"]
    process = subprocess.Popen(
        [EGAL_BENCH, "compare", *flags], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("run 3/"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted: " in errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    tables = load(tmp_path / "cut")
    assert len(tables["rounds"]) % 3 == 0  # whole runs only
    assert len(tables["rounds"]) >= 9
    assert list((tmp_path / "cut").rglob(".*.part.parquet")) == []


def test_ctrl_c_while_a_worker_writes_leaves_no_half_written_table(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom types import SimpleNamespace\nimport numpy as np\n"
        "from egal_bench import results\n"
        "def half(table, path):\n    Path(path).write_text('PAR1')\n    time.sleep(60)\n"
        "results.pq = SimpleNamespace(write_table=half)\n"
        "class Slow:\n    needs_roi = needs_features = False\n"
        "    def __call__(self, pool): return np.arange(len(pool))\n"
    )
    flags = [*TINY, "--workers=2", "--out=cut", "--strategies=slow:Slow"]
    process = subprocess.Popen([EGAL_BENCH, "compare", *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    stop = time.monotonic() + 60
    while not list(tmp_path.glob("cut/selections/**/.*.part.parquet")) and time.monotonic() < stop:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "0 of 2 runs are whole" in errors
    assert [path.name for path in tmp_path.glob("cut/selections/**/*") if path.is_file()] == []


@pytest.mark.skipif(sys.platform != "linux", reason="workers are loaded ahead on Linux")
def test_ctrl_c_while_workers_are_loaded_is_the_parents_alone():
    script = (
        "import os, signal, time\n"
        "from egal_bench.processes import load_ahead\n"
        "load_ahead('frozen')\n"
        "time.sleep(0.7)\n"  # by now it imports torch
        "try: os.killpg(0, signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_dead_worker_is_reported_and_finished_runs_are_kept(tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os\nclass Dies:\n    needs_roi = needs_features = False\n    def __call__(self, pool): os._exit(9)\n"
    )
    done = compare(*TINY, "--workers=2", "--out=out", "--strategies=dies:Dies", cwd=tmp_path, status=2)
    assert done.stderr.splitlines()[-1].startswith("error: the process of phantom-brain, dies:Dies, seed")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "repeated indices"),
        ("[0, 1]", "at least 10 ranked indices"),
        ("range(-1, 10)", "outside 0.."),
        ("pool.acquisition", "does not declare"),
    ],
)
def test_what_a_foreign_strategy_does_wrong_is_said(finished, tmp_path, monkeypatch, body, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        f"def mine(pool): return list({body})\nmine.needs_roi, mine.needs_features = False, False\n"
    )
    with pytest.raises(BenchError, match=rf"^phantom-brain, mine:mine, seed 0: .*{says}"):
        in_process(finished, "mine:mine")


def test_a_foreign_strategy_gets_the_features_it_declares(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "far.py").write_text(
        "import numpy as np\n"
        "def far(pool):\n"
        "    d = np.linalg.norm(pool.features[:, None] - pool.labelled_features[None], axis=2).min(1)\n"
        "    assert len(pool.labels_revealed) == len(pool.labelled_features)\n"
        "    return pool.rank(d)\n"
        "far.needs_roi, far.needs_features = False, True\n"
    )
    in_process(finished, "far:far")
    rows = load(tmp_path / "out")["selections"].query("round > 0")
    assert (rows.score > 0).all()
    assert rows.strategy.unique().tolist() == ["far:far"]


def in_process(finished, strategy: str) -> None:
    """A comparison of one strategy, one seed, on the shards of the finished one, into ./out."""
    shards = str(finished[0] / "shards" / "phantom-brain")
    tiny = {"backbone": "small-cnn", "init": 15, "budget": 10, "rounds": 2, "steps": 2, "seeds": 1, "workers": 1}
    run_comparison(Config(shards=(shards,), strategies=(strategy,), out=Path("out"), **tiny))


def test_the_environment_has_no_say_in_the_numbers(finished, tmp_path):
    """Thread counts and hash seeds of the shell: the same selections."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "77"}
    flags = [*TINY, "--workers=1", "--out=env", "--seeds=1", "--strategies=egal"]
    subprocess.run([EGAL_BENCH, "compare", *flags], check=True, capture_output=True, cwd=tmp_path, env=env)
    ours = contents(tmp_path / "env")["selections"]
    theirs = contents(finished[0])["selections"].query("strategy == 'egal' and seed == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
