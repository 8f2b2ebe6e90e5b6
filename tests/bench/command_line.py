"""The command line as a user calls it: in a process of its own, with output in pipes or files."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))


def egal_bench(*words, cwd: Path, status: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Return the finished process of `egal-bench WORDS` in the folder `cwd`, which must end with `status` if given.

    The process is forked from one that has imported everything. With variables of the environment, which Python and
    libraries read when they start, it is a fresh one.
    """
    command = [EGAL_BENCH, *map(str, words)]
    if environment:
        process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)
    else:
        process = _forked(command, cwd)
    assert status in (None, process.returncode), process.stdout + process.stderr
    return process


def _forked(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Return the finished process of a command that the server has forked."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("stdout", "stderr")}
        server, paths = _server(), {name: str(file) for name, file in files.items()}
        request = {"words": command[1:], "cwd": str(cwd), "environment": dict(os.environ), **paths}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        output, errors = (file.read_text() for file in files.values())
    return subprocess.CompletedProcess(command, status, output, errors)


@functools.cache
def _server() -> subprocess.Popen:
    """Return the process that forks commands; it ends with its stdin, and so with this process."""
    script = Path(__file__).with_name("command_server.py")
    return subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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
