"""The Triton backend: its results, in a process that asks for the interpreter; its choice; what is lost without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from egal_kernels import acquire, pack_roi
from egal_kernels.backends import choose

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux only)")


def test_in_the_interpreter_it_equals_the_reference():
    cases = Path(__file__).with_name("triton_interpreted.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--disable-warnings", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would check it for minutes")
def test_without_a_gpu_the_script_that_checks_one_says_so():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("no GPU here")


def test_auto_takes_triton_for_half_and_single_precision_on_a_gpu_only():
    for op in ("acquisition", "loss"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert choose(op, "auto", torch.device("cuda:1"), dtype) == "triton"
            assert choose(op, "auto", torch.device("xpu"), dtype) == "reference"
            assert choose(op, "auto", torch.device("cpu"), dtype) == "cpu"
        assert choose(op, "auto", torch.device("cuda"), torch.float64) == "reference"


def test_without_triton_one_warning_says_what_is_lost():
    script = """
import sys, warnings, torch
sys.modules["triton"] = None
from egal_kernels.backends import choose
gpu = torch.device("cuda"), torch.float32
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert {choose(op, "auto", *gpu) for op in ("acquisition", "loss", "acquisition")} == {"reference"}
print(*(w.message for w in caught))
try:
    choose("acquisition", "triton", *gpu)
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    warned, refused = run.stdout.splitlines()
    assert warned.count("Triton is not installed, so the Triton backend is off") == 1
    assert "full resolution" in warned
    assert refused == "backend: 'triton' needs Triton, which is not installed: pip install triton, or choose 'auto'"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; benchmarks/gpu_check.py checks more on one")
@pytest.mark.parametrize("classes", [3, 20])
def test_on_a_gpu_it_equals_the_reference(classes):
    g = torch.Generator("cuda").manual_seed(0)
    features = torch.rand(5, 64, 7, 7, device="cuda", generator=g)
    weight = torch.randn(classes, 64, device="cuda", generator=g)
    roi = pack_roi(torch.rand(5, 224, 224, device="cuda", generator=g) < 0.3)
    ours, expected = (acquire(features, weight, None, roi, backend=name) for name in ("triton", "reference"))
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.roi_area, expected.roi_area)
    assert (ours.cam_area - expected.cam_area).abs().max() <= 5
