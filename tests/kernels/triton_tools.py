"""Triton without a GPU: test files that run in its interpreter, and kernels compiled ahead of time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is for Linux only)")

NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


def assert_passes_interpreted(file, passed, *options):
    """Assert that `passed` tests of `file` pass, and none is skipped, in a process that asks for the interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "--disable-warnings", "-p", "no:cacheprovider", *options,
               str(Path(__file__).with_name(file))]  # fmt: skip
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2],
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    assert re.search(rf"\b{passed} passed", run.stdout), run.stdout
    assert "skipped" not in run.stdout


def compile_ahead(kernel, arguments, target):
    """Compile `kernel` for the arguments of a launch and for one of TARGETS."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {p.name for p in kernel.params if p.is_constexpr}
    constants |= {name for name in kernel.arg_names if arguments[name] is None}
    types, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif isinstance(arguments[name], torch.Tensor):
            types[name], aligned[(i,)] = f"*{NAMES[arguments[name].dtype]}", [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if isinstance(arguments[name], float) else "i32"
    source = ASTSource(kernel, types, {name: arguments[name] for name in constants}, aligned)
    device, *_ = TARGETS[target]
    options = {name: arguments[name] for name in arguments.keys() - set(kernel.arg_names)}
    if device != "cuda":
        options.pop("maxnreg", None)
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def spills(binary, target, folder):
    """Return how many bytes or registers the compiler had to put into memory."""
    import triton

    device, architecture, _ = TARGETS[target]
    if device == "hip":
        # scalar registers are spilled to lanes of vector registers, not to memory
        fields = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", binary.asm["amdgcn"])
        assert len(fields) == 2
        return max(map(int, fields))
    file = folder / "kernel.ptx"
    file.write_text(binary.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    name = "sm_90a" if architecture == 90 else f"sm_{architecture}"
    command = [ptxas, "-v", "--gpu-name", name, str(file), "-o", os.devnull]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return max(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)))
