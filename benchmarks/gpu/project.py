"""The project on the device: profiles of pool passes, a training step, comparisons, and the interpreter's tests.

What takes long and hardly needs the GPU runs in the background from the start: packing the phantom, compiling the
networks, and the tests of Triton's interpreter.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.steps import Row

if TYPE_CHECKING:
    from egal_bench.learners.augmentation import Samples

ROOT = Path(__file__).parents[2]
BACKBONES = ("resnet18", "resnet50", "densenet121")
PRECISIONS = ("float32", "bfloat16")
PHANTOM = {"phantom_samples": 4400, "size": 224}
PROFILE_SAMPLES = 2560  # ten batches of a pool pass
LONGEST_PROFILE = 15.0  # seconds; no profile begins with less time left
LONGEST_COMPILATION = 20.0  # seconds for which the other steps wait, since compiling would disturb what they time
Network = tuple[str, str]  # backbone and precision
PACK = """
import sys
from pathlib import Path
from benchmarks.gpu.project import PHANTOM
from egal_bench.config import Config
from egal_bench.runs.data import dataset_paths
from egal_bench.tables.folder import ResultsFolder
dataset_paths(Config(**PHANTOM), ResultsFolder(Path(sys.argv[1])))
"""
COMPILE = """
import sys
from pathlib import Path
from benchmarks.gpu.project import seconds_to_compile
print(seconds_to_compile(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
"""
PROBE = """
import torch
from egal_kernels import acquire, pack_roi
roi = pack_roi(torch.ones(1, 2, 2, dtype=torch.bool))
acquire(torch.ones(1, 1, 1, 1), torch.ones(1, 1), None, roi, backend="triton")
"""


class Background:
    """A process that runs beside the steps, until one of them asks for its result.

    Args:
        command: what it executes, with the project on its path.
        variables: further variables of its environment.
    """

    def __init__(self, *command: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | variables, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def result(self, seconds: float) -> tuple[int | None, str]:
        """Return its exit status and the last line that it printed; the status is None if it was stopped.

        Args:
            seconds: how long to wait before it is stopped.
        """
        status: int | None = None
        try:
            output, _ = self._process.communicate(timeout=max(seconds, 0))
            status = self._process.returncode
        except subprocess.TimeoutExpired:
            self.stop()
            output, _ = self._process.communicate()
        finally:
            self.stop()  # whatever has interrupted the wait
        return status, (output.strip().splitlines() or [""])[-1]

    def stop(self) -> None:
        """End the process and those that it started, if they still run."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Return the environment of a process that finds the project, installed or not."""
    paths = [ROOT, ROOT / "kernels", ROOT / "shards", ROOT / "tests", os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path))}


def phantom(folder: Path) -> Background:
    """Start to pack the phantom of the profiles into the results of `folder`."""
    return Background(sys.executable, "-c", PACK, str(folder))


def compilations(folder: Path) -> dict[Network, Background]:
    """Start to compile the network of each backbone and precision; PyTorch's cache on disk keeps the programs.

    The profiles that follow find them there, if `TORCHINDUCTOR_CACHE_DIR` is the same.
    """
    return {
        key: Background(sys.executable, "-c", COMPILE, *key, str(folder / "-".join(key)))
        for key in itertools.product(BACKBONES, PRECISIONS)
    }


def seconds_to_compile(backbone: str, precision: str, folder: Path, device: str = "cuda") -> float | None:
    """Profile a compiled network on two batches, and return how long the first one took, compilation included."""
    from egal_bench.config import Config
    from egal_bench.profiling.profile import profile

    config = Config(
        phantom_samples=700, size=PHANTOM["size"], backbone=backbone, precision=precision, device=device, threads=4,
        compile="on",
    )  # fmt: skip
    result = profile(config, folder, batch=None, samples=1, rounds=1, with_peers=False, trace=None)
    return result.compiling


def compiling(started: dict[Network, Background], left: float) -> Iterator[Row]:
    """Yield how long the first compilation of each network took, and stop those that take too long."""
    end = perf_counter() + min(left, LONGEST_COMPILATION)
    for key, process in started.items():
        status, line = process.result(end - perf_counter())
        if status == 0:
            yield Row("compiling", " ".join(key), float(line), "s", "beside other compilations")
        else:
            note = "not finished in time" if status is None else line
            yield Row("compiling", " ".join(key), "skipped" if status is None else "failed", note=note)


def interpreter() -> Background:
    """Start the tests of Triton's interpreter, after a probe of the interpreter itself."""
    suite = "tests/kernels/acquire_interpreted.py"
    pytest = '"$PYTHON" -m pytest -q --disable-warnings -p no:cacheprovider'
    command = f'"$PYTHON" -c "$PROBE" && {pytest} {suite}'
    variables = {"PYTHON": sys.executable, "PROBE": PROBE, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return Background("sh", "-c", command, **variables)


def interpreted(suite: Background, left: float) -> Iterator[Row]:
    """Yield the result of the interpreter's tests; they count as skipped where the interpreter itself fails."""
    status, line = suite.result(left)
    if status is None:
        yield Row("interpreter", "acquire", "skipped", note="not finished in time")
    elif status and "passed" not in line and "failed" not in line:
        yield Row("interpreter", "acquire", "skipped", note=f"Triton's interpreter fails here: {line}")
    else:
        yield Row("interpreter", "acquire", "failed" if status else "equal", note=line)


def profiles(packing: Background, folder: Path, left: float, device: str = "cuda") -> Iterator[Row]:
    """Yield the rates of a pool pass for each backbone and precision, as `egal-bench profile` measures them.

    Every profile is made without torch.compile, then every one with it.
    """
    from egal_bench.config import Config
    from egal_bench.profiling.profile import profile

    start = perf_counter()
    status, line = packing.result(left)
    if status != 0:
        yield Row("profile", "phantom", "failed", note=line or "not packed in time")
        return
    for compile, backbone, precision in itertools.product(("off", "on"), BACKBONES, PRECISIONS):
        label = f"{backbone} {precision} compile {compile}"
        if left - (perf_counter() - start) < LONGEST_PROFILE:
            yield Row("profile", label, "skipped", note="no time is left")
            continue
        chosen = {"backbone": backbone, "precision": precision, "compile": compile, "device": device}
        config, samples = Config(**PHANTOM, **chosen, threads=4), PROFILE_SAMPLES
        result = profile(config, folder, batch=None, samples=samples, rounds=2, with_peers=False, trace=None)
        if result.compiling is not None:
            yield Row("profile", f"{label}: first batch", result.compiling, "s", "compiled before, by another process")
        for row in result.rows:
            roof = f"{row['share_of_roof']:.0%} of {row['roof']}" if row["share_of_roof"] else ""
            note = f"{row['share_of_forward']:.3f} of forward; {roof}".removesuffix("; ")
            yield Row("profile", f"{label}: {row['stage']}", row["rate_q50"], "images per s", note)


def training_step(
    left: float, device: str = "cuda", backbones: Sequence[str] = ("resnet18", "tf_efficientnet_lite0"),
    side: int = 224, steps: int = 25,
) -> Iterator[Row]:  # fmt: skip
    """Yield the steps per second of fine-tuning, plain and explained in bfloat16, each without and with --cuda-graphs.

    The last loss with --cuda-graphs must be that of the usual steps to the last bit.
    """
    from egal_bench.learners.augmentation import Samples
    from egal_kernels import pack_roi

    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (256, 1, side, side), dtype=np.uint8)).to(device)
    labels = torch.from_numpy(rng.integers(0, 3, 256)).to(device)
    roi = pack_roi(torch.from_numpy(rng.random((256, side, side)) < 0.05)).to(device)
    cases = {
        "plain": (Samples(images, labels), "float32"), "explained, bfloat16": (Samples(images, labels, roi), "bfloat16")
    }  # fmt: skip
    for backbone, (name, (samples, precision)) in itertools.product(backbones, cases.items()):
        label, losses = f"{backbone}, batches of 32, {name}", []
        for cuda_graphs in (False, True):
            rate, loss = _training(backbone, samples, precision, steps, cuda_graphs)
            losses.append(loss)
            yield Row("training", f"{label}, CUDA graphs" if cuda_graphs else label, rate, "steps per s")
        note = f"last loss {losses[0]!r}, with CUDA graphs {losses[1]!r}"
        yield Row("training", f"{label}, bits", "equal" if losses[0] == losses[1] else "failed", note=note)


def _training(
    backbone: str, samples: Samples, precision: str, steps: int, cuda_graphs: bool
) -> tuple[float, float]:  # fmt: skip
    """Return the rate of `steps` training steps, after five that warm up, and the loss of the last one."""
    from egal_bench.learners.augmentation import augmented
    from egal_bench.learners.training import Objective, update
    from egal_bench.models.cuda_graphs import in_steps
    from egal_bench.models.network import build
    from egal_bench.models.process import reproducible

    side, rng = samples.images.shape[-1], np.random.default_rng(0)
    network = build(backbone, 3, image_channels=1, image_size=side, size=None, seed=0)
    network = network.to(samples.images.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    objective = Objective(explain=0.0 if samples.roi is None else 0.1, precision=precision)

    def run(network: Network, count: int) -> float:
        for _ in range(count):
            batch = augmented(samples, rng.permutation(len(samples.labels))[:32], rng)
            loss = update(network, optimizer, objective, batch)
        return loss.item()  # waits for the device

    with reproducible(4), in_steps(network, cuda_graphs) as stepped:
        run(stepped, 5)
        start = perf_counter()
        loss = run(stepped, steps)
        return steps / (perf_counter() - start), loss


def comparisons(folder: Path, left: float, device: str = "cuda") -> Iterator[Row]:
    """Yield the time of one small comparison with 1, 2, 4 and 8 workers."""
    start = perf_counter()
    for workers in (1, 2, 4, 8):
        command = [
            sys.executable, "-m", "egal_bench", "compare", "--preset", "quick", "--seeds", "4", "--rounds", "1",
            "--device", device, "--workers", str(workers), "--out", str(folder / f"workers-{workers}"),
        ]  # fmt: skip
        began = perf_counter()
        status, line = Background(*command).result(left - (began - start))
        label = f"quick, 4 seeds, 1 round, {workers} worker{'s' if workers > 1 else ''}"
        if status == 0:
            yield Row("comparison", label, perf_counter() - began, "s")
        else:
            problem = "skipped" if status is None else "failed"
            yield Row("comparison", label, problem, note="no time is left" if status is None else line)
