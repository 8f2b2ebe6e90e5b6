"""What compilers make of the Triton kernel for sm_80, sm_90 and gfx942; needs no GPU.

All shapes are in `python benchmarks/gpu_check.py --compile-only`; here is one of each path through the kernel.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux only)")

path = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
spec = importlib.util.spec_from_file_location("gpu_check", path)
gpu_check = sys.modules["gpu_check"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)
Case = gpu_check.Case

BF16 = torch.bfloat16
CASES = {
    Case(1024, 7, 224): 4,  # bytes of a load: rows of 49 are aligned to an element only
    Case(512, 14, 224, BF16): 8,  # rows of 196 to 4
    Case(512, 32, 1024): 16,
    Case(1024, 7, 224, BF16, channels_last=True): 16,
    Case(1024, 7, 224, classes=15): 4,  # pooled first, then projected
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_spills_and_features_are_loaded_once_as_wide_as_they_are_aligned(case):
    check(case, "sm_90")


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("case", [Case(1024, 7, 224), Case(512, 14, 224, BF16)], ids=str)
def test_other_targets_do_as_well(case, target):
    check(case, target)


def check(case, target):
    made = gpu_check.compile_case(case, target)
    assert (made.spills, made.scratch) == (0, 0)
    assert made.registers <= 128 or target == "gfx942"
    assert set(made.widths) == {CASES[case]}
    passes = 1 if case.classes <= 8 else 2
    loaded = sum(made.widths) / made.tile  # tiles, of which a loop that is unrolled has several
    assert loaded == int(loaded)
    assert loaded >= passes
    if target != "gfx942":  # ptxas unrolls, not LLVM
        assert loaded == passes


def test_a_sample_is_addressed_in_64_bits():
    """Pools and batches pass 2³¹ elements: the index of the sample is widened before anything is multiplied by it."""
    ttir = gpu_check.compile_case(Case(1024, 7, 224), "sm_90").ttir
    (index,) = re.findall(r"(%\S+) = tt.get_program_id x", ttir)
    uses = [line.strip() for line in ttir.splitlines() if re.search(re.escape(index) + r"\b", line)][1:]
    assert len(uses) == 1, uses
    assert "arith.extsi" in uses[0]
    assert uses[0].split(" loc(")[0].endswith("i32 to i64")


def test_roundings_that_decide_counts_are_not_contracted():
    """Of the products of the overlap none is fused into a sum, and its divisions are rounded to nearest."""
    given = gpu_check.backend.arguments(*Case(8, 2, 8).inputs(1, "meta"), 0.5, "grad-cam", None, None, None)[1]
    assert given["enable_fp_fusion"] is False
