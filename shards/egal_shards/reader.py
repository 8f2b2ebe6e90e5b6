"""A shard set to read from: samples by position, batches on a device, every byte checked on the way."""

import operator
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from egal_shards import layout
from egal_shards.decoding import Decoded, decode_span
from egal_shards.errors import ShardError
from egal_shards.index import Index
from egal_shards.manifest import Manifest
from egal_shards.threads import ordered_map
from egal_shards.urls import is_url, shown

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from egal_shards.remote import Remote
    from egal_shards.rereading import Checked
    from egal_shards.transfer import Sent, Transfer

_READERS = 2  # threads that read ahead of the consumer of batches
_AHEAD = 3  # batches they may be ahead
_OPEN = 16  # shards open at a time


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as it was packed."""

    key: str
    image: np.ndarray  # u8 or u16 [C,H,W]
    roi: np.ndarray  # bool [H,W]
    has_roi: bool
    label: int
    group: str
    split: str  # "pool" | "test"


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples on one device; `roi` is packed along y, `egal_shards.layout.unpack_rows` undoes it."""

    images: "torch.Tensor"  # u8 or u16 [B,C,H,W]
    roi: "torch.Tensor"  # int32 [B,W,ceil(H/32)]: bit y%32 of word y//32 of row x is pixel (y,x)
    has_roi: "torch.Tensor"  # bool [B]
    labels: "torch.Tensor"  # int64 [B]
    keys: list[str]


class ShardSet:
    """The samples of the shard set at a path or URL, in the order in which they were packed.

    Opening checks manifest, index and shard sizes against each other; reading checks each sample against its digest.
    Both raise ShardError. No file stays open, and the set can be pickled: it is opened again where it arrives.
    """

    def __init__(self, path: str | Path) -> None:
        self._open(str(path), "")

    def _open(self, where: str, digest: str) -> None:
        self.where = where  # what opens the set again; of a URL, people may see `urls.shown`
        self.remote = _remote(where, digest) if is_url(where) else None
        if self.remote:
            self.path, self.manifest = self.remote.folder, self.remote.manifest
            _check_same(where, digest, self.manifest)
            with self.remote.open(self.manifest.index):
                self.rows = Index.read(self.path, self.manifest)
            return
        self.path = Path(where)
        self.manifest = Manifest.read(self.path)
        _check_same(where, digest, self.manifest)
        for shard in self.manifest.shards:
            _check_size(self.path / shard.file, shard.bytes)
        self.rows = Index.read(self.path, self.manifest)  # the index by column, for code; `index()` is for people

    def __reduce__(self) -> tuple[Callable[[str, str], "ShardSet"], tuple[str, str]]:
        return _opened_again, (self.where if self.remote else str(self.path.absolute()), self.manifest.sha256)

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
        with self._opened(int(self.rows.shard[i])) as file:
            sample = self._read(i, file)
        return Sample(
            key=self.rows.text("key", i),
            image=sample.image,
            roi=layout.unpack_rows(sample.words, self.manifest.image.size),
            has_roi=bool(self.rows.roi_area[i]),
            label=int(self.rows.label[i]),
            group=self.rows.text("group", i),
            split=self.rows.text("split", i),
        )

    def batches(self, indices: Any, batch_size: int, device: "str | torch.device" = "cpu") -> Iterator[Batch]:
        """Batches of the samples at these positions (1-d integers), in their order; the last may be short.

        Two threads read and check a few batches ahead. To a CUDA device they copy from pinned memory on a stream of
        their own, beside the consumer's kernels.
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
        return self._batches(chunks, str(device))

    def _batches(self, chunks: Iterator[np.ndarray], device: str) -> Iterator[Batch]:
        from egal_shards.transfer import Transfer

        transfer, checked = Transfer(device), self._checked
        ahead = ordered_map(lambda chunk: self._batch(chunk, transfer, checked), chunks, _READERS, _AHEAD)
        with closing(ahead):
            for sent, keys in ahead:
                images, roi, has_roi, labels = transfer.receive(sent)
                yield Batch(images, roi, has_roi, labels, keys)

    def _batch(
        self, positions: np.ndarray, transfer: "Transfer", checked: "Checked | None"
    ) -> "tuple[Sent, list[str]]":
        from torch.profiler import record_function

        spec = self.manifest.image
        images = transfer.empty((len(positions), spec.channels, spec.size, spec.size), spec.dtype)
        roi = transfer.empty((len(positions), *layout.roi_shape(spec.size)), "int32")
        has_roi, labels = transfer.empty((len(positions),), "bool"), transfer.empty((len(positions),), "int64")
        with record_function("reading"):
            self._fill(positions, checked, images.numpy(), roi.numpy())
        has_roi.numpy()[:], labels.numpy()[:] = self.rows.roi_area[positions] > 0, self.rows.label[positions]
        return transfer.send((images, roi, has_roi, labels)), self.rows.texts_at("key", positions)

    def _fill(self, positions: np.ndarray, checked: "Checked | None", images: np.ndarray, roi: np.ndarray) -> None:
        """Images and ROI words of the samples at these positions; each shard is opened once."""
        homes = self.rows.shard[positions]
        shards = np.unique(homes)
        for few in np.split(shards, range(_OPEN, len(shards), _OPEN)):
            slots = np.flatnonzero(np.isin(homes, few))
            with ExitStack() as stack:
                opened = [stack.enter_context(self._opened(int(shard))) for shard in few]
                files = np.array(opened)[np.searchsorted(few, homes[slots])]
                rest = checked.read(files, positions[slots], slots, images, roi) if checked else range(len(slots))
                for n in rest:
                    sample = self._read(int(positions[slots[n]]), int(files[n]))
                    images[slots[n]], roi[slots[n]] = sample.image, sample.words.view("<i4")

    def _read(self, i: int, file: int) -> Decoded:
        """Row i, from its open shard."""
        start, end = self.rows.span(i)
        try:
            span = os.pread(file, end - start, start)
        except OSError as error:
            raise self._unreadable(int(self.rows.shard[i]), error) from None
        return decode_span(span, i, self.rows, self.manifest)

    def open_shard(self, number: int) -> FileIO:
        """The shard's file; a remote one is fetched first, and not evicted from the cache before it is closed."""
        if self.remote:
            return self.remote.open_shard(number)
        return FileIO(f"{self.path}/{self.manifest.shards[number].file}")

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """The descriptor of a shard."""
        try:
            file = self.open_shard(shard)
        except OSError as error:
            raise self._unreadable(shard, error) from None
        with file:
            yield file.fileno()

    def _unreadable(self, shard: int, error: OSError) -> ShardError:
        path = self.path / self.manifest.shards[shard].file
        return ShardError(f"{path}: {error.strerror}; copy or pack the set again")

    @cached_property
    def _checked(self) -> "Checked | None":
        """None where images have to be decoded, which takes longer than any digest."""
        from egal_shards.rereading import Checked

        return Checked(self.rows, self.manifest) if self.manifest.image.format == "npy" else None


def _remote(url: str, digest: str) -> "Remote":
    from egal_shards.remote import Remote  # not before there is a URL: it needs POSIX file locks

    return Remote(url, digest)


def _opened_again(where: str, digest: str) -> ShardSet:
    """The set that was pickled."""
    shards = ShardSet.__new__(ShardSet)
    shards._open(where, digest)
    return shards


def _check_same(where: str, digest: str, manifest: Manifest) -> None:
    if digest and manifest.sha256 != digest:
        raise ShardError(f"{shown(where)}: was changed since another process opened it; run it again")


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack the set again") from None
    if found != size:
        raise ShardError(f"{path}: has {found} bytes, the manifest says {size}; copy or pack the set again")
