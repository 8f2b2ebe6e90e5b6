"""A process that has imported what commands need, and forks a child for each, which starts without these seconds.

It reads a request per line on stdin, as JSON, and answers each on stdout with the exit status of the child.
"""

import importlib
import json
import os
import sys
from pathlib import Path

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
        child = os.fork()
        if child == 0:
            execute(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def execute(words: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run the command line `words` in this process, which it ends; write its output to two files."""
    from egal_bench.cli import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["egal-bench", *words]
    main()


if __name__ == "__main__":
    serve()
