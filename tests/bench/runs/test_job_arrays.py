"""Parts of a grid, as the jobs of an array execute them into one folder."""

import os
import random
import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.tiny import contents, tiny_config
from egal_bench.runs import comparison
from egal_bench.runs.comparison import compare
from egal_bench.runs.local_engine import CONTEXT, load_ahead
from egal_bench.specifications import parse_part

DOCS = Path(__file__).parents[3] / "docs" / "cluster.md"
PARTS = 8
KILLED = (2, 7)


@pytest.fixture
def script(tmp_path) -> Path:
    """The SLURM script of the documentation, in a folder where the commands that it calls print their arguments."""
    (text,) = re.findall(r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text('PATH="$PWD/bin:$PATH"\n')
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "egal-bench"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    path = tmp_path / "array.sh"
    path.write_text(text)
    return path


def test_script_of_the_documentation_executes_every_part_once(script):
    first, last = map(int, re.search(r"^#SBATCH --array=(\d+)-(\d+)$", script.read_text(), re.MULTILINE).groups())
    parts = []
    for number in range(first, last + 1):
        job = {"SLURM_ARRAY_TASK_ID": str(number)}
        words = subprocess.run(
            ["bash", script], cwd=script.parent, env=os.environ | job, capture_output=True, text=True, check=True
        ).stdout.split()
        assert words[0] == "compare"
        parts.append(parse_part(words[words.index("--part") + 1]))
    assert parts == [(number, len(parts)) for number in range(1, len(parts) + 1)]


def test_parts_of_which_some_are_killed_make_the_whole_grid(phantom_dataset, tmp_path, monkeypatch, capfd):
    """Killed jobs are submitted again; then a plain comparison has nothing left to execute."""
    settings = {"strategies": ("random", "entropy"), "seeds": 4, "regime": "frozen"}
    config = tiny_config(phantom_dataset(150).shards.where, out=tmp_path / "parts", **settings)
    parts = {number: config.model_copy(update={"part": f"{number}/{PARTS}"}) for number in range(1, PARTS + 1)}
    load_ahead("frozen")
    rng, jobs = random.Random(0), [CONTEXT.Process(target=compare, args=(parts[number],)) for number in KILLED]
    for job in jobs:
        job.start()
    while not list(tmp_path.glob("parts/.locks/*")):  # the first job has begun
        time.sleep(0.01)
    for job in jobs:
        job.join(timeout=rng.uniform(0, 1))
        job.kill()
        job.join()
    monkeypatch.setattr(comparison, "draw_learning_curves", lambda *_, **__: None)  # takes longer than the runs
    for part in parts.values():  # each job that was killed is submitted again
        compare(part)
    capfd.readouterr()
    compare(config)
    assert f"{PARTS} of {PARTS} runs are already in" in capfd.readouterr().err
    compare(config.model_copy(update={"out": tmp_path / "alone"}))
    for table, rows in contents(tmp_path / "alone").items():
        pd.testing.assert_frame_equal(contents(tmp_path / "parts")[table], rows, check_exact=True)
