"""Reading and packing shards against stock webdataset, MosaicML Streaming, litdata, memcpy and PIL.

    pytest benchmarks/bench_shards.py --benchmark-only -s

On 2 cores, 224² in one channel, median µs a sample (least), and how many times longer the peers take:

| | egal_shards | peer |
|---|---|---|
| in order | 29 (21) | memcpy 45 (7.2): 1.5× (0.34×) |
| at random | 55 (30) | memcpy 55 (26): 1.0× (0.85×) |
| in order | 25 (22) | stock webdataset, PNG: 76×, with 2 workers 33× |
| in order | 25 | stock webdataset, npy: 83×, with 2 workers 28× |
| in order, at random | 23, 27 | MosaicML Streaming: 4.7×, 4.0× |
| in order | 18 | litdata: 1.5× |
| first epoch of a process | 292 | memcpy 6.2: 0.02×; SHA-256 alone is 39 |
| packing 6334 JPEGs | 913 | PIL decoding and resizing: 0.39×, in 2 threads each |

A set of 10⁶ samples opens in 2.0 s and 413 MB. Streaming 30,000 samples adds 19 MB to the peak of the first 640.

Peers that are not installed are skipped, with a message. Before anything is timed, every batch of every peer is
compared with the images that were packed. Each peer runs once before each timed round of ours, so that a busy machine
slows all alike.

Why: a sample is checked against its SHA-256, its ROI and its json the first time that a process reads it (the first
epoch is bound by SHA-256), and its 64-bit fingerprint is kept. From then on a batch is one call into compiled code,
which holds no GIL: a preadv a sample, whose pixels land in the batch's memory, and one pass for the fingerprint. The
memory of a batch is used again once nobody refers to it, since the kernel takes as long to provide fresh pages as to
fill them, and begins at a cache line, since some processors' kernels copy five times more slowly elsewhere.
"""

import importlib
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from egal_shards import ShardSet, pack
from egal_shards.records import Raw, Record, Source
from egal_shards.sources import phantom, siim

SAMPLES, SIZE, BATCH, ROUNDS = 10_000, 224, 64, 5
SIIM = Path(__file__).resolve().parents[2] / "shared" / "data" / "siim_covid19_256"


@pytest.fixture(scope="session")
def raws() -> Callable[[int], Raw]:
    """Chest phantoms, shifted."""
    drawn = [record.load() for record in phantom("chest", samples=200, size=SIZE).records]

    def load(i: int) -> Raw:
        raw, shift = drawn[i % len(drawn)], i // len(drawn)
        return Raw(np.roll(raw.image, shift, 1), np.roll(raw.mask, shift, 1))

    return load


@pytest.fixture(scope="session")
def packed(raws, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the set with images of a format, packed once."""
    home = tmp_path_factory.mktemp("shards")
    records = [Record(f"s{i:06d}", "ab"[i // 2 % 2], f"g{i // 4}", f"{i}", partial(raws, i)) for i in range(SAMPLES)]

    def folder(image_format: str) -> Path:
        if not (home / image_format).exists():
            pack(Source("bench", ("a", "b"), records, {}), home / image_format, size=SIZE, image_format=image_format)
        return home / image_format

    return folder


@pytest.fixture(scope="session")
def images(raws) -> Tensor:
    """u8 [N,1,S,S]: what every batch of every peer is compared with."""
    return torch.from_numpy(np.stack([raws(i).image for i in range(SAMPLES)])[:, None])


def ours(folder: Path) -> Callable[[np.ndarray], Iterator[Tensor]]:
    shards = ShardSet(folder)
    return lambda order: (batch.images for batch in shards.batches(order, BATCH))


def stock_webdataset(folder: Path, member: str, workers: int) -> Callable[[np.ndarray], Iterator[Tensor]]:
    """Sequential only: that is all it does."""
    tars = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    data = data.decode("l8").to_tuple(member).map(lambda one: one[0].reshape(1, SIZE, SIZE))
    return lambda _: iter(DataLoader(data, BATCH, num_workers=workers))


def mosaicml(folder: Path, images: Tensor) -> Callable[[np.ndarray], Iterator[Tensor]]:
    streaming = pytest.importorskip(
        "streaming", reason="MosaicML Streaming is not installed: pip install mosaicml-streaming"
    )
    columns = {"image": f"ndarray:uint8:1,{SIZE},{SIZE}", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=64_000_000) as out:
        for image in images.numpy():
            out.write({"image": image, "label": 0})
    data = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
    return partial(by_position, lambda i: data[i]["image"])


def litdata(folder: Path, images: Tensor) -> Callable[[np.ndarray], Iterator[Tensor]]:
    module = pytest.importorskip("litdata", reason="litdata is not installed: pip install litdata")
    cache = importlib.import_module("litdata.streaming").Cache(str(folder), chunk_bytes=64_000_000)
    for i, image in enumerate(images):
        cache[i] = {"image": image, "label": 0}
    cache.done()
    cache.merge()
    data = module.StreamingDataset(str(folder))
    return partial(by_position, lambda i: data[i]["image"])


def by_position(load: Callable[[int], np.ndarray], order: np.ndarray) -> Iterator[Tensor]:
    """Batches of single reads, in this process: faster than any DataLoader around them."""
    for start in range(0, len(order), BATCH):
        batch = [load(int(i)) for i in order[start : start + BATCH]]
        yield torch.stack(batch) if isinstance(batch[0], Tensor) else torch.from_numpy(np.stack(batch))


def epoch(read: Callable[[np.ndarray], Iterator[Tensor]], order: np.ndarray) -> None:
    for _ in read(order):
        pass


def compare(benchmark, name: str, run: Callable[[], None], peers: dict[str, Callable], rounds: int = ROUNDS) -> None:
    """Time `run` by pytest-benchmark, each peer once before each round; print µs a sample, median and least."""
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}

    def run_peers() -> None:
        for peer, other in peers.items():
            start = time.perf_counter()
            other()
            seconds[peer].append(time.perf_counter() - start)

    benchmark.pedantic(run, setup=run_peers, rounds=rounds)
    times = {"egal_shards": benchmark.stats.stats.data} | seconds
    best = {peer: [f(values) / SAMPLES * 1e6 for f in (median, min)] for peer, values in times.items()}
    benchmark.extra_info["µs a sample, median and least"] = best
    mine = best["egal_shards"]
    print(f"\n{name}, µs a sample, median (least), and times ours:")
    for peer, (middle, least) in best.items():
        print(f"  {peer:32} {middle:8.1f} ({least:.1f})   {middle / mine[0]:.2f}× ({least / mine[1]:.2f}×)")


@pytest.mark.parametrize("order", ["sequential", "random"])
@pytest.mark.parametrize("peer", ["memcpy", "webdataset PNG", "webdataset npy", "mosaicml", "litdata"])
def test_batches(benchmark, packed, images, tmp_path, order, peer):
    """An epoch of batches of 64, by position."""
    if order == "random" and peer.startswith("webdataset"):
        pytest.skip("stock webdataset reads in the order of the shards only")
    positions = np.arange(SAMPLES) if order == "sequential" else np.random.default_rng(0).permutation(SAMPLES)
    mine = ours(packed("npy"))
    memory = torch.empty((BATCH, *images.shape[1:]), dtype=torch.uint8)

    def memcpy(order: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, SAMPLES, BATCH):
            batch = memory[: len(order[start : start + BATCH])]
            if positions[1] == 1:
                yield batch.copy_(images[start : start + BATCH])
            else:
                yield torch.index_select(images, 0, torch.from_numpy(order[start : start + BATCH]), out=batch)

    reads = {
        "memcpy": lambda: {"memcpy": memcpy},
        "webdataset PNG": lambda: {
            f"webdataset PNG, {n} workers": stock_webdataset(packed("png"), "image.png", n) for n in (0, 2)
        },
        "webdataset npy": lambda: {
            f"webdataset npy, {n} workers": stock_webdataset(packed("npy"), "image.npy", n) for n in (0, 2)
        },
        "mosaicml": lambda: {"mosaicml": mosaicml(tmp_path / "mds", images)},
        "litdata": lambda: {"litdata": litdata(tmp_path / "lit", images)},
    }[peer]()
    for name, read in {"egal_shards": mine, **reads}.items():
        if not name.endswith("2 workers"):
            seen = 0
            for batch in read(positions):
                assert torch.equal(batch, images[positions[seen : seen + len(batch)]]), name
                seen += len(batch)
            assert seen == SAMPLES, name
    peers = {name: partial(epoch, read, positions) for name, read in reads.items()}
    compare(benchmark, f"{order} epoch", partial(epoch, mine, positions), peers, 25 if peer == "memcpy" else ROUNDS)


def test_first_epoch(benchmark, packed, images):
    """Of a process: SHA-256, ROI and json of every sample are checked."""
    order = np.arange(SAMPLES)
    epoch(ours(packed("npy")), order[:BATCH])  # compiled
    source = images.clone()
    peers = {"memcpy": lambda: images.copy_(source)}
    compare(benchmark, "first epoch", lambda: epoch(ours(packed("npy")), order), peers, 3)


def test_pack(benchmark, tmp_path):
    """6334 JPEG files, against PIL's decoding and resizing alone in as many threads."""
    if not SIIM.is_dir():
        pytest.skip("siim_covid19_256 is not beside this checkout (looked in ../shared/data)")
    made = siim(SIIM, meta="labels.csv")
    files = sorted(SIIM.rglob("*.jpg"))
    assert len(files) == len(made.records)

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR).load()

    def decode_all() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, files))

    runs = iter(range(99))
    run = lambda: pack(made, tmp_path / str(next(runs)), size=SIZE, progress=False)  # noqa: E731
    compare(benchmark, "pack (of 10,000)", run, {"PIL": decode_all}, 3)


def alone(code: str, *words: object) -> dict[str, float]:
    """The JSON that a process of its own prints."""
    command = [sys.executable, "-c", PEAK + textwrap.dedent(code), *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def test_opening_a_million_samples(benchmark, tmp_path):
    """Of a synthetic set: a real index and manifest, and shards that are holes."""
    alone(MILLION, tmp_path / "set")
    found = benchmark.pedantic(lambda: alone(OPEN, tmp_path / "set"), rounds=3)
    print(f"\nopening 10⁶ samples: {found['seconds']:.2f} s, {found['mb']:.0f} MB more than the imports")


def test_memory_is_flat(benchmark, packed):
    """Peak memory after 1 % and after 300 % of the samples."""
    found = benchmark.pedantic(lambda: alone(STREAM, packed("npy")), rounds=1)
    print(f"\npeak memory after 100 samples {found['first']:.0f} MB, after {3 * SAMPLES} {found['last']:.0f} MB")
    assert found["last"] - found["first"] < 40


MILLION = """
    import hashlib, json, pathlib, sys
    import numpy as np, pyarrow as pa
    from egal_shards import index, layout, manifest
    folder, n, per = pathlib.Path(sys.argv[1]), 1_000_000, 1200
    folder.mkdir()
    size, number = 128 + 224 * 224, np.arange(n)
    one = 512 + layout.padded(size) + 1024
    begin = number % per * one
    zero = np.zeros(n, int)
    offsets = np.stack([begin + 512, zero + size, zero, zero, begin + one - 512, zero + 300], 1)
    digests = np.random.default_rng(0).bytes(32 * n)
    columns = {
        "key": [f"patient_{i // 4:06d}_slice_{i % 4}" for i in range(n)], "shard": number // per,
        "offsets": pa.FixedSizeListArray.from_arrays(pa.array(offsets.reshape(-1)), 6),
        "label": number % 2, "group": [f"patient_{i // 4:06d}" for i in range(n)], "split": ["pool"] * n,
        "roi_area": zero, "sha256": [digests[i : i + 32] for i in range(0, 32 * n, 32)],
    }
    raw = index.index_bytes(columns)
    (folder / "index.parquet").write_bytes(raw)
    shards = []
    for k in range(-(-n // per)):
        samples = min(per, n - k * per)
        name = manifest.shard_name(k)
        with (folder / name).open("wb") as file:
            file.truncate(samples * one + 1024)
        shards.append({"file": name, "bytes": samples * one + 1024, "samples": samples, "sha256": "0" * 63 + "1"})
    fields = dict(name="million", classes=["a", "b"], resize="letterbox", made={}, shards=shards)
    fields["counts"] = {"samples": n, "splits": {"pool": n, "test": 0}, "classes": {"a": n // 2, "b": n // 2}}
    fields["image"] = {"size": 224, "channels": 1, "dtype": "uint8", "format": "npy"}
    fields["index"] = {"file": "index.parquet", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "manifest.json").write_bytes(manifest.manifest_bytes(fields))
    print("{}")
"""
PEAK = """
import re
from pathlib import Path
def peak():  # getrusage would count the parent of a forked process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
"""
OPEN = """
    import json, sys, time
    from egal_shards import ShardSet
    import pyarrow.parquet, pyarrow.compute
    before = peak()
    start = time.perf_counter()
    shards = ShardSet(sys.argv[1])
    seconds = time.perf_counter() - start
    assert len(shards) == 10**6
    print(json.dumps({"seconds": seconds, "mb": peak() - before}))
"""
STREAM = """
    import json, sys
    from egal_shards import ShardSet
    shards = ShardSet(sys.argv[1])
    for batch in shards.batches(range(640), 64): pass
    first = peak()
    for _ in range(3):
        for batch in shards.batches(range(len(shards)), 64): pass
    print(json.dumps({"first": first, "last": peak()}))
"""
