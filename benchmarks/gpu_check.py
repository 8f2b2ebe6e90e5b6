"""The Triton backend of `acquire` on whatever GPU is here: is it right, how near the roof, is the tuning right for it?

    python benchmarks/gpu_check.py                 # correctness, speed, tuning; without a GPU says so
    python benchmarks/gpu_check.py --compile-only  # a Markdown table of what sm_80, sm_90 and gfx942 make of it

Result: none from a GPU yet. The table of `--compile-only` is in kernels/README.md; its times are predictions.

Why: `acquire` reads the features once and the ROI once and writes a few numbers a sample, so its roof is the memory.
The roof is measured on the spot, a device copy of the same bytes (which are read and written, hence twice as many).
Equality with the reference is asserted before anything is timed: of given class maps every count must be the same to
the bit, on whole heads logits agree to 1e-4 and at most 1 pixel in 10⁴ differs.
"""

import argparse
import inspect
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import OutOfResources

from egal_kernels import PackedRoi, acquire, pack_roi
from egal_kernels.acquisition import triton as backend
from egal_kernels.acquisition import triton_head
from egal_kernels.acquisition.triton_launch import Tuning
from egal_kernels.conventions import CONVENTIONS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DEVICES = {"sm_80": ("A100 40 GB", 1.555e12), "sm_90": ("H100 SXM", 3.35e12), "gfx942": ("MI300X", 5.3e12)}  # bytes/s
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}


@dataclass(frozen=True)
class Case:
    """A batch: features [C, side, side] of `dtype`, a head of K classes, an ROI of size²."""

    channels: int
    side: int
    size: int
    dtype: torch.dtype = torch.float32
    classes: int = 3
    channels_last: bool = False

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return f"{self.channels}×{self.side}²→{self.size}² {TYPES[self.dtype]}, K={self.classes}{layout}"

    def bytes(self) -> int:
        """What an image cannot do without: its features and its ROI, once."""
        return self.channels * self.side**2 * self.dtype.itemsize + self.size * -(-self.size // 32) * 4

    def inputs(self, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor, PackedRoi]:
        """Features, weight, bias and ROI; seeded, but for "meta", which has no values."""
        make = {} if device == "meta" else {"generator": torch.Generator(device).manual_seed(self.channels)}
        features = torch.rand(batch, self.channels, self.side, self.side, device=device, **make).to(self.dtype)
        features = features.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        weight = torch.randn(self.classes, self.channels, device=device, **make)
        bias = torch.randn(self.classes, device=device, **make)
        if device == "meta":
            words = torch.empty(batch, self.size, -(-self.size // 32), dtype=torch.int32, device=device)
            return features, weight, bias, PackedRoi(words, self.size)
        return features, weight, bias, pack_roi(torch.rand(batch, self.size, self.size, device=device, **make) < 0.1)


CASES = [
    *(Case(c, side, size, dtype)
      for (side, size), c, dtype in itertools.product([(7, 224), (14, 224), (32, 1024)], [512, 1024, 2048],
                                                      [torch.float32, torch.bfloat16])),
    Case(1024, 7, 224, torch.bfloat16, channels_last=True),
    Case(1024, 14, 224, torch.float32, channels_last=True),
    Case(2048, 7, 224, torch.float32, classes=8),
    Case(2048, 7, 224, torch.float32, classes=15),
]  # fmt: skip


# --- compilation, without a GPU


@dataclass(frozen=True)
class Compiled:
    """What a compiler reports of a kernel; numbers are a thread's, `shared` a program's in bytes."""

    warps: int
    registers: int
    shared: int
    spills: int  # values (gfx942) or bytes (sm_80, sm_90) that went to memory for want of registers
    scratch: int  # bytes of stack
    widths: tuple[int, ...]  # bytes of each load instruction of features
    tile: int  # bytes of features that a thread should load an iteration, each once
    ttir: str


def compile_case(case: Case, target: str, tuned: Tuning | None = None) -> Compiled:
    """`acquire`'s kernel for `case`, compiled ahead of time with the arguments that a launch would give it."""
    _, given = backend.arguments(*case.inputs(64, "meta"), 0.5, "grad-cam", None, None, None, tuned)
    options = {name: given.pop(name) for name in given.keys() - set(backend.kernel.arg_names)}
    if target.startswith("gfx"):
        options.pop("maxnreg", None)
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(backend.kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (signature[parameter.name] == "i32" and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(backend.kernel, signature, constants, attributes)
    done = triton.compile(source, target=TARGETS[target], options=options)
    asm = done.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    threads = done.metadata.num_warps * TARGETS[target].warp_size
    tile = given["BC"] * given["BP"] * given["PL"] * case.dtype.itemsize // threads
    said = (_amd if target.startswith("gfx") else _nvidia)(asm)
    return Compiled(done.metadata.num_warps, shared=done.metadata.shared, tile=tile, ttir=done.asm["ttir"],
                    widths=tuple(_feature_loads(asm)), **said)  # fmt: skip


def _nvidia(ptx: str) -> dict[str, int]:
    """Registers, spills and stack of PTX, by ptxas with Triton's flags."""
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    arch = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [ptxas, "-v", "-lineinfo", "--fmad=false", f"--gpu-name={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    stack, spills = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said).groups())
    return {"registers": int(re.search(r"Used (\d+) registers", said)[1]), "spills": spills, "scratch": stack}


def _amd(amdgcn: str) -> dict[str, int]:
    """Registers, spills and stack from the metadata of amdgcn."""
    vector, vector_spills, scalar_spills, scratch = (
        int(re.search(rf"\.{name}:\s+(\d+)", amdgcn)[1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    )
    return {"registers": vector, "spills": vector_spills + scalar_spills, "scratch": scratch}


AMD_LOADS = {"ushort": 2, "short_d16": 2, "short_d16_hi": 2, "dword": 4, "dwordx2": 8, "dwordx4": 16}


def _feature_loads(asm: str) -> Iterator[int]:
    """Bytes of each load that the line of source that loads features has become, by the assembly's debug lines."""
    source, first = inspect.getsourcelines(triton_head.load_tile.fn)
    line = first + next(i for i, text in enumerate(source) if "tl.load(features" in text)
    files = dict(re.findall(r'\.file\s+(\d+) .*?([\w.]+)"$', asm, re.MULTILINE))
    here = inline = False
    for text in asm.splitlines():
        inline = "begin inline asm" in text or (inline and "end inline asm" not in text)
        if place := re.match(r"\s*\.loc\s+(\d+) (\d+)", text):
            if not inline:  # whose lines are numbered as if they were the source's
                here = files[place[1]] == "triton_head.py" and int(place[2]) == line
        elif here and (load := re.search(r"ld\.global(?:\.v(\d))?\.b(\d+) ", text)):
            yield int(load[1] or 1) * int(load[2]) // 8
        elif here and (load := re.search(r"\b(?:buffer|global)_load_(\w+)", text)):
            yield AMD_LOADS[load[1]]


def print_compiled() -> None:
    """The table of kernels/README.md; AssertionError if anything spills."""
    names = ", ".join(TARGETS)
    rates = ", ".join(f"{device} {rate / 1e12:g} TB/s" for device, rate in DEVICES.values())
    print(f"| features → ROI | warps | registers: {names} | shared, B | spills | loads of a tile's features, sm_90 "
          f"| kB loaded an image (minimum) | predicted, never run, µs an image: {rates} |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        made = {target: compile_case(case, target) for target in TARGETS}
        one = made["sm_90"]
        assert all(x.spills == x.scratch == 0 for x in made.values()), (case, made)
        passes = 1 if case.classes <= backend.ONE_PASS_CLASSES else 2
        width = max(one.widths)
        minimum = case.bytes()
        loaded = minimum + (passes - 1) * case.channels * case.side**2 * case.dtype.itemsize
        print(f"| {case} | {one.warps} | {' '.join(str(x.registers) for x in made.values())} "
              f"| {max(x.shared for x in made.values())} | 0 | {one.tile // width} of {width} B "
              f"| {loaded / 1e3:.0f} ({minimum / 1e3:.0f}) "
              f"| {' '.join(f'{minimum / rate * 1e6:.3f}' for _, rate in DEVICES.values())} |", flush=True)  # fmt: skip


# --- on a GPU


def check() -> None:
    """AssertionError unless the backend agrees with the reference, on the CPU and here, over a seeded grid."""
    grid = itertools.product([(1, 1), (3, 5), (7, 7), (14, 9), (33, 40)], [(1, 1), (61, 50), (224, 224), (1000, 513)],
                             sorted(CONVENTIONS), [0.0, 0.3, 0.5, 1.0])  # fmt: skip
    for (h, w), size, convention, threshold in grid:
        g = torch.Generator().manual_seed(h * size[0])
        maps, mask = torch.randn(4, 1, h, w, generator=g), torch.rand(4, *size, generator=g) < 0.3
        maps[1], maps[2], mask[3] = maps[1].round(), 1.0, True  # plateaus, a constant, a full ROI
        head = {"alpha": torch.ones(4, 1), "logits": torch.randn(4, 5, generator=g)}
        compare(maps, None, None, pack_roi(mask), head, 0, threshold=threshold, convention=convention)
    shapes = itertools.product([(7, 224), (14, 224), (5, 61)], [2, 5, 8, 15, 1000], [torch.float32, torch.bfloat16,
                               torch.float16], [False, True])  # fmt: skip
    for (side, size), classes, dtype, channels_last in shapes:
        compare(*Case(512, side, size, dtype, classes, channels_last).inputs(8, "cpu"), {}, 1e-4)


def compare(features: Tensor, weight: Tensor | None, bias: Tensor | None, roi: PackedRoi, head: dict[str, Tensor],
            share: float, **options: Any) -> None:  # fmt: skip
    """AssertionError if logits or entropies differ, or counts by more than `share` of the pixels."""
    here = [None if x is None else x.cuda() for x in (features, weight, bias)]
    moved = {name: x.cuda() for name, x in head.items()}
    out = acquire(*here, roi.to("cuda"), **moved, **options, backend="triton")
    for reference in (acquire(features, weight, bias, roi, **head, **options, backend="reference"),
                      acquire(*here, roi.to("cuda"), **moved, **options, backend="reference")):  # fmt: skip
        about = f"{list(features.shape)} {features.dtype} → {roi.shape} {options}"
        for name, expected in vars(reference).items():
            got, expected = getattr(out, name).cpu(), expected.cpu()
            if expected.dtype == torch.int32:
                allowed = share * roi.height * roi.bits.shape[1]
                assert (got - expected).abs().max() <= allowed, f"{name} of {about}: {got} is not {expected}"
            else:
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * roi.shape[1] * (share + 1e-2),
                                           msg=lambda m, name=name, about=about: f"{name} of {about}: {m}")  # fmt: skip


def milliseconds(run: Callable[[], object]) -> float:
    """Median of 30 runs by the device's clock, after 5 that warm up."""
    times = []
    for i in range(35):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) if i >= 5 else 0)
    return median(times[5:])


def time_cases(limit: int = 1 << 29) -> None:
    """For each case: µs an image, the share of the roof, and the best of a sweep over `Tuning`."""
    data = torch.empty(limit, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(data)
    roof = 2 * limit / milliseconds(lambda: copy.copy_(data)) / 1e6  # GB/s
    print(f"roof, a device copy: {roof:.0f} GB/s; batches of {limit >> 20} MB of features and ROI, more than a cache")
    print(
        "| features → ROI | images | µs an image | of the roof | best of the sweep | faster by |\n"
        "|---|---|---|---|---|---|"
    )
    for case in CASES:
        batch = limit // case.bytes()
        given = case.inputs(batch, "cuda")
        rest = {"threshold": 0.5, "convention": "grad-cam", "classes": None, "alpha": None, "logits": None}
        compare(given[0][:8].cpu(), given[1].cpu(), given[2].cpu(), given[3][:8].to("cpu"), {}, 1e-4)
        took = milliseconds(lambda: backend.acquire(*given, **rest))  # noqa: B023
        best, least = None, took
        for tuned in candidates(case):
            try:
                now = milliseconds(lambda: backend.acquire(*given, **rest, tuned=tuned))  # noqa: B023
            except OutOfResources:
                continue
            if now < least:
                best, least = tuned, now
        share = batch * case.bytes() / took / 1e6 / roof
        print(f"| {case} | {batch} | {took / batch * 1e3:.3f} | {share:.0%} | {best or 'the heuristic'} "
              f"| {took / least - 1:.0%} |", flush=True)  # fmt: skip


def candidates(case: Case) -> Iterator[Tuning]:
    """Tunings that give a thread 4 to 32 features of a tile."""
    width = triton.next_power_of_2(case.size)
    for warps, channels, positions in itertools.product([2, 4, 8, 16], [8, 16, 32, 64, 128], [32, 64, 128, 256]):
        if 4 <= channels * positions / (32 * warps) <= 32 and positions <= triton.next_power_of_2(case.side**2):
            yield Tuning(warps, channels, positions, min(width, 128 * warps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="compile for all targets; needs no GPU")
    if parser.parse_args().compile_only:
        print_compiled()
    elif not torch.cuda.is_available():
        print("no GPU here: nothing checked. --compile-only needs none.")
    else:
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, Triton {triton.__version__}")
        check()
        print("equal to the reference")
        time_cases()


if __name__ == "__main__":
    main()
