"""Fixtures that every package's tests share."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from profiles import FUZZ_EXAMPLES

settings.register_profile("untimed", deadline=None)  # another process may take the processor for seconds
settings.load_profile("untimed")
settings.register_profile("fuzz", max_examples=FUZZ_EXAMPLES)  # of `make fuzz`

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data():
    """Path of the folder of real datasets; the test is skipped, with a message, where a named one is absent."""

    def find(name: str) -> Path:
        if not (DATA / name / "labels.csv").is_file():
            pytest.skip(f"real dataset {name} is not beside this checkout (looked in ../shared/data)")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """Environment variables with which a child process can import the helpers of the tests."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
