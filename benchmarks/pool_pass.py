"""The pool pass: what explanation scoring costs beyond a forward pass, beside other libraries, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.processes import number_printed_by
from benchmarks.real_images import chest_xrays
from benchmarks.registry import Absent, Case, benchmark
from benchmarks.synthetic import synthetic_set
from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.models import inference
from egal_bench.models import network as networks
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast, chosen_precision
from egal_bench.models.process import prepare_process, reproducible
from egal_bench.profiling.peers import LIBRARIES, Peer, peers
from egal_bench.profiling.stages import Resident
from egal_bench.runs.grid import resolved
from egal_bench.scoring.pool_pass import score, scorer
from egal_bench.scoring.scores import Scores
from egal_shards import ShardSet

BATCH, IMAGES, THREADS = 32, 128, 2
NETWORKS = {"resnet18 224²": "resnet18", "densenet121 224²": "densenet121"}


def prepared(backbone: str, home: Path, images: int) -> tuple[Network, Dataset, Resident, Config]:
    """Return a network without pretrained weights, and chest X-rays with ROI as batches that it has processed."""
    torch.set_num_threads(THREADS)
    dataset = chest_xrays(home)
    config = resolved(Config(backbone=backbone, device="cpu", threads=THREADS, precision="auto"))
    network = networks.of_config(config, dataset, seed=0).eval()
    with_roi = dataset.pool[dataset.has_roi[dataset.pool]]
    positions = np.random.default_rng(0).permutation(with_roi)[:images]
    return network, dataset, Resident.of(network, dataset, positions, config, BATCH), config


@benchmark(NETWORKS, rounds=11)
def share_of_forward(backbone: str, home: Path) -> Case:
    """The pass from shards to scores, against scoring and against the forward pass alone of images in memory.

        python -m benchmarks pool_pass/share-of-forward

    All run in one precision, bfloat16 on a CPU with matrix units for it, in batches of 32 on two threads.

    Why the pass costs little more than the forward pass: the Grad-CAM is computed from the features that the forward
    pass has just made, and images are read in threads of their own. These take computing time from the network only as
    far as they use its two cores.
    """
    prepare_process()
    network, dataset, resident, config = prepared(backbone, home, IMAGES)
    network = inference.inference_network(network, "cpu", config.precision)
    step = scorer(network, config, "cpu", needs={"roi"})

    @torch.inference_mode()
    def scoring() -> list[torch.Tensor]:
        return [step(images, roi)["rows"] for images, roi in zip(resident.images, resident.rois, strict=True)]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        logits = []
        for images in resident.images:
            with autocast("cpu", config.precision):
                maps = network.features(images)
            logits.append(network.head(maps.mean((2, 3), dtype=torch.float32)))
        return torch.cat(logits)

    def pool_pass() -> Scores:
        return score(network, dataset, resident.positions, config, "cpu", needs={"roi"}, batch=BATCH)

    def check() -> None:
        np.testing.assert_allclose(pool_pass().logits, forward().numpy(), rtol=1e-4, atol=1e-5)

    contenders = {"pass from shards": pool_pass, "scoring in memory": scoring, "forward alone in memory": forward}
    return Case(contenders=contenders, samples=len(resident.positions), check=check)


@benchmark({f"{backbone} 224², {precision}": (backbone, precision)
            for backbone in NETWORKS.values() for precision in ("float32", "bfloat16")}, rounds=9)  # fmt: skip
def inference_network(case: tuple[str, str], home: Path) -> Case:
    """A pass by the folded copy of the network, alone and compiled, against a pass by the network as it was trained.

        python -m benchmarks pool_pass/inference-network

    Two threads, batches of 32. The compiled trunk is timed after its first batch. Where the CPU has no matrix units,
    bfloat16 is left out.

    Why it is faster: batch norms and activations are passes over memory that the convolutions take over. Compiled
    convolutions also take over the sums of residual blocks, and read their weights in the order in which they need
    them. Convolutions of a ResNet-18 take most of its time, so that little more can be gained there.
    """
    backbone, precision = case
    if precision == "bfloat16" and chosen_precision("auto", "cpu") != precision:
        raise Absent("this CPU has no matrix units for bfloat16")
    prepare_process()
    network, dataset, resident, config = prepared(backbone, home, IMAGES)
    config = config.model_copy(update={"precision": precision})
    folded, compiled = (inference.inference_network(network, "cpu", precision, compile) for compile in ("off", "on"))

    def pass_of(network: Network) -> Scores:
        with reproducible(THREADS):
            return score(network, dataset, resident.positions, config, "cpu", needs={"roi"}, batch=BATCH)

    def check() -> None:
        expected = pass_of(network).logits
        bound = 2e-2 if precision == "bfloat16" else 1e-4
        for copy in (folded, compiled):
            np.testing.assert_allclose(pass_of(copy).logits, expected, rtol=0, atol=bound)

    contenders = {
        "folded": partial(pass_of, folded), "as trained": partial(pass_of, network),
        "compiled": partial(pass_of, compiled),
    }  # fmt: skip
    return Case(contenders=contenders, samples=len(resident.positions), check=check)


@benchmark(NETWORKS, rounds=5)
def against_libraries(backbone: str, home: Path) -> Case:
    """Scoring a batch of 32 in memory, against Grad-CAM → resize → threshold → Dice by other libraries.

        python -m benchmarks pool_pass/against-libraries

    Each library runs as documented, in float32, in a process of its own, whose allocator is as Python leaves it: ours
    is told to keep freed memory. "(same precision)" is pytorch-grad-cam in our process, with our precision and memory
    format. The Dice of each is compared with ours, in its own convention, before any is timed. The libraries keep the
    computation graphs of their last run, which takes several gigabytes.

    Why they take longer: they run the trunk with gradients and a backward pass (torch-cam's and captum's ends at the
    layer), upsample one map per image, and get fresh memory from the system for every layer.
    """
    prepare_process()
    network, _, resident, config = prepared(backbone, home, BATCH)
    images, roi = resident.images[0], resident.rois[0]
    copy = inference.inference_network(network, "cpu", config.precision)
    step = scorer(copy, config, "cpu", needs={"roi"})

    @torch.inference_mode()
    def scoring() -> torch.Tensor:
        return step(images, roi)["rows"]

    in_this_process = peers(network, images, roi, config, libraries(same_precision=True))
    server = ProcessPoolExecutor(1, get_context("spawn"), initializer=_serve_peers, initargs=(backbone, home))
    problems = {name: peer.problem for name, peer in in_this_process.items()} | server.submit(_problems).result()
    installed = [name for name in LIBRARIES if not problems[name].startswith("not installed")]
    if not installed:
        raise Absent("no other library is installed: pip install 'egal-bench[peers]'")

    def check() -> None:
        assert not any(problems[name] for name in installed), problems

    def contender(name: str) -> Callable[[], object]:
        if name in in_this_process:
            return in_this_process[name].run
        return lambda: server.submit(_run, name).result()

    contenders = {"scoring": scoring} | {name: contender(name) for name in installed}
    return Case(contenders=contenders, samples=BATCH, check=check)


def libraries(same_precision: bool) -> dict:
    """Return the libraries that get our precision, or those that do not."""
    return {name: library for name, library in LIBRARIES.items() if library.same_precision == same_precision}


_served: dict[str, Peer] = {}  # filled in the server process only: the peers that run as documented


def _serve_peers(backbone: str, home: Path) -> None:
    """Prepare the peers in this server process, whose allocator is left as it is."""
    network, _, resident, config = prepared(backbone, home, BATCH)
    _served.update(peers(network, resident.images[0], resident.rois[0], config, libraries(same_precision=False)))


def _problems() -> dict[str, str]:
    return {name: peer.problem for name, peer in _served.items()}


def _run(name: str) -> None:
    _served[name].run()


@benchmark({"200,000 of 8²": 200_000}, rounds=1, metric="peak_mb")
def memory(samples: int, home: Path) -> Case:
    """Peak memory of a process that scores all samples of a set with a tiny network, or only 10⁴ of them.

        python -m benchmarks pool_pass/memory

    The index of the set is in memory in both cases.

    Why it hardly grows with the number of samples: a pass keeps a few numbers per sample, on disk and in memory, and
    the fingerprint of what was read. Images stay for one batch. Most of the memory is that of the libraries.
    """
    folder = home / "synthetic"
    synthetic_set(folder, samples, "ab")

    def check() -> None:
        assert len(ShardSet(folder)) == samples

    contenders = {f"{count:,} samples": partial(number_printed_by, SCORE, folder, count) for count in (samples, 10**4)}
    return Case(contenders=contenders, samples=samples, check=check)


SCORE = """
    import sys
    import numpy as np
    from egal_bench.config import Config
    from egal_bench.dataset import open_dataset
    from egal_bench.models import inference
from egal_bench.models import network as networks
    from egal_bench.scoring.pool_pass import score
    dataset, count = open_dataset(sys.argv[1]), int(sys.argv[2])
    config = Config(backbone="small-cnn", precision="float32", device="cpu")
    network = networks.of_config(config, dataset, seed=0).eval()
    scores = score(network, dataset, np.arange(count), config, "cpu", needs={"roi"}, batch=256)
    assert len(scores.entropy) == count
    print(peak())
"""
