"""The Triton backend of `acquire`: its results in the interpreter; how it is chosen; what is lost without it."""

from pathlib import Path

import pytest
import torch

from egal_kernels import acquire, pack_roi
from egal_kernels.shared.backends import OPS, choose
from kernels.triton_tools import assert_passes_interpreted


def test_in_the_interpreter_it_equals_the_reference():
    assert_passes_interpreted("acquire_interpreted.py", r"\d+")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would check it for minutes")
def test_without_a_gpu_the_script_that_checks_one_says_so(run_script):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    code = f"import runpy, sys; sys.argv = ['gpu_check.py']; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert run_script(code)[0].startswith("no GPU here")


def test_auto_chooses_by_device_and_dtype():
    for op in OPS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert choose(op, "auto", torch.device("cuda:1"), dtype) == "triton"
            assert choose(op, "auto", torch.device("xpu"), dtype) == "reference"
            assert choose(op, "auto", torch.device("cpu"), dtype) == "cpu"
        assert choose(op, "auto", torch.device("cuda"), torch.float64) == "reference"


def test_without_triton_one_warning_says_what_is_lost(run_script):
    script = """
import sys, warnings, torch
sys.modules["triton"] = None
from egal_kernels import ArgumentError
from egal_kernels.shared.backends import choose
gpu = torch.device("cuda"), torch.float32
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert {choose(op, "auto", *gpu) for op in ("acquisition", "loss", "acquisition")} == {"reference"}
print(*(w.message for w in caught))
try:
    choose("acquisition", "triton", *gpu)
except ArgumentError as error:
    print(error)
"""
    warned, refused = run_script(script)
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
