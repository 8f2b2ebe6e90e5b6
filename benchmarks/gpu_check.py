"""Checks the Triton backend of `acquire` on the GPU of this machine: its results, its speed and its tuning.

    PYTHONPATH=kernels python benchmarks/gpu_check.py                 # results, speed, tuning
    PYTHONPATH=kernels python benchmarks/gpu_check.py --compile-only  # without a GPU: what each target makes of it

It is not in the registry of benchmarks, because it must run on a borrowed machine that has PyTorch and Triton, but
neither the project nor its test libraries installed. PYTHONPATH is needed only there.

On a GPU it first compares `acquire` with the reference: from given class maps every count must be the same to the bit;
from whole heads logits agree to 1e-4, and at most 1 pixel in 10⁴ differs. Then it times each case. `acquire` reads
features and ROI once and writes a few numbers per sample, so its roof is the memory. The roof is measured in the same
run, by a copy of the same number of bytes on the device; a copy reads and writes, so it moves twice as many.

With --compile-only it prints a Markdown table of registers, spills and loads on each of TARGETS. The times in it are
predictions from the bandwidth of the memory.
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

from egal_kernels import Acquisition, PackedRoi, acquire, pack_roi
from egal_kernels.acquisition import triton as backend
from egal_kernels.acquisition.heads import LinearHead
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.shared.triton_class_maps import load_tile
from egal_kernels.shared.triton_launch import Tuning

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# a device of each target, and the bandwidth of its memory, bytes per second
DEVICES = {"sm_80": ("A100 40 GB", 1.555e12), "sm_90": ("H100 SXM", 3.35e12), "gfx942": ("MI300X", 5.3e12)}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}

Inputs = tuple[Tensor, Tensor | None, Tensor | None, PackedRoi]  # features, weight, bias, ROI


@dataclass(frozen=True)
class Case:
    """The shapes of a batch, whatever the number of its samples.

    Attributes:
        channels: C of the features [B, C, side, side].
        side: height and width of the features.
        size: height and width of the ROI.
        dtype: dtype of the features.
        classes: K of the linear head.
        channels_last: memory format of the features.
    """

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
        """Return the bytes that must be read per image: its features and its ROI, each once."""
        return self.channels * self.side**2 * self.dtype.itemsize + self.size * -(-self.size // 32) * 4

    def inputs(self, batch: int, device: str) -> Inputs:
        """Return features, weight, bias and ROI of `batch` samples; seeded, except on "meta", which has no values."""
        seeded = {} if device == "meta" else {"generator": torch.Generator(device).manual_seed(self.channels)}
        features = torch.rand(batch, self.channels, self.side, self.side, device=device, **seeded).to(self.dtype)
        features = features.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        weight = torch.randn(self.classes, self.channels, device=device, **seeded)
        bias = torch.randn(self.classes, device=device, **seeded)
        if device == "meta":
            words = torch.empty(batch, self.size, -(-self.size // 32), dtype=torch.int32, device=device)
            return features, weight, bias, PackedRoi(words, self.size)
        return features, weight, bias, pack_roi(torch.rand(batch, self.size, self.size, device=device, **seeded) < 0.1)


SIDES_AND_SIZES = [(7, 224), (14, 224), (32, 1024)]
CASES = [
    *(
        Case(channels, side, size, dtype)
        for (side, size), channels, dtype in itertools.product(
            SIDES_AND_SIZES, [512, 1024, 2048], [torch.float32, torch.bfloat16]
        )
    ),
    Case(1024, 7, 224, torch.bfloat16, channels_last=True),
    Case(1024, 14, 224, torch.float32, channels_last=True),
    Case(2048, 7, 224, torch.float32, classes=8),
    Case(2048, 7, 224, torch.float32, classes=15),
]


# Compilation, without a GPU


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


def launch_arguments(inputs: Inputs, tuned: Tuning | None = None) -> dict[str, Any]:
    """Return what the kernel of `acquire` is launched with on these inputs: tensors, numbers, constants, options."""
    features, weight, bias, roi = inputs
    return backend.arguments(features, LinearHead(weight, bias, None), roi, 0.5, "grad-cam", tuned)[1]


def triton_acquire(inputs: Inputs, tuned: Tuning | None = None) -> Acquisition:
    """Run `acquire` on the Triton backend with a tuning; None: the heuristic one."""
    features, weight, bias, roi = inputs
    head = LinearHead(weight, bias, None)
    return backend.acquire(features, head, roi, threshold=0.5, convention="grad-cam", tuned=tuned)


def compile_case(case: Case, target: str, tuned: Tuning | None = None) -> Compiled:
    """Compile the kernel of `acquire` for `case` ahead of time, with the arguments that a launch would give it.

    Args:
        case: the shapes.
        target: a key of TARGETS.
        tuned: how a program is cut; None: the heuristic tuning.
    """
    arguments = launch_arguments(case.inputs(64, "meta"), tuned)
    options = {name: arguments.pop(name) for name in arguments.keys() - set(backend.kernel.arg_names)}
    on_amd = target.startswith("gfx")
    if on_amd:
        options.pop("maxnreg", None)
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(backend.kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (signature[parameter.name] == "i32" and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(backend.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    asm = compiled.asm["amdgcn" if on_amd else "ptx"]
    threads = compiled.metadata.num_warps * TARGETS[target].warp_size
    tile = arguments["BC"] * arguments["BP"] * arguments["PL"] * case.dtype.itemsize // threads
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
    stack, spills = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report).groups())
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
    """Print the table of --compile-only. Raises AssertionError if a kernel spills."""
    targets = ", ".join(TARGETS)
    bandwidths = ", ".join(f"{device} {rate / 1e12:g} TB/s" for device, rate in DEVICES.values())
    print(
        f"| features → ROI | warps | registers: {targets} | shared, B | spills | loads of a tile's features, sm_90 "
        f"| kB loaded per image (minimum) | predicted, never run, µs per image: {bandwidths} |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        by_target = {target: compile_case(case, target) for target in TARGETS}
        assert all(compiled.spills == compiled.scratch == 0 for compiled in by_target.values()), (case, by_target)
        sm_90, minimum = by_target["sm_90"], case.bytes()
        width = max(sm_90.widths)
        passes = 1 if case.classes <= backend.ONE_PASS_CLASSES else 2
        loaded = minimum + (passes - 1) * case.channels * case.side**2 * case.dtype.itemsize
        registers = " ".join(str(compiled.registers) for compiled in by_target.values())
        shared = max(compiled.shared for compiled in by_target.values())
        predicted = " ".join(f"{minimum / rate * 1e6:.3f}" for _, rate in DEVICES.values())
        print(
            f"| {case} | {sm_90.warps} | {registers} | {shared} | 0 | {sm_90.tile // width} of {width} B "
            f"| {loaded / 1e3:.0f} ({minimum / 1e3:.0f}) | {predicted} |",
            flush=True,
        )


# On a GPU


def check() -> None:
    """Raise AssertionError unless the backend agrees with the reference, on the CPU and on the GPU, over a grid."""
    maps_grid = itertools.product(
        [(1, 1), (3, 5), (7, 7), (14, 9), (33, 40)], [(1, 1), (61, 50), (224, 224), (1000, 513)], sorted(CONVENTIONS),
        [0.0, 0.3, 0.5, 1.0],
    )  # fmt: skip
    for (h, w), size, convention, threshold in maps_grid:
        generator = torch.Generator().manual_seed(h * size[0])
        maps = torch.randn(4, 1, h, w, generator=generator)
        mask = torch.rand(4, *size, generator=generator) < 0.3
        maps[1], maps[2], mask[3] = maps[1].round(), 1.0, True  # plateaus, a constant, a full ROI
        head = {"alpha": torch.ones(4, 1), "logits": torch.randn(4, 5, generator=generator)}
        compare((maps, None, None, pack_roi(mask)), head, 0, threshold=threshold, convention=convention)
    heads_grid = itertools.product(
        [(7, 224), (14, 224), (5, 61)], [2, 5, 8, 15, 1000], [torch.float32, torch.bfloat16, torch.float16],
        [False, True],
    )  # fmt: skip
    for (side, size), classes, dtype, channels_last in heads_grid:
        compare(Case(512, side, size, dtype, classes, channels_last).inputs(8, "cpu"), {}, 1e-4)


def compare(inputs: Inputs, head: dict[str, Tensor], share: float, **options: Any) -> None:
    """Raise AssertionError if the backend differs from the reference, which runs on the CPU and on the GPU.

    Args:
        inputs: on the CPU.
        head: alpha and logits, if the inputs have no weight.
        share: share of the pixels by which counts may differ.
        options: options of `acquire`.
    """
    features, weight, bias, roi = inputs
    on_gpu = [None if tensor is None else tensor.cuda() for tensor in (features, weight, bias)]
    head_on_gpu = {name: tensor.cuda() for name, tensor in head.items()}
    roi_on_gpu = roi.to("cuda")
    out = acquire(*on_gpu, roi_on_gpu, **head_on_gpu, **options, backend="triton")
    for reference in (
        acquire(features, weight, bias, roi, **head, **options, backend="reference"),
        acquire(*on_gpu, roi_on_gpu, **head_on_gpu, **options, backend="reference"),
    ):
        case = f"{list(features.shape)} {features.dtype} → {roi.shape} {options}"
        for name, expected in vars(reference).items():
            result, expected = getattr(out, name).cpu(), expected.cpu()
            if expected.dtype == torch.int32:
                allowed = share * roi.height * roi.bits.shape[1]
                assert (result - expected).abs().max() <= allowed, f"{name} of {case}: {result} is not {expected}"
            else:
                torch.testing.assert_close(
                    result, expected, rtol=1e-4, atol=1e-4 * roi.shape[1] * (share + 1e-2),
                    msg=lambda message, name=name, case=case: f"{name} of {case}: {message}",
                )  # fmt: skip


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of 30 runs by the clock of the device, after 5 runs to warm up."""
    times = []
    for _ in range(35):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times[5:])


def time_cases(limit: int = 1 << 29) -> None:
    """Print, for each case, the time per image, the share of the roof, and the best tuning of a sweep.

    Args:
        limit: bytes of features and ROIs in a batch, more than a cache holds.
    """
    source = torch.empty(limit, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    roof = 2 * limit / milliseconds(lambda: target.copy_(source)) / 1e6  # GB/s
    print(f"roof, a device copy: {roof:.0f} GB/s; each batch has {limit >> 20} MB of features and ROIs")
    print(
        "| features → ROI | images | µs per image | of the roof | best of the sweep | faster by |\n"
        "|---|---|---|---|---|---|"
    )
    for case in CASES:
        batch = limit // case.bytes()
        features, weight, bias, roi = inputs = case.inputs(batch, "cuda")
        compare((features[:8].cpu(), weight.cpu(), bias.cpu(), roi[:8].to("cpu")), {}, 1e-4)
        heuristic = milliseconds(lambda: triton_acquire(inputs))  # noqa: B023
        best, fastest = None, heuristic
        for tuned in tunings(case):
            try:
                time = milliseconds(lambda: triton_acquire(inputs, tuned))  # noqa: B023
            except OutOfResources:
                continue
            if time < fastest:
                best, fastest = tuned, time
        share = batch * case.bytes() / heuristic / 1e6 / roof
        print(
            f"| {case} | {batch} | {heuristic / batch * 1e3:.3f} | {share:.0%} | {best or 'the heuristic'} "
            f"| {heuristic / fastest - 1:.0%} |",
            flush=True,
        )


def tunings(case: Case) -> Iterator[Tuning]:
    """Yield the tunings of the sweep, which give each thread 4 to 32 features of a tile."""
    width, most_positions = triton.next_power_of_2(case.size), triton.next_power_of_2(case.side**2)
    for warps, channels, positions in itertools.product([2, 4, 8, 16], [8, 16, 32, 64, 128], [32, 64, 128, 256]):
        if 4 <= channels * positions / (32 * warps) <= 32 and positions <= most_positions:
            yield Tuning(warps, channels, positions, min(width, 128 * warps))


def main() -> None:
    """Run the checks that the command line and this machine allow."""
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
