"""The example of a study through the Python API, in a small version."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from sklearn.metrics import recall_score

import egal_bench

STUDY = Path(__file__).resolve().parents[2] / "examples" / "study" / "study.py"


def test_the_study_writes_the_sensitivity_of_each_class(tmp_path):
    words = ["out", "--seeds=1", "--rounds=1", "--samples=150", "--steps=2", "--workers=1"]
    done = subprocess.run(
        [sys.executable, STUDY, *words], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv").set_index(["dataset", "strategy"])
    predictions = egal_bench.load(tmp_path / "out" / "results")["predictions"]
    runs = predictions[predictions["round"] == 1].groupby(["dataset", "strategy"])
    assert len(table) == len(runs) == 2 * 3
    for name, run in runs:
        predicted = [logits.argmax() for logits in run.logits]
        expected = recall_score(run.label, predicted, average=None, zero_division=0)
        assert table.loc[name].tolist() == expected.tolist()
        assert str(name[1]) in done.stdout
