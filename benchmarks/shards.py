"""Reading and packing shards, against stock webdataset, MosaicML Streaming, litdata, memcpy and Pillow.

Every batch of every peer is compared with the images that were packed before anything is timed. Peers that are not
installed are left out, with a message: `pip install mosaicml-streaming litdata`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.registry import Absent, Case, benchmark
from egal_bench.progress import console
from egal_shards import ShardSet, pack, verify
from egal_shards.layout import roi_shape
from egal_shards.records import Raw, Record, Source
from egal_shards.sources import phantom, siim

SAMPLES, SIZE, BATCH = 10_000, 224, 64
SIIM = Path(__file__).resolve().parents[2] / "shared" / "data" / "siim_covid19_256"
Read = Callable[[np.ndarray], Iterator[Tensor]]  # positions → u8 [B,1,S,S]


@benchmark({"10,000 of 224²": "npy"}, rounds=9)
def sequential(image_format: str, home: Path) -> Case:
    """An epoch of batches of 64 in order. `python -m benchmarks shards/sequential`

    0.71 of memcpy's rate on one core, 0.41 of its rate on both; litdata takes 1.94×, MosaicML Streaming 4.2×, stock
    webdataset 30×, with 2 workers 20×. litdata took 1.92 to 2.15× in six runs.

    Why: the first epoch of a process has checked each sample against its SHA-256 and kept a 64-bit fingerprint. From
    then on four of these batches are one call into compiled code, which holds no GIL: a preadv a sample, whose pixels
    land in the batch's memory, and one pass for the fingerprint (1 µs) while they are in the cache. That memory is used
    again, in the next epoch too, once nobody refers to it, since fresh pages cost as much as filling them.

    The same in C, without Python, takes 4.7 µs on both cores, and memcpy of as many bytes 2.8: the kernel's copy out of
    its page cache is a third slower. A mapping in its place would let a file that another process cuts end this one by
    SIGBUS. The rest is Python, of three threads on two cores. litdata maps its chunks and compares nothing.
    """
    order, mine = np.arange(SAMPLES), packed(image_format, home)
    reads = {"egal_shards": ours(mine), **memcpy(), **installed(home)}
    reads |= {f"webdataset, {n} workers": stock_webdataset(mine, "image.npy", n) for n in (0, 2)}
    return reading(reads, order)


@benchmark({"10,000 of 224²": "npy"}, rounds=9)
def random(image_format: str, home: Path) -> Case:
    """Likewise in random order. `python -m benchmarks shards/random`

    0.77 of memcpy's rate on one core, 0.62 of its rate on both; MosaicML Streaming takes 4.1×, litdata 33×.

    Why: as in order, where memcpy is faster and ours no faster. Shards stay open from batch to batch, and no read
    depends on the one before.
    """
    order, mine = np.random.default_rng(0).permutation(SAMPLES), packed(image_format, home)
    return reading({"egal_shards": ours(mine), **memcpy(), **installed(home)}, order)


@benchmark({"10,000 of 224²": "png"}, rounds=3)
def png(image_format: str, home: Path) -> Case:
    """An epoch of stock webdataset over PNG members, of ours over npy. `python -m benchmarks shards/png`

    webdataset takes 80×, with 2 workers 48×.

    Why: it inflates, and goes through tar members in Python.
    """
    theirs = packed(image_format, home)
    reads = {f"webdataset PNG, {n} workers": stock_webdataset(theirs, "image.png", n) for n in (0, 2)}
    return reading({"egal_shards": ours(packed("npy", home)), **reads}, np.arange(SAMPLES))


@benchmark({"10,000 of 224²": "npy"}, rounds=3)
def first_epoch(image_format: str, home: Path) -> Case:
    """The first epoch of a process, in which each sample is checked. `python -m benchmarks shards/first-epoch`

    138 µs a sample, 22 times memcpy's on one core.

    Why: SHA-256, of which 39 µs cannot be had for less on one core, ROI, json and tar header, in Python. The two
    threads take turns at the GIL; one alone was a third faster.
    """
    folder, order = packed(image_format, home), np.arange(SAMPLES)
    reads: dict[str, Read] = {"egal_shards": lambda positions: ours(folder)(positions), **memcpy()}
    return reading(reads, order)


@benchmark({"6334 JPEGs of 256² to 224²": SIZE}, rounds=5)
def packing(size: int, home: Path) -> Case:
    """JPEG files into a verified set, against Pillow alone in 2 threads. `python -m benchmarks shards/packing`

    435 µs a sample: 0.28 of the rate of decoding alone, 0.65 of decoding and resizing.

    The decode-bound rate is that of decoding, which nothing can do without; any packer also has to resize, for which
    Pillow's own function stands. A sample takes 500 µs of one core: Pillow decodes in 210, ours resizes to the same
    pixels in 70 where Pillow takes 240, its digest takes 40, and the rest is ROI, json, headers and copies. Forked
    processes share it, since threads took turns at the interpreter lock (777 µs); the parent adds 110 for a digest of
    the shard and its writing. Two digests alone, which the format asks for, leave no more than 0.72 of the rate of
    decoding. The set of a round is removed by the next: fresh pages for the page cache would take a fifth of the time.
    """
    if not SIIM.is_dir():
        raise Absent("siim_covid19_256 is not beside this checkout (looked in ../shared/data)")
    made = siim(SIIM, meta="labels.csv")
    files = [record.load.path for record in made.records]  # type: ignore[attr-defined]
    folder = home / "packed"

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    def resize(path: Path) -> None:
        with Image.open(path) as image:
            image.resize((size, size), Image.Resampling.BILINEAR)

    def all_by(work: Callable[[Path], None]) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda some: [work(file) for file in some], [files[i::16] for i in range(16)]))

    def pack_anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        pack(made, folder, size=size, progress=False)

    def check() -> None:
        pack_anew()
        assert verify(folder, progress=False).samples == len(files)

    contenders = {
        "pack": pack_anew,
        "Pillow decodes": partial(all_by, decode),
        "Pillow decodes and resizes": partial(all_by, resize),
    }
    return Case(contenders, len(files), check)


@benchmark({"10⁶ samples": 1_000_000}, rounds=5)
def opening(samples: int, home: Path) -> Case:
    """Opening a set of 10⁶ samples. `python -m benchmarks shards/opening`

    0.67 s.

    Why: columns come from Parquet one by one, and all rules of the index are checked on whole arrays.
    """
    folder = million(samples, home)
    return Case({"egal_shards": lambda: ShardSet(folder)}, samples, lambda: check_opened(folder, samples))


@benchmark({"10⁶ samples": 1_000_000}, rounds=1, metric="peak_mb")
def opening_memory(samples: int, home: Path) -> Case:
    """Memory that it takes at its peak, beyond the imports'. `python -m benchmarks shards/opening-memory`

    265 MB, of which 141 are the index.

    Why: a column is there twice only while it is read; offsets are checked in blocks of 65,536 rows, and keys for
    repetitions by their last letter, since Arrow's table of all would take 150 MB.
    """
    folder = million(samples, home)
    return Case({"egal_shards": lambda: alone(OPEN, folder)["mb"]}, samples, lambda: check_opened(folder, samples))


@benchmark({"30,000 of 224²": 3}, rounds=1, metric="peak_mb")
def memory(epochs: int, home: Path) -> Case:
    """Peak memory of processes that stream 30,000 and 640 samples. `python -m benchmarks shards/memory`

    784 MB and 763, of which 617 are imports (PyTorch 470). What is added: 8 bytes a sample of the set, and up to 100 MB
    of batches under way or kept for the next, whatever the number of shards.
    """
    folder = packed("npy", home)
    contenders = {
        f"after {samples}": lambda samples=samples: alone(STREAM, folder, samples)["mb"]
        for samples in (epochs * SAMPLES, 640)
    }
    return Case(contenders, epochs * SAMPLES, lambda: None)


def reading(reads: dict[str, Read], order: np.ndarray) -> Case:
    """The case of these readers, each going through `order` in batches."""

    def check() -> None:
        for name, read in reads.items():
            if name.endswith("2 workers"):
                continue  # their shards take turns
            seen = 0
            for batch in read(order):
                assert torch.equal(batch, images()[order[seen : seen + len(batch)]]), name
                seen += len(batch)
            assert seen == SAMPLES, name

    def epoch(read: Read) -> None:
        for _ in read(order):
            pass

    return Case({name: partial(epoch, read) for name, read in reads.items()}, SAMPLES, check)


@cache
def raws() -> list[Raw]:
    return [record.load() for record in phantom("chest", samples=200, size=SIZE).records]


def raw(i: int) -> Raw:
    """Chest phantoms, shifted."""
    shift, which = divmod(i, len(raws()))
    return Raw(np.roll(raws()[which].image, shift, 1), np.roll(raws()[which].mask, shift, 1))


@cache
def images() -> Tensor:
    """u8 [N,1,S,S]: what every batch of every peer is compared with."""
    return torch.from_numpy(np.stack([raw(i).image for i in range(SAMPLES)])[:, None])


def packed(image_format: str, home: Path) -> Path:
    """The folder of the set with images of a format, packed once."""
    folder = home / image_format
    if not folder.exists():
        records = [Record(f"s{i:06d}", "ab"[i // 2 % 2], f"g{i // 4}", f"{i}", partial(raw, i)) for i in range(SAMPLES)]
        pack(Source("bench", ("a", "b"), records, {}), folder, size=SIZE, image_format=image_format, progress=False)
    return folder


def ours(folder: Path) -> Read:
    shards = ShardSet(folder)
    return lambda order: (batch.images for batch in shards.batches(order, BATCH))


def memcpy() -> dict[str, Read]:
    """Images and ROI words, which a batch of ours has, from memory to where the last ones were."""
    sources = images(), torch.zeros((SAMPLES, *roi_shape(SIZE)), dtype=torch.int32) + 1
    cores = {"one core": 1, "all cores": torch.get_num_threads()}
    return {f"memcpy, {name}": partial(copied, sources, threads) for name, threads in cores.items()}


def copied(sources: tuple[Tensor, ...], threads: int, order: np.ndarray) -> Iterator[Tensor]:
    batches = [source[:BATCH].clone() for source in sources]
    before, in_order = torch.get_num_threads(), order[1] == 1
    torch.set_num_threads(threads)
    for start in range(0, len(order), BATCH):
        some = torch.from_numpy(order[start : start + BATCH])
        for source, batch in zip(sources, batches, strict=True):
            if in_order:
                batch[: len(some)].copy_(source[start : start + BATCH])
            else:
                torch.index_select(source, 0, some, out=batch[: len(some)])
        yield batches[0][: len(some)]
    torch.set_num_threads(before)


def stock_webdataset(folder: Path, member: str, workers: int) -> Read:
    """In the order of the shards only: that is all it does."""
    tars = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    data = data.decode("l8").to_tuple(member).map(lambda one: one[0].reshape(1, SIZE, SIZE))
    return lambda _: iter(DataLoader(data, BATCH, num_workers=workers))


def installed(home: Path) -> dict[str, Read]:
    """The peers that are there, with their sets written once."""
    found: dict[str, Read] = {}
    for name, package, make in (("MosaicML Streaming", "streaming", mosaicml), ("litdata", "litdata", litdata)):
        try:
            importlib.import_module(package)
        except ImportError:
            console.print(f"{name} is not installed and left out")
        else:
            found[name] = make(home / package)
    return found


def mosaicml(folder: Path) -> Read:
    import streaming

    if not folder.exists():
        columns = {"image": f"ndarray:uint8:1,{SIZE},{SIZE}", "label": "int"}
        with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=64_000_000) as out:
            for image in images().numpy():
                out.write({"image": image, "label": 0})
    data = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
    return partial(by_position, lambda i: data[i]["image"])


def litdata(folder: Path) -> Read:
    import litdata
    from litdata.streaming import Cache

    if not folder.exists():
        out = Cache(str(folder), chunk_bytes=64_000_000)
        for i, image in enumerate(images()):
            out[i] = {"image": image, "label": 0}
        out.done()
        out.merge()
    data = litdata.StreamingDataset(str(folder))
    return partial(by_position, lambda i: data[i]["image"])


def by_position(load: Callable[[int], np.ndarray], order: np.ndarray) -> Iterator[Tensor]:
    """Batches of single reads, in this process: faster than any DataLoader around them."""
    for start in range(0, len(order), BATCH):
        batch = [load(int(i)) for i in order[start : start + BATCH]]
        yield torch.stack(batch) if isinstance(batch[0], Tensor) else torch.from_numpy(np.stack(batch))


def alone(code: str, *words: object) -> dict[str, float]:
    """The JSON that a process of its own prints."""
    command = [sys.executable, "-c", PEAK + textwrap.dedent(code), *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def million(samples: int, home: Path) -> Path:
    """A synthetic set, written once: a real index and manifest, and shards that are holes."""
    folder = home / f"synthetic-{samples}"
    if not folder.exists():
        alone(SYNTHETIC, folder, samples)
    return folder


def check_opened(folder: Path, samples: int) -> None:
    assert len(ShardSet(folder)) == samples


SYNTHETIC = """
    import hashlib, json, pathlib, sys
    import numpy as np, pyarrow as pa
    from egal_shards import index, layout, manifest
    folder, n, per = pathlib.Path(sys.argv[1]), int(sys.argv[2]), 1200
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
    import json, sys
    from egal_shards import ShardSet
    import pyarrow.parquet, pyarrow.compute
    before = peak()
    shards = ShardSet(sys.argv[1])
    print(json.dumps({"mb": peak() - before}))
"""
STREAM = """
    import json, sys
    from egal_shards import ShardSet
    shards, left = ShardSet(sys.argv[1]), int(sys.argv[2])
    while left > 0:
        for batch in shards.batches(range(min(left, len(shards))), 64): pass
        left -= len(shards)
    print(json.dumps({"mb": peak()}))
"""
