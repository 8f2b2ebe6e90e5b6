"""A process that has imported what commands need, and forks a child for each, which starts without these seconds.

It reads a request per line on stdin, as JSON, and answers each on stdout, as JSON too: {"start": …} with the process id
of the child, {"wait": id} with the exit status of that child once it has ended, and {"poll": id} with the exit status
or null.
"""

import atexit
import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path

from matplotlib.figure import Figure

IMPORTED = [
    "egal_bench.cli.compare", "egal_bench.cli.inspect", "egal_bench.cli.main", "egal_bench.cli.pack",
    "egal_bench.cli.report", "egal_bench.learners.finetune", "egal_bench.learners.frozen", "egal_bench.reports.report",
    "egal_bench.runs.comparison", "egal_bench.runs.preload", "matplotlib.backends.backend_pdf", "matplotlib.pyplot",
    "egal_shards", "timm",
]  # fmt: skip


def serve() -> None:
    """Answer requests until stdin ends."""
    sys.path[0] = str(Path(sys.executable).parent)  # as in a console script
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        ((request, argument),) = json.loads(line).items()
        answer = start(**argument) if request == "start" else ended(argument, os.WNOHANG if request == "poll" else 0)
        print(json.dumps(answer), flush=True)


def start(**command) -> int:
    """Fork a child that executes a command, and return its process id."""
    child = os.fork()
    if child == 0:
        execute(**command)
    return child


def ended(child: int, options: int) -> int | None:
    """Return the exit status of a child, or None while it runs."""
    pid, status = os.waitpid(child, options)
    return os.waitstatus_to_exitcode(status) if pid else None


def execute(
    words: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str, rendered: bool, session: bool
) -> None:
    """Run the command line `words` in this process, which it ends.

    Args:
        words: what follows `egal-bench`.
        cwd: working directory.
        environment: all variables of the environment.
        stdout: path that takes the output.
        stderr: path that takes the messages.
        rendered: whether figures are rendered; otherwise their files are empty.
        session: whether the process leads a session of its own, with all that it starts.
    """
    from egal_bench.cli import main

    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    if not rendered:
        Figure.savefig = lambda figure, target, **settings: Path(target).write_bytes(b"")
    sys.argv = ["egal-bench", *words]
    status = 1
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    end(status)


def end(status: int) -> None:
    """End this process as Python does, but without taking its modules apart, which would copy the parent's memory."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
