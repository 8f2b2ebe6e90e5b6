"""Checks the Triton kernels and the project on the GPU of this machine, in one visit of at most four minutes.

    python benchmarks/gpu_check.py                 # results, speed, profiles, training, comparisons
    python benchmarks/gpu_check.py --compile-only  # without a GPU: what each target makes of the kernels

It is not in the registry of benchmarks, because it must run on a borrowed machine that has PyTorch and Triton, but not
the project. It finds the project beside itself. A step that needs a package that is not installed is skipped and names
the package.

On a GPU it compares the kernels with the reference, in parallel processes that compile them; times every variant of
`acquire`, the loss and the host's part of a call; times training steps and comparisons; profiles pool passes with and
without torch.compile; and runs the tests of Triton's interpreter beside all this. It ends with one table, and writes
the same rows to a JSON file. The exit status is 1 if a step failed.

With --compile-only it prints Markdown tables of registers, spills and loads on each target. The times in them are
predictions from the bandwidth of the memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.project import Background, Network
    from benchmarks.gpu.steps import Step

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240.0  # seconds
TOOLS = ("torch", "triton", "numpy")
# what profiles and training import, and what the command line imports besides
PROFILES = ("timm", "safetensors", "scipy", "threadpoolctl", "pandas", "pyarrow", "PIL", "pydantic", "yaml", "rich")
COMMANDS = (*PROFILES, "typer", "sklearn", "statsmodels", "scikit_posthocs", "matplotlib", "webdataset", "braceexpand")
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "kernels", ROOT / "shards") if str(folder) not in sys.path]


def main() -> None:
    """Run the checks that the command line and this machine allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="compile for all targets; needs no GPU")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="file for the rows of the table")
    arguments = parser.parse_args()
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    import torch

    if arguments.compile_only:
        from benchmarks.gpu.compiled import print_compiled

        print_compiled()
    elif not torch.cuda.is_available():
        print("no GPU here: nothing checked. --compile-only needs none.")
    else:
        sys.exit(visit_gpu(arguments.json))


def visit_gpu(path: Path) -> int:
    """Run all steps on the GPU, print the table, write the rows to `path`, and return the exit status."""
    import torch
    import triton

    from benchmarks.gpu import project
    from benchmarks.gpu.steps import table, visit, write

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once, by the first product; one result per seed
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(", ".join(machine.values()), flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as home:
        folder = Path(home)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # empty, so that first compilations are cold
        tests, packing, networks = project.interpreter(), project.phantom(folder), project.compilations(folder)
        try:
            rows = visit(steps_of(folder, tests, packing, networks), LIMIT)
        finally:
            for process in (tests, packing, *networks.values()):
                process.stop()
    print(table(rows))
    write(rows, machine, path)
    print(path)
    return int(any(row.result == "failed" for row in rows))


def steps_of(folder: Path, tests: Background, packing: Background, networks: dict[Network, Background]) -> list[Step]:
    """Return the steps; each with the seconds that it takes at most on 16 cores, which fit into LIMIT together.

    Args:
        folder: for the results of profiles and comparisons.
        tests: the tests of Triton's interpreter.
        packing: packs the phantom of the profiles.
        networks: compile the network of each backbone and precision.
    """
    from benchmarks.gpu import agreement, project, speed
    from benchmarks.gpu.steps import Step

    return [
        Step("agreement", agreement.agreement, 70),
        Step("compiling", partial(project.compiling, networks), 20, PROFILES),
        Step("variants", speed.variant_times, 25),
        Step("loss", speed.loss_times, 3),
        Step("host", speed.host_cost, 2),
        Step("training", project.training_step, 8, PROFILES),
        Step("comparison", partial(project.comparisons, folder), 15, COMMANDS),
        Step("profile", partial(project.profiles, packing, folder), 95, PROFILES),
        Step("interpreter", partial(project.interpreted, tests), 0, ("pytest", "hypothesis")),
    ]


if __name__ == "__main__":
    main()
