"""Fixtures that every package's tests share."""

import os
import signal
import sys
from functools import cache
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let one process run the tests that share what is expensive: the Ray cluster, or the fixtures of a module.

    The groups of xdist 3.8 itself have no effect with pytest 9.2, which ignores the names that xdist gives to tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def has_module_fixtures(file: str) -> bool:
        return 'scope="module"' in (config.rootpath / file).read_text(encoding="utf-8")

    class BySharedFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.endswith("_ray.py") or "on Ray" in nodeid:
                return "ray"
            return file if has_module_fixtures(file) else nodeid

    return BySharedFixtures(config, log) if config.getvalue("dist") == "loadgroup" else None


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
