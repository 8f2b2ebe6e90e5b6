"""`profile --compare`: its verdicts on profiles whose rates are known."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from egal_bench.errors import BenchError
from egal_bench.profiling import measurements
from egal_bench.profiling.changes import changes, changes_table
from egal_bench.profiling.measurements import load, row

SETTINGS = {"dataset": "a set", "backbone": "resnet18", "size": 224, "batch": 32, "precision": "float32", "threads": 2}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a profile with the given seconds per stage and returns its path."""

    def write(name: str, stages: dict[str, np.ndarray], samples: int = 64, **settings):
        rows = [SETTINGS | settings | row("profile", stage, samples, seconds) for stage, seconds in stages.items()]
        measurements.write(tmp_path / name, rows, "cpu")
        return tmp_path / name

    return write


def runs(mean: float, seed: int, n: int = 12) -> np.ndarray:
    return mean * np.random.default_rng(seed).uniform(0.97, 1.03, n)


@pytest.fixture
def pair(written):
    """Two profiles: `read` became faster, `pass` slower, and the second has twice the samples in each run."""
    old = written("old.parquet", {"read": runs(1, 0), "forward": runs(1, 1), "pass": runs(1, 2)})
    new = written("new.parquet", {"pass": runs(2.4, 3), "forward": runs(2, 4), "read": runs(1.6, 5)}, samples=128)
    return old, new


def test_faster_slower_and_unchanged_stages_are_told_apart(pair):
    rows = changes(*map(load, pair)).rows.set_index("stage")
    assert rows["verdict"].to_dict() == {"read": "faster", "forward": "same", "pass": "slower"}
    for name, expected in {"read": 128 / 1.6 / 64, "forward": 1, "pass": 128 / 2.4 / 64}.items():
        assert rows["ratio"][name] == pytest.approx(expected, rel=0.02)
        assert rows["low"][name] < rows["ratio"][name] < rows["high"][name]
    assert rows["old"]["read"] == np.median(64 / runs(1, 0))


def test_too_few_runs_get_no_verdict_however_far_apart(written):
    old = written("old.parquet", {"pass": runs(1, 0)})
    new = written("new.parquet", {"pass": runs(9, 1, n=4)})
    assert changes(load(old), load(new)).rows["verdict"].tolist() == ["too few runs"]


def test_rows_that_one_profile_lacks_are_counted_and_left_out(written):
    old = written("old.parquet", {"read": runs(1, 0), "pass": runs(1, 1)})
    new = written("new.parquet", {"pass": runs(1, 2), "scoring": runs(1, 3), "forward": runs(1, 4)})
    difference = changes(load(old), load(new))
    assert difference.rows["stage"].tolist() == ["pass"]
    assert difference.unmatched == 3


@pytest.mark.parametrize(
    ("stages", "note"), [(["pass"], None), (["pass", "read"], "1 row is"), (["pass", "a", "b"], "2 rows are")]
)
def test_the_note_on_left_out_rows_is_in_the_right_number(written, stages, note):
    old = written("old.parquet", {"pass": runs(1, 1)})
    new = written("new.parquet", {stage: runs(1, 2) for stage in stages})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(changes_table(changes(load(old), load(new))))
    assert ("left out" in captured.get()) == (note is not None)
    assert note is None or f"{note} in only one of the two profiles" in captured.get()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch": 64}, "batch 32 → 64"),
        ({"backbone": "densenet121"}, "backbone resnet18 → densenet121"),
        ({"precision": "bfloat16", "size": 64}, "size 224 → 64; precision float32 → bfloat16"),
    ],
)
def test_profiles_of_different_settings_are_not_compared(written, settings, named):
    old = written("old.parquet", {"pass": runs(1, 0), "read": runs(1, 1)})
    new = written("new.parquet", {"pass": runs(1, 0)}, **settings)
    with pytest.raises(BenchError, match=re.escape(f"nothing in common ({named}): ")):
        changes(load(old), load(new))


def test_numbers_are_named_alike_where_a_table_also_has_rows_without_them(written):
    old = written("old.parquet", {"pass": runs(1, 0)})
    new = written("new.parquet", {"pass": runs(1, 0)}, precision="bfloat16")
    with_nulls = pd.concat([load(new), load(new).assign(batch=np.nan, size=np.nan)])
    with pytest.raises(BenchError, match=re.escape("nothing in common (precision float32 → bfloat16): ")):
        changes(load(old), with_nulls)


@pytest.mark.parametrize(("samples", "words"), [(64, "only 2 batches,"), (32, "only 1 batch,"), (320, "")])
def test_a_comparison_of_short_passes_says_so(written, samples, words):
    old = written("old.parquet", {"pass": runs(1, 1)}, samples=640)
    new = written("new.parquet", {"pass": runs(1, 2)}, samples=samples)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(changes_table(changes(load(old), load(new))))
    assert words in captured.get()
    assert ("pipeline" in captured.get()) == bool(words)


def test_differences_between_the_machines_are_reported(written, monkeypatch):
    old = written("old.parquet", {"pass": runs(1, 0)})
    machine = measurements.hardware("cpu")
    other = machine | {"device": "another CPU, 64 cores", "versions": machine["versions"] | {"torch": "9.9"}}
    monkeypatch.setattr(measurements, "hardware", lambda device: other)
    new = written("new.parquet", {"pass": runs(1, 0)}, threads=64)
    assert changes(load(old), load(new)).different == {
        "device": [machine["device"], "another CPU, 64 cores"],
        "threads": ["2", "64"],
        "torch": [machine["versions"]["torch"], "9.9"],
    }
    assert changes(load(old), load(old)).different == {}


def test_the_command_prints_verdicts_and_measures_nothing(pair, tmp_path, profile_status, capsys):
    assert profile_status("--compare", *pair, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("read" in line and line.rstrip().endswith("faster") for line in lines)
    assert any("pass" in line and line.rstrip().endswith("slower") for line in lines)
    result = json.loads(lines[-1])
    assert {row["stage"]: row["verdict"] for row in result["changes"]}["forward"] == "same"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.parquet", "old.parquet"]


@pytest.mark.parametrize("broken", ["missing", "garbage", "other"])
def test_an_unreadable_profile_is_one_line_and_status_2(pair, tmp_path, profile_status, capsys, broken):
    path = tmp_path / f"{broken}.parquet"
    if broken == "garbage":
        path.write_bytes(b"x" * 100)
    if broken == "other":
        load(pair[0]).to_parquet(path)  # with the types of pandas instead of the schema's
    assert profile_status("--compare", pair[0], path) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"error: {path}: ")
