"""The Triton backend of `cam_loss` without a GPU: in the interpreter, and compiled ahead of time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from egal_kernels import cam_loss, pack_roi

triton = pytest.importorskip("triton", reason="Triton is not installed")
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}


def test_the_kernels_are_right_in_the_interpreter():
    file = Path(__file__).with_name("cam_loss_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert re.search(r"\b5 passed", done.stdout), done.stdout


def compiled(kernel, given, target):
    """`kernel` for the target (backend, architecture, threads a warp), from the arguments of a launch."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {p.name for p in kernel.params if p.is_constexpr}
    constants |= {name for name in kernel.arg_names if given[name] is None}
    types, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif isinstance(given[name], torch.Tensor):
            types[name], aligned[(i,)] = f"*{NAMES[given[name].dtype]}", [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if isinstance(given[name], float) else "i32"
    source = ASTSource(kernel, types, {name: given[name] for name in constants}, aligned)
    options = {
        name: given[name] for name in ("num_warps", "num_stages", "maxnreg") if target[0] == "cuda" or name != "maxnreg"
    }
    return triton.compile(source, target=GPUTarget(*target), options=options)


def spills(binary, target, folder):
    """Bytes, or registers, that the compiler had to keep in memory."""
    if target[0] == "hip":
        # scalar registers are kept in lanes of vector registers, not in memory
        fields = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", binary.asm["amdgcn"])
        assert len(fields) == 2
        return max(map(int, fields))
    file = folder / "kernel.ptx"
    file.write_text(binary.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    arch = "sm_90a" if target[1] == 90 else f"sm_{target[1]}"
    run = [ptxas, "-v", "--gpu-name", arch, str(file), "-o", os.devnull]
    log = subprocess.run(run, capture_output=True, text=True, check=True).stderr
    return max(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)))


@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)], ids=str)
@pytest.mark.parametrize(
    ("channels", "side", "size", "dtype", "layout"),
    [
        (1024, 7, 224, torch.float32, torch.contiguous_format),
        (512, 32, 1024, torch.bfloat16, torch.channels_last),
    ],
    ids=str,
)
def test_real_shapes_compile_without_spills(channels, side, size, dtype, layout, target, tmp_path):
    from egal_kernels.loss import triton as backend

    features = torch.empty(1, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
    roi = pack_roi(torch.zeros(1, size, size, dtype=torch.bool))
    classes = torch.zeros(1, dtype=torch.int64)
    _, given = backend.arguments(features, torch.empty(3, channels), roi, classes, "grad-cam", True)
    assert spills(compiled(backend.kernel, given, target), target, tmp_path) == 0


def test_the_way_out_is_named_where_there_is_no_gpu():
    roi, classes = pack_roi(torch.zeros(1, 4, 4, dtype=torch.bool)), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="backend: 'triton' takes features on a CUDA or ROCm device, got cpu; move"):
        cam_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2), roi, classes, backend="triton")
