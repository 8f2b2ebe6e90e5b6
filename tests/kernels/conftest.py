"""Fixtures that tests of several kernels share."""

import subprocess
import sys

import pytest
import torch


@pytest.fixture
def thread_count():
    """Function that sets PyTorch's number of threads; the old number returns after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_script():
    """Function that runs Python code in a new process and returns the lines that it printed."""

    def run(code, **environment):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run
