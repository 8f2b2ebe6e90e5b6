"""A shard set to read from: samples by position, batches on a device, every byte checked on the way."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from egal_shards import layout
from egal_shards.decoding import Decoded, decode_sample
from egal_shards.errors import ShardError
from egal_shards.index import Index
from egal_shards.manifest import Manifest
from egal_shards.threads import ordered_map

if TYPE_CHECKING:
    import pandas as pd
    import torch

_READERS = 2  # threads that read ahead of the consumer of batches
_AHEAD = 3  # batches they may be ahead


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as it was packed."""

    key: str
    image: np.ndarray  # u8 [C,H,W]
    roi: np.ndarray  # bool [H,W]
    has_roi: bool
    label: int
    group: str
    split: str  # "pool" | "test"


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples on one device; `roi` is packed along y, `egal_shards.layout.unpack_rows` undoes it."""

    images: "torch.Tensor"  # u8 [B,C,H,W]
    roi: "torch.Tensor"  # int32 [B,W,ceil(H/32)]: bit y%32 of word y//32 of row x is pixel (y,x)
    has_roi: "torch.Tensor"  # bool [B]
    labels: "torch.Tensor"  # int64 [B]
    keys: list[str]


class ShardSet:
    """The samples of the shard set at a path, in the order in which they were packed.

    Opening checks manifest, index and shard sizes against each other; reading checks each sample against its digest.
    Both raise ShardError. No file stays open, and the set can be pickled: it is opened again where it arrives.
    """

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise ShardError(f"{path}: remote sets are not read by this version; copy it to a local folder")
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        for shard in self.manifest.shards:
            _check_size(self.path / shard.file, shard.bytes)
        self.rows = Index.read(self.path, self.manifest)  # the index by column, for code; `index()` is for people

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[Path]]:
        return ShardSet, (self.path.absolute(),)

    def __len__(self) -> int:
        return self.manifest.counts.samples

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def index(self) -> "pd.DataFrame":
        """One row a sample, in order: key, shard, label, group, split, roi_area (pixels), offsets and sha256."""
        import pandas as pd

        table = self.rows.table
        columns: dict[str, Any] = {name: table[name].to_numpy() for name in table.column_names}
        columns["offsets"] = np.fromiter(self.rows.offsets, object, len(self))
        # Arrow strings make some numpy shuffles drop entries: plain str objects are safe
        return pd.DataFrame({name: pd.Series(column, dtype=column.dtype) for name, column in columns.items()})

    def __getitem__(self, i: SupportsIndex) -> Sample:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        i %= len(self)
        [sample] = self._read(np.array([i]))
        return Sample(
            key=self.rows.text("key", i),
            image=sample.image,
            roi=layout.unpack_rows(sample.words, self.manifest.image.size),
            has_roi=bool(self.rows.roi_area[i]),
            label=int(self.rows.label[i]),
            group=self.rows.text("group", i),
            split=self.rows.text("split", i),
        )

    def batches(self, indices: Any, batch_size: int, device: "str | torch.device" = "cpu") -> "Iterator[Batch]":
        """Batches of the samples at these positions (1-d integers), in their order; the last may be short.

        Two threads read and check a few batches ahead. On a CUDA device the copies come from pinned memory.
        """
        wanted = np.asarray(indices)
        if wanted.size and (wanted.ndim != 1 or wanted.dtype.kind not in "iu"):
            raise ShardError(f"batches: indices must be 1-d integers, not {wanted.dtype} {list(wanted.shape)}")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise ShardError(f"batches: indices {wanted.min()}…{wanted.max()} are not all in 0…{len(self) - 1}")
        if batch_size < 1:
            raise ShardError(f"batches: batch_size {batch_size} is below 1")
        wanted = wanted.astype(np.int64)
        chunks = (wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size))
        return ordered_map(lambda chunk: self._batch(chunk, str(device)), chunks, _READERS, _AHEAD)

    def _batch(self, positions: np.ndarray, device: str) -> Batch:
        import torch

        spec = self.manifest.image
        images = np.empty((len(positions), spec.channels, spec.size, spec.size), np.uint8)
        roi = np.empty((len(positions), *layout.roi_shape(spec.size)), np.int32)
        for slot, sample in enumerate(self._read(positions)):
            images[slot], roi[slot] = sample.image, sample.words.view("<i4")

        def moved(array: np.ndarray) -> "torch.Tensor":
            tensor = torch.from_numpy(array)
            return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)

        return Batch(
            images=moved(images),
            roi=moved(roi),
            has_roi=moved(self.rows.roi_area[positions] > 0),
            labels=moved(self.rows.label[positions]),
            keys=[self.rows.text("key", int(i)) for i in positions],
        )

    def _read(self, positions: np.ndarray) -> list[Decoded]:
        """The samples at these positions, in their order; each shard is opened once."""
        found: dict[int, Decoded] = {}
        homes = self.rows.shard[positions]
        for shard in np.unique(homes):
            path = self.path / self.manifest.shards[shard].file
            try:
                with path.open("rb", buffering=0) as file:
                    for slot in np.flatnonzero(homes == shard):
                        i = int(positions[slot])
                        start, end = self.rows.span(i)
                        file.seek(start)
                        payloads = self.rows.payloads(i, file.read(end - start))
                        found[int(slot)] = decode_sample(payloads, i, self.rows, self.manifest)
            except OSError as error:
                raise ShardError(f"{path}: {error.strerror}; copy or pack the set again") from None
        return [found[slot] for slot in range(len(positions))]


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack the set again") from None
    if found != size:
        raise ShardError(f"{path}: has {found} bytes, the manifest says {size}; copy or pack the set again")
