"""`profile --compare`: its verdicts on profiles whose rates are known."""

import json

import numpy as np
import pytest

from egal_bench import measurements
from egal_bench.cli import main
from egal_bench.errors import BenchError
from egal_bench.measurements import load, row
from egal_bench.profile_changes import changes

ABOUT = {"dataset": "a set", "backbone": "resnet18", "size": 224, "batch": 32, "precision": "float32", "threads": 2}


def written(path, stages: dict[str, np.ndarray], samples: int = 64, **about):
    measurements.write(
        path, [ABOUT | about | row("profile", name, samples, seconds) for name, seconds in stages.items()], "cpu"
    )
    return path


def runs(mean: float, seed: int, n: int = 12) -> np.ndarray:
    return mean * np.random.default_rng(seed).uniform(0.97, 1.03, n)


@pytest.fixture
def pair(tmp_path):
    old = written(tmp_path / "old.parquet", {"read": runs(1, 0), "forward": runs(1, 1), "pass": runs(1, 2)})
    # twice the samples in a run: rates are compared, not times
    new = written(
        tmp_path / "new.parquet", {"pass": runs(2.4, 3), "forward": runs(2, 4), "read": runs(1.6, 5)}, samples=128
    )
    return old, new


def test_a_faster_a_slower_and_an_unchanged_stage_are_told_apart(pair):
    found = changes(*map(load, pair)).rows.set_index("stage")
    assert found["verdict"].to_dict() == {"read": "faster", "forward": "same", "pass": "slower"}
    for name, want in {"read": 128 / 1.6 / 64, "forward": 1, "pass": 128 / 2.4 / 64}.items():
        assert found["ratio"][name] == pytest.approx(want, rel=0.02)
        assert found["low"][name] < found["ratio"][name] < found["high"][name]
    assert found["old"]["read"] == np.median(64 / runs(1, 0))


def test_too_few_runs_get_no_verdict_however_far_apart(tmp_path):
    old = written(tmp_path / "old.parquet", {"pass": runs(1, 0)})
    new = written(tmp_path / "new.parquet", {"pass": runs(9, 1, n=4)})
    assert changes(load(old), load(new)).rows["verdict"].tolist() == ["too few runs"]


def test_rows_that_only_one_profile_has_are_counted_and_left_out(tmp_path):
    old = written(tmp_path / "old.parquet", {"read": runs(1, 0), "pass": runs(1, 1)})
    new = written(tmp_path / "new.parquet", {"pass": runs(1, 2), "scoring": runs(1, 3), "forward": runs(1, 4)})
    found = changes(load(old), load(new))
    assert found.rows["stage"].tolist() == ["pass"]
    assert found.alone == 3


@pytest.mark.parametrize("about", [{"batch": 64}, {"backbone": "densenet121"}, {"precision": "bfloat16"}])
def test_profiles_of_other_things_are_not_compared(tmp_path, about):
    old = written(tmp_path / "old.parquet", {"pass": runs(1, 0)})
    new = written(tmp_path / "new.parquet", {"pass": runs(1, 0)}, **about)
    with pytest.raises(BenchError, match="nothing in common"):
        changes(load(old), load(new))


def test_what_the_machines_differ_in_is_said(tmp_path, monkeypatch):
    old = written(tmp_path / "old.parquet", {"pass": runs(1, 0)})
    here = measurements.hardware("cpu")
    there = here | {"device": "another CPU, 64 cores", "versions": here["versions"] | {"torch": "9.9"}}
    monkeypatch.setattr(measurements, "hardware", lambda device: there)
    new = written(tmp_path / "new.parquet", {"pass": runs(1, 0)}, threads=64)
    assert changes(load(old), load(new)).different == {
        "device": [here["device"], "another CPU, 64 cores"],
        "threads": ["2", "64"],
        "torch": [here["versions"]["torch"], "9.9"],
    }
    assert changes(load(old), load(old)).different == {}


def test_the_command_prints_verdicts_and_json_and_measures_nothing(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["egal-bench", "profile", "--compare", *map(str, pair), "--json"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("read" in line and line.rstrip().endswith("faster") for line in lines)
    assert any("pass" in line and line.rstrip().endswith("slower") for line in lines)
    found = json.loads(lines[-1])
    assert {one["stage"]: one["verdict"] for one in found["changes"]}["forward"] == "same"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.parquet", "old.parquet"]


@pytest.mark.parametrize("broken", ["missing", "garbage", "other"])
def test_an_unreadable_profile_is_one_line_and_status_2(pair, tmp_path, monkeypatch, capsys, broken):
    path = tmp_path / f"{broken}.parquet"
    if broken == "garbage":
        path.write_bytes(b"x" * 100)
    if broken == "other":
        load(pair[0]).to_parquet(path)  # pandas' types, not ours
    monkeypatch.setattr("sys.argv", ["egal-bench", "profile", "--compare", str(pair[0]), str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f"error: {path}: ")
