"""The command line as a user calls it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

EGAL_BENCH = os.environ.get("LEAD_EB") or str(Path(sys.executable).with_name("egal-bench"))


def egal_bench(*words, cwd: Path, status: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Return the finished process of `egal-bench WORDS` in the folder `cwd`, which must end with `status` if given."""
    command = [EGAL_BENCH, *map(str, words)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)
    assert status in (None, process.returncode), process.stdout + process.stderr
    return process


def json_of(process: subprocess.CompletedProcess) -> dict:
    """Return the JSON object on the last line of stdout of a process that succeeded."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def error_of(process: subprocess.CompletedProcess, status: int = 2) -> str:
    """Return the line `error: …` with which the process ended: the last one, the only such one, without traceback."""
    assert process.returncode == status, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    lines = process.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], process.stderr
    return lines[-1]
