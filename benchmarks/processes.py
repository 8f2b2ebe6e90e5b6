"""Code that runs in a process of its own, so that its memory can be measured."""

from __future__ import annotations

import subprocess
import sys
import textwrap

# defines peak(), the most memory of the process, MB; getrusage would include the parent of a forked process
PEAK = """
import re
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
"""


def number_printed_by(code: str, *words: object) -> float:
    """Return the number that `code`, which may call peak(), prints last in a new process with `words` as arguments."""
    command = [sys.executable, "-c", PEAK + textwrap.dedent(code), *map(str, words)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
