"""What the compilers make of the kernels of `acquire`: registers, spills and loads, without a GPU."""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.cases import CASES, TYPES, Case, prepared, streams, two_kernels, variants
from egal_kernels.acquisition import triton as backend
from egal_kernels.shared.triton_class_maps import load_tile
from egal_kernels.shared.triton_launch import Tuning

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
STREAMING = ("sm_80", "sm_90")  # targets for which several samples per program compile without spills
# a device of each target, and the bandwidth of its memory, bytes per second
DEVICES = {"sm_80": ("A100 40 GB", 1.555e12), "sm_90": ("H100 SXM", 3.35e12), "gfx942": ("MI300X", 5.3e12)}


@dataclass(frozen=True)
class Compiled:
    """What a compiler reports about a kernel.

    Attributes:
        warps: per program.
        registers: per thread.
        shared: memory per program, bytes.
        spills: per thread, bytes (sm_80, sm_90) or values (gfx942) that were moved to memory for lack of registers.
        scratch: stack per thread, bytes.
        widths: bytes of each load instruction of features.
        tile: bytes of features that a thread has to load per iteration.
        ttir: the kernel in Triton's intermediate representation.
    """

    warps: int
    registers: int
    shared: int
    spills: int
    scratch: int
    widths: tuple[int, ...]
    tile: int
    ttir: str


def compile_case(case: Case, target: str, tuned: Tuning | None = None) -> list[Compiled]:
    """Compile the kernels of `acquire` for `case` ahead of time, with the arguments that a launch would give them.

    Args:
        case: the shapes.
        target: a key of TARGETS.
        tuned: how the work is cut; None: the default tuning.
    """
    tensors, launches = prepared(case.inputs(64, "meta"), tuned)
    return [_compile(case, launch.kernel, launch.arguments(64, tensors), target) for launch in launches]


def _compile(case: Case, kernel: Any, arguments: dict[str, Any], target: str) -> Compiled:
    options = {name: arguments.pop(name) for name in arguments.keys() - set(kernel.arg_names)}
    on_amd = target.startswith("gfx")
    if on_amd:
        options.pop("maxnreg", None)
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        hinted = signature[parameter.name] == "i32" and not parameter.do_not_specialize
        if isinstance(value, Tensor) or (hinted and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    asm = compiled.asm["amdgcn" if on_amd else "ptx"]
    threads = compiled.metadata.num_warps * TARGETS[target].warp_size
    tile = arguments.get("BC", 0) * arguments["BP"] * arguments["PL"] * case.dtype.itemsize // threads
    resources = _amd_resources(asm) if on_amd else _nvidia_resources(asm)
    return Compiled(
        warps=compiled.metadata.num_warps, shared=compiled.metadata.shared, tile=tile, ttir=compiled.asm["ttir"],
        widths=tuple(_feature_loads(asm)), **resources,
    )  # fmt: skip


def _nvidia_resources(ptx: str) -> dict[str, int]:
    """Return registers, spills and stack of PTX, as ptxas reports them under Triton's flags."""
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    arch = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [ptxas, "-v", "-lineinfo", "--fmad=false", f"--gpu-name={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        report = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    functions = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)  # the kernel and its calls
    stack, spills = (sum(map(int, numbers)) for numbers in zip(*functions, strict=True))
    return {"registers": int(re.search(r"Used (\d+) registers", report)[1]), "spills": spills, "scratch": stack}


def _amd_resources(amdgcn: str) -> dict[str, int]:
    """Return registers, spills and stack from the metadata of amdgcn."""
    vector, vector_spills, scalar_spills, scratch = (
        int(re.search(rf"\.{name}:\s+(\d+)", amdgcn)[1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    )
    return {"registers": vector, "spills": vector_spills + scalar_spills, "scratch": scratch}


AMD_LOADS = {"ushort": 2, "short_d16": 2, "short_d16_hi": 2, "dword": 4, "dwordx2": 8, "dwordx4": 16}


def _feature_loads(asm: str) -> Iterator[int]:
    """Yield the bytes of each load instruction into which the source line that loads features was compiled.

    The debug lines of the assembly tell which source line an instruction belongs to. Those within inline assembly are
    skipped, since their numbers do not refer to the source.
    """
    source, first = inspect.getsourcelines(load_tile.fn)
    line = first + next(i for i, text in enumerate(source) if "tl.load(features" in text)
    files = dict(re.findall(r'\.file\s+(\d+) .*?([\w.]+)"$', asm, re.MULTILINE))
    on_line = inline = False
    for text in asm.splitlines():
        inline = "begin inline asm" in text or (inline and "end inline asm" not in text)
        if place := re.match(r"\s*\.loc\s+(\d+) (\d+)", text):
            if not inline:
                on_line = files[place[1]] == "triton_class_maps.py" and int(place[2]) == line
        elif on_line and (load := re.search(r"ld\.global(?:\.v(\d))?\.b(\d+) ", text)):
            yield int(load[1] or 1) * int(load[2]) // 8
        elif on_line and (load := re.search(r"\b(?:buffer|global)_load_(\w+)", text)):
            yield AMD_LOADS[load[1]]


def print_compiled() -> None:
    """Print the tables of --compile-only. Raises AssertionError if a kernel spills."""
    targets = ", ".join(TARGETS)
    bandwidths = ", ".join(f"{device} {rate / 1e12:g} TB/s" for device, rate in DEVICES.values())
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        print(
            f"| features → ROI | warps | registers: {targets} | shared, B | spills | loads of a tile's features, sm_90 "
            f"| kB loaded per image (minimum) | predicted, never run, µs per image: {bandwidths} |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        for line in processes.map(_row, CASES):
            print(line, flush=True)
        print(
            f"\n| features → ROI | warps of the second kernel | registers of both: {targets} | spills |\n"
            "|---|---|---|---|"
        )
        for warps in (1, 4):
            for line in processes.map(partial(_row_of_two, warps=warps), CASES):
                print(line, flush=True)
        print(
            f"\n| features → ROI, 8 samples per program | registers: {', '.join(STREAMING)} | shared, B | spills |\n"
            "|---|---|---|---|"
        )
        for line in processes.map(_row_of_several, filter(streams, CASES)):
            print(line, flush=True)


def _row(case: Case) -> str:
    """Return the row of the default tuning."""
    by_target = {target: compile_case(case, target) for target in TARGETS}
    _assert_nothing_spills(case, by_target)
    (sm_90,), minimum = by_target["sm_90"], case.bytes()
    width = max(sm_90.widths)
    passes = 1 if case.classes <= backend.ONE_PASS_CLASSES else 2
    loaded = minimum + (passes - 1) * case.channels * case.side**2 * case.dtype.itemsize
    registers = " ".join(str(compiled.registers) for (compiled,) in by_target.values())
    shared = max(compiled.shared for (compiled,) in by_target.values())
    predicted = " ".join(f"{minimum / rate * 1e6:.3f}" for _, rate in DEVICES.values())
    return (
        f"| {case} | {sm_90.warps} | {registers} | {shared} | 0 | {sm_90.tile // width} of {width} B "
        f"| {loaded / 1e3:.0f} ({minimum / 1e3:.0f}) | {predicted} |"
    )


def _row_of_two(case: Case, warps: int) -> str:
    """Return the row of two kernels, the second with `warps` per sample."""
    tuned = two_kernels(variants(case)["one kernel"], warps)
    by_target = {target: compile_case(case, target, tuned) for target in TARGETS}
    _assert_nothing_spills(case, by_target)
    both = ("+".join(str(compiled.registers) for compiled in kernels) for kernels in by_target.values())
    return f"| {case} | {warps} | {' '.join(both)} | 0 |"


def _row_of_several(case: Case) -> str:
    """Return the row of several samples per program."""
    tuned = variants(case)["8 samples per program"]
    by_target = {target: compile_case(case, target, tuned) for target in STREAMING}
    _assert_nothing_spills(case, by_target)
    registers = " ".join(str(compiled.registers) for (compiled,) in by_target.values())
    shared = max(compiled.shared for (compiled,) in by_target.values())
    return f"| {case} | {registers} | {shared} | 0 |"


def _assert_nothing_spills(case: Case, by_target: dict[str, list[Compiled]]) -> None:
    for target, kernels in by_target.items():
        assert all(compiled.spills == compiled.scratch == 0 for compiled in kernels), (case, target)
