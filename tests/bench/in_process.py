"""Fixtures for commands and modules of a user in this process, which has imported PyTorch already."""

import importlib
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest


@contextmanager
def unrendered_figures():
    """Let this process draw figures without rendering them, which takes longer than a tiny run; files are empty."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, target, **settings: Path(target).write_bytes(b""))
        yield


@pytest.fixture
def unrendered():
    """Draw the figures of this test without rendering them."""
    with unrendered_figures():
        yield


@pytest.fixture
def egal_bench_here(user_module, unrendered, monkeypatch, capfd):
    """Return a function that gives the result of `egal-bench WORDS` as executed in this process and in tmp_path.

    Worker processes of such commands are forked from one process that imports PyTorch once for all tests.
    """
    from egal_bench.cli import main

    def execute(*words: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["egal-bench", *words])
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, getattr(sys, name))  # the command replaces them
        capfd.readouterr()
        try:
            main()
        except SystemExit as end:
            status, uncaught = end.code, ""
        except Exception:
            status, uncaught = 1, traceback.format_exc()
        output, errors = capfd.readouterr()
        return subprocess.CompletedProcess(words, status, output, errors + uncaught)

    return execute


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Return a function that writes a user's module into the working folder, which is tmp_path for this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = []

    def write(name: str, text: str) -> Path:
        names.append(name)
        sys.modules.pop(name, None)
        path = tmp_path / f"{name}.py"
        path.write_text(dedent(text))
        importlib.invalidate_caches()
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)
