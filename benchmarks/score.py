"""`egal-bench score`: its memory on a large pool, and what a second process gains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.processes import number_printed_by
from benchmarks.registry import Case, benchmark
from benchmarks.synthetic import synthetic_set
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.models.network import of_config
from egal_bench.models.saving import network_file
from egal_bench.querying.query import Request, run_query
from egal_bench.runs.local_engine import load_ahead
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom

SMALL = 10_000  # samples of the pool with which a large one is compared
TOP = 1000


@benchmark({"1,000,000 of 8²": 1_000_000}, rounds=1, metric="peak_mb")
def memory(samples: int, home: Path) -> Case:
    """Peak memory of a process that scores a large pool with a tiny network, or a small one.

        python -m benchmarks score/memory

    The pool is one shard set, in shards of equal size, without labels.

    Why it does not grow with the pool: of the index, the images and the scores, one shard is in memory at a time, and
    besides it the best samples so far. Most of the memory is that of the libraries.
    """
    folders = {count: home / f"pool-{count}" for count in (samples, SMALL)}
    for count, folder in folders.items():
        synthetic_set(folder, count)

    def check() -> None:
        for count, folder in folders.items():
            assert ShardSet.without_index(folder).manifest.counts.samples == count

    contenders = {
        f"{count:,} samples": partial(number_printed_by, SCORE, folder, home / f"scores-{count}", TOP)
        for count, folder in folders.items()
    }
    return Case(contenders=contenders, samples=samples, check=check)


@benchmark({"24,000 of 64², resnet18": 24_000}, rounds=2)
def workers(samples: int, home: Path) -> Case:
    """A query with two processes, against one, from shards to query.csv.

        python -m benchmarks score/workers

    Why the gain is below 2: starting the processes, the ranking and the contact sheet are the work of one core, and one
    core is idle while the last shard is scored. All of this weighs less in larger pools.
    """
    folder, network = home / "score-phantom", home / "network.safetensors"
    if not folder.is_dir():
        pack(phantom(samples=samples, size=64), folder, size=64, shard_mb=1, progress=False)
        dataset, config = open_dataset(folder), Config(backbone="resnet18", device="cpu")
        network.write_bytes(network_file(of_config(config, dataset, 0), dataset, config))
    load_ahead("finetune")

    def contender(count: int) -> Callable[[], Path]:
        out = home / f"score-{count}"

        def query() -> Path:
            shutil.rmtree(out, ignore_errors=True)
            run_query(Request((str(folder),), network, out, "egal", 100, Config(workers=count, device="cpu")))
            return out

        return query

    def check() -> None:
        queries = [(contender(count)() / "query.csv").read_bytes() for count in (1, 2)]
        assert queries[0] == queries[1]

    contenders = {"two processes": contender(2), "one process": contender(1)}
    return Case(contenders=contenders, samples=samples, check=check)


SCORE = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    from egal_bench.config import Config
    from egal_bench.models.network import build
    from egal_bench.models.saving import network_file
    from egal_bench.querying.query import Request, run_query
    from egal_shards import ShardSet
    folder, out, top = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    shards, config = ShardSet.without_index(folder), Config(backbone="small-cnn", device="cpu", workers=1)
    network = build("small-cnn", 2, image_channels=1, image_size=8, size=None, seed=0)
    described = SimpleNamespace(manifest=shards.manifest, classes=("a", "b"))
    file = out.with_name(f"{out.name}.safetensors")
    file.write_bytes(network_file(network, SimpleNamespace(shards=described), config))
    result = run_query(Request((folder,), file, out, "egal", top, config))
    assert result.samples == shards.manifest.counts.samples, result
    print(peak())
"""
