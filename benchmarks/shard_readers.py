"""Readers of the same images: shards, stock webdataset, MosaicML Streaming, litdata and memcpy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader

from egal_bench.console import console
from egal_shards import ShardSet, pack
from egal_shards.layout import roi_shape
from egal_shards.records import Raw, Record, Source
from egal_shards.sources import phantom

SAMPLES, SIZE, BATCH = 10_000, 224, 64
Read = Callable[[np.ndarray], Iterator[Tensor]]  # positions → batches of images, uint8 [B, 1, SIZE, SIZE]


@cache
def images() -> Tensor:
    """Return the images, uint8 [SAMPLES, 1, SIZE, SIZE], with which every batch of every reader is compared."""
    return torch.from_numpy(np.stack([raw(i).image for i in range(SAMPLES)])[:, None])


def raw(i: int) -> Raw:
    """Return image and mask of sample i: one of 200 chest phantoms, shifted."""
    shift, number = divmod(i, len(_phantoms()))
    return Raw(np.roll(_phantoms()[number].image, shift, 1), np.roll(_phantoms()[number].mask, shift, 1))


@cache
def _phantoms() -> list[Raw]:
    return [record.load() for record in phantom("chest", samples=200, size=SIZE).records]


def packed(image_format: str, home: Path) -> Path:
    """Return the folder of the shard set with images of a format, packed below `home` once."""
    folder = home / image_format
    if not folder.exists():
        records = [Record(f"s{i:06d}", "ab"[i // 2 % 2], f"g{i // 4}", f"{i}", partial(raw, i)) for i in range(SAMPLES)]
        pack(Source("bench", ("a", "b"), records, {}), folder, size=SIZE, image_format=image_format, progress=False)
    return folder


def shard_reader(folder: Path) -> Read:
    """Return the reader of egal_shards."""
    shards = ShardSet(folder)
    return lambda order: (batch.images for batch in shards.batches(order, BATCH))


def memcpy_readers() -> dict[str, Read]:
    """Return readers that copy images and ROI words, which a batch of shards holds, from memory into one batch."""
    sources = images(), torch.ones((SAMPLES, *roi_shape(SIZE)), dtype=torch.int32)
    threads = {"one core": 1, "all cores": torch.get_num_threads()}
    return {f"memcpy, {name}": partial(_copied, sources, number) for name, number in threads.items()}


def _copied(sources: tuple[Tensor, ...], threads: int, order: np.ndarray) -> Iterator[Tensor]:
    batches = [source[:BATCH].clone() for source in sources]
    before, in_order = torch.get_num_threads(), order[1] == 1
    torch.set_num_threads(threads)
    for start in range(0, len(order), BATCH):
        positions = torch.from_numpy(order[start : start + BATCH])
        for source, batch in zip(sources, batches, strict=True):
            if in_order:
                batch[: len(positions)].copy_(source[start : start + BATCH])
            else:
                torch.index_select(source, 0, positions, out=batch[: len(positions)])
        yield batches[0][: len(positions)]
    torch.set_num_threads(before)


def webdataset_reader(folder: Path, member: str, workers: int) -> Read:
    """Return a reader of stock webdataset, which reads in the order of the shards only."""
    tars = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    data = data.decode("l8").to_tuple(member).map(lambda sample: sample[0].reshape(1, SIZE, SIZE))
    return lambda _: iter(DataLoader(data, BATCH, num_workers=workers))


def installed_readers(home: Path) -> dict[str, Read]:
    """Return the readers of the other libraries that are installed; their sets are written below `home` once."""
    readers: dict[str, Read] = {}
    for name, package, make in (
        ("MosaicML Streaming", "streaming", _mosaicml_reader), ("litdata", "litdata", _litdata_reader),
    ):  # fmt: skip
        try:
            importlib.import_module(package)
        except ImportError:
            console.print(f"{name} is not installed and left out")
        else:
            readers[name] = make(home / package)
    return readers


def _mosaicml_reader(folder: Path) -> Read:
    import streaming

    if not folder.exists():
        columns = {"image": f"ndarray:uint8:1,{SIZE},{SIZE}", "label": "int"}
        with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=64_000_000) as out:
            for image in images().numpy():
                out.write({"image": image, "label": 0})
    data = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
    return partial(_by_position, lambda i: data[i]["image"])


def _litdata_reader(folder: Path) -> Read:
    import litdata
    from litdata.streaming import Cache

    if not folder.exists():
        out = Cache(str(folder), chunk_bytes=64_000_000)
        for i, image in enumerate(images()):
            out[i] = {"image": image, "label": 0}
        out.done()
        out.merge()
    data = litdata.StreamingDataset(str(folder))
    return partial(_by_position, lambda i: data[i]["image"])


def _by_position(load: Callable[[int], np.ndarray], order: np.ndarray) -> Iterator[Tensor]:
    """Yield batches of single reads in this process, which is faster than any DataLoader around them."""
    for start in range(0, len(order), BATCH):
        batch = [load(int(i)) for i in order[start : start + BATCH]]
        yield torch.stack(batch) if isinstance(batch[0], Tensor) else torch.from_numpy(np.stack(batch))
