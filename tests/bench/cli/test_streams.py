"""Output that cannot be written does not spoil a comparison whose work is done."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.command_line import EGAL_BENCH, Command
from bench.tiny import FLAGS
from egal_bench.cli import main


@pytest.fixture
def again(finished, tmp_path):
    """The words of the command that finds its six runs finished, so that it only reports."""
    out = shutil.copytree(finished[0], tmp_path / "finished")  # the command writes figure and summary anew
    return ["compare", *FLAGS, "--workers=1", f"--out={out}"]


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_shows_the_summary(again, monkeypatch, encoding):
    output, errors = io.BytesIO(), io.BytesIO()
    for name, stream in (("stdout", output), ("stderr", errors)):  # as Python opens them with PYTHONIOENCODING
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding))
    monkeypatch.setattr(sys, "argv", ["egal-bench", *again])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, errors.getvalue()
    text = output.getvalue().decode(encoding)
    assert "random" in text
    assert ("±" in text) or ("+/-" in text)


def test_streams_on_a_full_disk_leave_the_status_alone(again, tmp_path):
    assert Command(*again, cwd=tmp_path, streams=Path("/dev/full")).wait() == 0


@pytest.mark.parametrize("redirect", [">&- 2>&-", "| true"])
def test_streams_that_fail_leave_the_status_alone(again, tmp_path, redirect):
    script = f'"$@" {redirect}; echo "status ${{PIPESTATUS[0]}}" >{tmp_path}/status'
    command = ["bash", "-c", script, "bash", EGAL_BENCH, *again]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (tmp_path / "status").read_text() == "status 0\n", done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(("redirect", "status"), [(">/dev/full", 2), (">&-", 2), ("| true", 0)])
def test_a_list_that_nobody_can_read_is_no_success(tmp_path, redirect, status):
    script = f'"$@" {redirect}; echo "status ${{PIPESTATUS[0]}}" >{tmp_path}/status'
    command = ["bash", "-c", script, "bash", EGAL_BENCH, "list", "conventions"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (tmp_path / "status").read_text() == f"status {status}\n", done.stderr
    assert [line[:30] for line in done.stderr.splitlines()] == ["error: stdout: cannot be writt"] * (status == 2)


def test_version_is_one_line():
    import egal_bench as package

    process = subprocess.run([EGAL_BENCH, "--version"], capture_output=True, text=True, check=True)
    assert process.stdout == f"egal-bench {package.__version__}\n"
