"""The example of a study through the Python API, in a small version."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import recall_score

import egal_bench

STUDY = Path(__file__).resolve().parents[2] / "examples" / "study" / "study.py"


@pytest.mark.usefixtures("unrendered")
def test_the_study_writes_the_sensitivity_of_each_class(tmp_path, monkeypatch, capsys):
    words = ["out", "--seeds=1", "--rounds=1", "--samples=150", "--steps=2", "--workers=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    runpy.run_path(str(STUDY), run_name="__main__")
    output = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv").set_index(["dataset", "strategy"])
    predictions = egal_bench.load(tmp_path / "out" / "results")["predictions"]
    runs = predictions[predictions["round"] == 1].groupby(["dataset", "strategy"])
    assert len(table) == len(runs) == 2 * 3
    for name, run in runs:
        predicted = [logits.argmax() for logits in run.logits]
        expected = recall_score(run.label, predicted, average=None, zero_division=0)
        assert table.loc[name].tolist() == expected.tolist()
        assert str(name[1]) in output
