"""The command line as a user calls it: in a process of its own, with output in pipes or files."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))


def egal_bench(
    *words, cwd: Path, status: int | None = None, rendered: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Return the finished process of `egal-bench WORDS` in the folder `cwd`, which must end with `status` if given.

    The process is forked from one that has imported everything. With variables of the environment, which Python and
    libraries read when they start, it is a fresh one.

    Args:
        words: the arguments of the command.
        cwd: working directory.
        status: the expected exit status.
        rendered: whether a forked comparison renders its figure, which takes longer than its runs.
        environment: variables that are set for the process.
    """
    if environment:
        command = [EGAL_BENCH, *map(str, words)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)
    else:
        process = Command(*words, cwd=cwd, rendered=rendered).completed()
    assert status in (None, process.returncode), process.stdout + process.stderr
    return process


class Command:
    """A running `egal-bench WORDS`, forked from a process that has imported everything, with output in files."""

    def __init__(
        self, *words, cwd: Path, rendered: bool = False, session: bool = False, streams: Path | None = None
    ) -> None:
        """Start the command in the folder `cwd`.

        Args:
            words: the arguments of the command.
            cwd: working directory.
            rendered: whether a comparison renders its figure.
            session: whether the process leads a session of its own, with all that it starts.
            streams: a file that takes stdout and stderr, instead of a file for each.
        """
        self.words = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        self._stdout, self._stderr = (streams or Path(self._folder.name) / name for name in ("stdout", "stderr"))
        if streams is None:
            self._stderr.touch()
        self.returncode: int | None = None
        self.pid: int = _answer_of_server(start={
            "words": self.words, "cwd": str(cwd), "environment": dict(os.environ),
            "stdout": str(self._stdout), "stderr": str(self._stderr),
            "rendered": rendered or self.words[0] != "compare", "session": session,
        })  # fmt: skip

    def poll(self) -> int | None:
        """Return the exit status, or None while the command runs."""
        if self.returncode is None:
            self.returncode = _answer_of_server(poll=self.pid)
        return self.returncode

    def wait(self) -> int:
        """Return the exit status once the command has ended."""
        if self.returncode is None:
            self.returncode = _answer_of_server(wait=self.pid)
        return self.returncode

    def kill(self) -> None:
        """Kill the command if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.kill(self.pid, signal.SIGINT)

    def lines(self) -> Iterator[str]:
        """Yield the lines of stderr as they are written, until the command has ended."""
        with self._stderr.open() as file:
            ended, line = False, ""
            while True:
                line += file.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                elif ended:
                    yield from filter(None, [line])
                    return
                else:
                    ended = self.poll() is not None  # what was written before the end is read once more
                    time.sleep(0.01)

    def completed(self) -> subprocess.CompletedProcess:
        """Return the finished process with all that it wrote."""
        status = self.wait()
        output, errors = self._stdout.read_text(), self._stderr.read_text()
        return subprocess.CompletedProcess(["egal-bench", *self.words], status, output, errors)


def _answer_of_server(**request):
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


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
