"""The pool pass: what explanation scoring costs beyond a forward pass, beside other libraries, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.chest import chest_xrays
from benchmarks.registry import Absent, Case, benchmark
from egal_bench import model, precision
from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.model import Network
from egal_bench.pool_pass import score, scorer
from egal_bench.precision import autocast
from egal_bench.profile_peers import LIBRARIES, Peer, peers
from egal_bench.profile_stages import Resident

BATCH, IMAGES, THREADS = 32, 128, 2
NETWORKS = {"resnet18 224²": "resnet18", "densenet121 224²": "densenet121"}


def prepared(backbone: str, home: Path, images: int) -> tuple[Network, Dataset, Resident, Config]:
    """A network without pretrained weights, in the faster precision, and X-rays with ROI on their way through it."""
    torch.set_num_threads(THREADS)
    dataset = chest_xrays(home)
    config = Config(backbone=backbone, device="cpu", threads=THREADS)
    config = config.model_copy(update={"precision": precision.chosen(config, dataset, "cpu")})
    network = model.of_config(config, dataset, seed=0).eval()
    with_roi = dataset.pool[dataset.has_roi[dataset.pool]]
    positions = np.random.default_rng(0).permutation(with_roi)[:images]
    return network, dataset, Resident.of(network, dataset, positions, config, BATCH), config


@benchmark(NETWORKS, rounds=11)
def share_of_forward(backbone: str, home: Path) -> Case:
    """The pass from shards to scores, against scoring and against the forward pass alone of images in memory.

        python -m benchmarks pool_pass/share-of-forward

    All in one precision, bfloat16 where that is faster, in batches of 32 on two threads. Without bfloat16 units
    the pass runs at 0.99 of the forward pass (ResNet-18) and 1.00 (DenseNet-121), scoring at 0.99 and 1.00.

    Why: the Grad-CAM comes from the features that the forward pass has just made, and reading happens in threads of its
    own, which take from the network what they use of the two cores.
    """
    network, dataset, there, config = prepared(backbone, home, IMAGES)
    step = scorer(network, config, "cpu", overlap=True)

    @torch.inference_mode()
    def scoring() -> list[torch.Tensor]:
        return [step(images, roi)["rows"] for images, roi in zip(there.images, there.rois, strict=True)]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        logits = []
        for images in there.images:
            with autocast("cpu", config.precision):
                maps = network.features(images)
            logits.append(network.head(maps.mean((2, 3), dtype=torch.float32)))
        return torch.cat(logits)

    def whole():
        return score(network, dataset, there.positions, config, "cpu", overlap=True, batch=BATCH)

    def check() -> None:
        np.testing.assert_allclose(whole().logits, forward().numpy(), rtol=1e-4, atol=1e-5)

    contenders = {"pass from shards": whole, "scoring in memory": scoring, "forward alone in memory": forward}
    return Case(contenders, len(there.positions), check)


@benchmark(NETWORKS, rounds=5)
def against_libraries(backbone: str, home: Path) -> Case:
    """Scoring a batch of 32 in memory, against Grad-CAM → resize → threshold → Dice by other libraries.

        python -m benchmarks pool_pass/against-libraries

    Each as documented, in float32, in a process of its own whose allocator is as Python leaves it, since ours is told
    to keep what is freed; "(same precision)" is pytorch-grad-cam in our process, with our precision and memory format.
    Their Dice is compared with ours, in their own convention, before any is timed.

    On a CPU without bfloat16 matrix units pytorch-grad-cam takes 3.7 times as long for ResNet-18 and 5.3 for
    DenseNet-121, 3.1 and 3.5 at the same precision, MONAI 3.8 and 5.4; torch-cam and captum, whose backward pass ends
    at the layer, 1.4 for ResNet-18, 3.6 and 4.3 for DenseNet-121. Five minutes, and 16 GB for graphs that they keep.

    Why: they run the trunk with gradients and a full backward pass, upsample a map an image, and get fresh pages from
    the system for every layer.
    """
    network, _, there, config = prepared(backbone, home, BATCH)
    images, roi = there.images[0], there.rois[0]
    step = scorer(network, config, "cpu", overlap=True)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return step(images, roi)["rows"]

    here = peers(network, images, roi, config, {name: library for name, library in LIBRARIES.items() if library.same})
    apart = ProcessPoolExecutor(1, get_context("spawn"), initializer=_serve_peers, initargs=(backbone, home))
    wrong = {name: peer.why for name, peer in here.items()} | apart.submit(_wrong).result()
    there_are = [name for name, why in wrong.items() if not why.startswith("not installed")]
    if not there_are:
        raise Absent("no other library is installed: pip install 'egal-bench[peers]'")

    def check() -> None:
        assert not any(wrong[name] for name in there_are), wrong

    def contender(name: str) -> Callable[[], object]:
        return here[name].run if name in here else lambda: apart.submit(_run, name).result()

    return Case({"scoring": ours} | {name: contender(name) for name in LIBRARIES if name in there_are}, BATCH, check)


_peers: dict[str, Peer] = {}  # of the process apart


def _serve_peers(backbone: str, home: Path) -> None:
    """Prepare the peers as documented, in a process that has not been told to keep memory."""
    with patch.object(model, "keep_freed_memory"):
        network, _, there, config = prepared(backbone, home, BATCH)
    apart = {name: library for name, library in LIBRARIES.items() if not library.same}
    _peers.update(peers(network, there.images[0], there.rois[0], config, apart))


def _wrong() -> dict[str, str]:
    return {name: peer.why for name, peer in _peers.items()}


def _run(name: str) -> None:
    _peers[name].run()


@benchmark({"200,000 of 8²": 200_000}, rounds=1, metric="peak_mb")
def memory(samples: int, home: Path) -> Case:
    """Peak memory of a process that scores all samples of a set, or 10⁴ of them, with a tiny network.

        python -m benchmarks pool_pass/memory

    839 MB and 831: 40 bytes a sample, the scores, and nothing that an image's size enters. Most is libraries, 90 MB
    the index of the set. Of 10⁶ samples, whose index is larger, 1116 and 1011 MB, in four minutes:

        python -c "from benchmarks.pool_pass import *; [print(name, run()) for name, run in
            memory(10**6, Path('NEW FOLDER')).contenders.items()]"

    Why: of a pass stay the scores, 48 bytes a sample here, on disk and in memory, and the fingerprint of what was read;
    images live for a batch.
    """
    alone(SYNTHETIC, home / "synthetic", samples)

    def peak(count: int) -> Callable[[], float]:
        return lambda: alone(PASS, home / "synthetic", count)

    return Case({f"{count:,} samples": peak(count) for count in (samples, 10**4)}, samples, lambda: None)


def alone(code: str, *words: object) -> float:
    """The number that a process of its own prints."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


SYNTHETIC = """
    import sys
    import numpy as np
    from egal_shards import pack
    from egal_shards.records import Raw, Record, Source
    from pathlib import Path

    class Records:
        def __len__(self):
            return int(sys.argv[2])
        def __getitem__(self, i):
            image = np.full((8, 8), i % 251, np.uint8)
            image[i % 8] = 255 - i % 7
            return Record(f"s{i:07d}", "ab"[i // 2 % 2], f"g{i}", f"{i}", lambda: Raw(image, image > 250))
        def __iter__(self):
            return (self[i] for i in range(len(self)))

    if not Path(sys.argv[1]).is_dir():
        pack(Source("synthetic", ("a", "b"), Records(), {}), sys.argv[1], size=8, progress=False)
    print(0)
"""
PASS = """
    import re, sys
    from pathlib import Path
    import numpy as np
    from egal_bench import model
    from egal_bench.config import Config
    from egal_bench.dataset import open_dataset
    from egal_bench.pool_pass import score
    dataset = open_dataset(sys.argv[1])
    config = Config(backbone="small-cnn", precision="float32", device="cpu")
    network = model.of_config(config, dataset, seed=0).eval()
    score(network, dataset, np.arange(int(sys.argv[2])), config, "cpu", overlap=True, batch=256)
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""
