"""The Triton kernel of `acquire` compiled for sm_80, sm_90 and gfx942; needs no GPU.

One shape is compiled for each path through the kernel; `python benchmarks/gpu_check.py --compile-only` compiles all.
"""

import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux only)")

from benchmarks.gpu.cases import Case, prepared, variants
from benchmarks.gpu.compiled import compile_case
from egal_kernels.acquisition.triton import TILES_AHEAD

BF16 = torch.bfloat16
CASES = {
    Case(1024, 7, 224): 4,  # bytes per load; rows of 49 elements are aligned to 1 element
    Case(512, 14, 224, BF16): 8,  # rows of 196 elements are aligned to 4
    Case(512, 32, 1024): 16,
    Case(1024, 7, 224, BF16, channels_last=True): 16,
    Case(1024, 7, 224, classes=15): 4,  # pooled first, then projected
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_features_are_loaded_once_with_the_widest_aligned_loads(case):
    check(case, "sm_90")


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("case", [Case(1024, 7, 224), Case(512, 14, 224, BF16)], ids=str)
def test_other_targets_load_features_once_too(case, target):
    check(case, target)


def check(case, target):
    """Assert that nothing spills and that the features are loaded as often and as wide as they should be."""
    (binary,) = compile_case(case, target)
    assert_fits(binary, target)
    assert set(binary.widths) == {CASES[case]}
    passes = 1 if case.classes <= 8 else 2
    loaded = sum(binary.widths) / binary.tile  # in tiles; an unrolled loop has several
    assert loaded == int(loaded)
    assert loaded >= passes
    if target != "gfx942":  # for CUDA it is ptxas that unrolls, later, and not LLVM
        assert loaded == passes


def assert_fits(binary, target):
    """Assert that nothing spills, and that a multiprocessor can hold 16 warps."""
    assert (binary.spills, binary.scratch) == (0, 0)
    assert binary.registers <= 128 or target == "gfx942"


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_two_kernels_load_features_in_the_first_only(target):
    case = Case(512, 14, 224, BF16)
    tuned = variants(case)["two kernels, 1 warp"]
    first, second = compile_case(case, target, tuned)
    for binary in (first, second):
        assert_fits(binary, target)
    assert (set(first.widths), second.widths) == ({8}, ())
    assert (first.warps, second.warps) == (tuned.warps, 1)


@pytest.mark.parametrize(
    ("case", "target"), [(Case(512, 7, 224), "sm_80"), (Case(512, 14, 224, BF16), "sm_90")], ids=str
)
def test_several_samples_per_program_keep_tiles_in_flight(case, target):
    (binary,) = compile_case(case, target, variants(case)["8 samples per program"])
    assert_fits(binary, target)
    threads = 32 * binary.warps
    assert binary.shared >= TILES_AHEAD * binary.tile * threads  # the copies of tiles that are not summed up yet


@pytest.mark.parametrize("case", [Case(512, 7, 224, BF16), Case(512, 32, 1024), Case(512, 7, 224, classes=15)], ids=str)
def test_cases_that_gain_nothing_have_one_sample_per_program(case):
    assert all(tuned.samples == 1 for tuned in variants(case).values())


def test_samples_are_addressed_in_64_bits():
    """Batches may have more than 2³¹ elements: the index of the sample is widened before it is multiplied."""
    (binary,) = compile_case(Case(1024, 7, 224), "sm_90")
    ttir = binary.ttir
    (index,) = re.findall(r"(%\S+) = tt.get_program_id x", ttir)
    uses = [line.strip() for line in ttir.splitlines() if re.search(re.escape(index) + r"\b", line)][1:]
    assert len(uses) == 1, uses
    assert "arith.extsi" in uses[0]
    assert uses[0].split(" loc(")[0].endswith("i32 to i64")


def test_roundings_that_decide_counts_are_not_contracted():
    """No product of the overlap is fused into a sum."""
    tensors, (launch,) = prepared(Case(8, 2, 8).inputs(1, "meta"))
    assert launch.arguments(1, tensors)["enable_fp_fusion"] is False
