"""Reading, opening and packing shards, against stock webdataset, MosaicML Streaming, litdata, memcpy and Pillow.

Peers that are not installed are left out, with a message: `pip install mosaicml-streaming litdata`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.processes import number_printed_by
from benchmarks.real_images import real_folder
from benchmarks.registry import Case, benchmark
from benchmarks.shard_readers import (
    SAMPLES,
    SIZE,
    Read,
    images,
    installed_readers,
    memcpy_readers,
    packed,
    shard_reader,
    webdataset_reader,
)
from egal_shards import ShardSet, pack, verify
from egal_shards.sources import siim


@benchmark({"10,000 of 224²": "npy"}, rounds=9)
def sequential(image_format: str, home: Path) -> Case:
    """An epoch of batches of 64 in the order of the shards.

        python -m benchmarks shards/sequential

    Why: the first epoch of a process checks each sample against its SHA-256 and keeps a 64-bit fingerprint. From then
    on, several batches are one call into compiled code, which does not hold Python's interpreter lock: one preadv per
    sample writes the pixels into the memory of the batch, and one pass computes the fingerprint while they are in the
    cache. That memory is used again, in the next epoch too, once nobody refers to it, since fresh pages take as long as
    filling them. What remains above memcpy is the kernel's copy out of its page cache, and Python in three threads on
    two cores. A memory map would be faster, but if another process shortens the file, the map ends this process by
    SIGBUS. litdata maps its chunks and compares nothing.
    """
    order, folder = np.arange(SAMPLES), packed(image_format, home)
    readers = {"egal_shards": shard_reader(folder), **memcpy_readers(), **installed_readers(home)}
    readers |= {f"webdataset, {n} workers": webdataset_reader(folder, "image.npy", n) for n in (0, 2)}
    return reading(readers, order)


@benchmark({"10,000 of 224²": "npy"}, rounds=9)
def random(image_format: str, home: Path) -> Case:
    """An epoch of batches of 64 in random order.

        python -m benchmarks shards/random

    Why it takes as long as in the order of the shards: shards stay open from batch to batch, and no read depends on the
    one before. memcpy and litdata gain from the order.
    """
    order, folder = np.random.default_rng(0).permutation(SAMPLES), packed(image_format, home)
    return reading({"egal_shards": shard_reader(folder), **memcpy_readers(), **installed_readers(home)}, order)


@benchmark({"10,000 of 224²": "png"}, rounds=3)
def png(image_format: str, home: Path) -> Case:
    """An epoch of stock webdataset over PNG members, against an epoch of ours over npy members.

        python -m benchmarks shards/png

    Why: webdataset decompresses PNG, and goes through the members of the tar files in Python.
    """
    folder = packed(image_format, home)
    readers = {f"webdataset PNG, {n} workers": webdataset_reader(folder, "image.png", n) for n in (0, 2)}
    return reading({"egal_shards": shard_reader(packed("npy", home)), **readers}, np.arange(SAMPLES))


@benchmark({"10,000 of 224²": "npy"}, rounds=3)
def first_epoch(image_format: str, home: Path) -> Case:
    """The first epoch of a process, in which each sample is checked, against memcpy.

        python -m benchmarks shards/first-epoch

    Why: SHA-256 alone takes a good part of the time on one core. The rest is ROI, JSON and tar header, decoded in
    Python, where two threads wait for each other at the interpreter lock.
    """
    folder, order = packed(image_format, home), np.arange(SAMPLES)
    readers: dict[str, Read] = {"egal_shards": lambda positions: shard_reader(folder)(positions), **memcpy_readers()}
    return reading(readers, order)


@benchmark({"6334 JPEGs of 256² to 224²": SIZE}, rounds=5)
def packing(size: int, home: Path) -> Case:
    """JPEG files into a verified set, against Pillow alone in two threads.

        python -m benchmarks shards/packing

    The time of decoding is a bound, since nothing can do without it. Any packer also has to resize, for which Pillow's
    own function stands.

    Why: our resize gives the same pixels as Pillow's in a fraction of its time, which leaves room for digests, ROI,
    JSON, headers and copies. Forked processes share the work, since threads would take turns at the interpreter lock;
    the parent writes each shard and computes its digest. Each round removes the set of the round before, so that the
    page cache uses its pages again: fresh ones take longer.
    """
    siim_folder = real_folder("siim_covid19_256")
    source = siim(siim_folder, meta="labels.csv")
    files = [siim_folder / record.file for record in source.records]
    folder = home / "packed"

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    def resize(path: Path) -> None:
        with Image.open(path) as image:
            image.resize((size, size), Image.Resampling.BILINEAR)

    def in_two_threads(work: Callable[[Path], None]) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda part: [work(file) for file in part], [files[i::16] for i in range(16)]))

    def pack_again() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        pack(source, folder, size=size, progress=False)

    def check() -> None:
        pack_again()
        assert verify(folder, progress=False).samples == len(files)

    contenders = {
        "pack": pack_again,
        "Pillow decodes": partial(in_two_threads, decode),
        "Pillow decodes and resizes": partial(in_two_threads, resize),
    }
    return Case(contenders=contenders, samples=len(files), check=check)


@benchmark({"10⁶ samples": 1_000_000}, rounds=5)
def opening(samples: int, home: Path) -> Case:
    """The opening of a set of 10⁶ samples; it has no contender.

        python -m benchmarks shards/opening

    Why it is fast: columns are read from Parquet one by one, and all rules of the index are checked on whole arrays.
    """
    folder = synthetic_set(samples, home)

    def check() -> None:
        assert len(ShardSet(folder)) == samples

    return Case(contenders={"egal_shards": lambda: ShardSet(folder)}, samples=samples, check=check)


@benchmark({"10⁶ samples": 1_000_000}, rounds=1, metric="peak_mb")
def opening_memory(samples: int, home: Path) -> Case:
    """The memory that opening takes at its peak, beyond that of the imports; it has no contender.

        python -m benchmarks shards/opening-memory

    Why it is little more than the index: only one column at a time is in memory twice, while it is read. Offsets are
    checked in blocks of rows. Repeated keys are looked for among the keys with one last letter at a time, since a hash
    table of all keys would take as much memory as the index.
    """
    folder = synthetic_set(samples, home)

    def check() -> None:
        assert len(ShardSet(folder)) == samples

    contenders = {"egal_shards": lambda: number_printed_by(OPEN, folder)}
    return Case(contenders=contenders, samples=samples, check=check)


@benchmark({"30,000 of 224²": 3}, rounds=1, metric="peak_mb")
def memory(epochs: int, home: Path) -> Case:
    """Peak memory of a process that streams all samples, against one that streams only 640 of them.

        python -m benchmarks shards/memory

    Why: most of it is imports, PyTorch above all. Beyond these, a set takes a few bytes per sample, and batches under
    way or kept for the next ones take memory that does not grow with the number of samples or shards.
    """
    folder = packed("npy", home)

    def check() -> None:
        assert len(ShardSet(folder)) == SAMPLES

    contenders = {
        f"after {samples}": partial(number_printed_by, STREAM, folder, samples) for samples in (epochs * SAMPLES, 640)
    }
    return Case(contenders=contenders, samples=epochs * SAMPLES, check=check)


def reading(readers: dict[str, Read], order: np.ndarray) -> Case:
    """Return the case of these readers, each of which reads the samples at `order` in batches."""

    def check() -> None:
        for name, read in readers.items():
            if name.endswith("2 workers"):
                continue  # their shards take turns, so the order of their batches differs
            start = 0
            for batch in read(order):
                assert torch.equal(batch, images()[order[start : start + len(batch)]]), name
                start += len(batch)
            assert start == SAMPLES, name

    def epoch(read: Read) -> None:
        for _ in read(order):
            pass

    contenders = {name: partial(epoch, read) for name, read in readers.items()}
    return Case(contenders=contenders, samples=SAMPLES, check=check)


def synthetic_set(samples: int, home: Path) -> Path:
    """Return the folder of a set with a real index and manifest, whose shard files are sparse; written once."""
    folder = home / f"synthetic-{samples}"
    if not folder.exists():
        number_printed_by(SYNTHETIC, folder, samples)
    return folder


SYNTHETIC = """
    import hashlib, json, pathlib, sys
    import numpy as np, pyarrow as pa
    from egal_shards import index, layout, manifest
    folder, n, per = pathlib.Path(sys.argv[1]), int(sys.argv[2]), 1200
    folder.mkdir()
    size, number = 128 + 224 * 224, np.arange(n)
    span = 512 + layout.padded(size) + 1024
    begin = number % per * span
    zero = np.zeros(n, int)
    offsets = np.stack([begin + 512, zero + size, zero, zero, begin + span - 512, zero + 300], 1)
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
            file.truncate(samples * span + 1024)
        shards.append({"file": name, "bytes": samples * span + 1024, "samples": samples, "sha256": "0" * 63 + "1"})
    fields = dict(name="million", classes=["a", "b"], resize="letterbox", made={}, shards=shards)
    fields["counts"] = {"samples": n, "splits": {"pool": n, "test": 0}, "classes": {"a": n // 2, "b": n // 2}}
    fields["image"] = {"size": 224, "channels": 1, "dtype": "uint8", "format": "npy"}
    fields["index"] = {"file": "index.parquet", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "manifest.json").write_bytes(manifest.manifest_bytes(fields))
    print(0)
"""
OPEN = """
    import sys
    from egal_shards import ShardSet
    import pyarrow.parquet, pyarrow.compute
    before = peak()
    shards = ShardSet(sys.argv[1])
    print(peak() - before)
"""
STREAM = """
    import sys
    from egal_shards import ShardSet
    shards, left = ShardSet(sys.argv[1]), int(sys.argv[2])
    while left > 0:
        for batch in shards.batches(range(min(left, len(shards))), 64):
            pass
        left -= len(shards)
    print(peak())
"""
