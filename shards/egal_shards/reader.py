"""Reads a shard set: samples by position, and batches on a device. Every byte is checked."""

import math
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
    from egal_shards.transfer import Sent, Tensors, Transfer

_READERS = 2  # threads that read ahead of the consumer of batches
_AHEAD = 2  # runs that they may be ahead
_RUN = 16e6  # bytes in a run, which is what a thread reads at a time: full batches, at least one
_AT_ONCE = 16  # shards that a run opens at a time
_OPEN = 64  # shards that stay open for the next runs


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as it was packed."""

    key: str
    image: np.ndarray  # uint8 or uint16 [C,H,W]
    roi: np.ndarray  # bool [H,W]
    has_roi: bool
    label: int  # -1 in a set without labels
    group: str
    split: str  # "pool" or "test"


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples on one device. `roi` is packed along y; `egal_shards.layout.unpack_rows` unpacks it."""

    images: "torch.Tensor"  # uint8 or uint16 [B,C,H,W]
    roi: "torch.Tensor"  # int32 [B,W,ceil(H/32)]: bit y%32 of word y//32 of row x is pixel (y,x)
    has_roi: "torch.Tensor"  # bool [B]
    labels: "torch.Tensor"  # int64 [B]; -1 in a set without labels
    keys: list[str]


class ShardSet:
    """The samples of the shard set at a path or URL, in the order in which they were packed.

    Opening checks manifest, index and shard sizes against each other. Reading checks each sample against its digest.
    Both raise ShardError. Files stay open only while batches are read. A pickled set is opened again when it is
    unpickled.
    """

    def __init__(self, path: str | Path) -> None:
        self._open(str(path), "")

    @classmethod
    def without_index(cls, path: str | Path, digest: str = "") -> "ShardSet":
        """Return the set with its manifest alone: it has no samples until `with_rows` gives it some.

        A set of any size opens at once and in little memory, also where some of its shards are damaged or missing:
        those are found when `with_rows` names them, or when they are read.

        Args:
            path: Folder or URL of the set.
            digest: Digest that its manifest must have; "" for any.
        """
        shards = cls.__new__(cls)
        shards._open_manifest(str(path), digest)
        shards.rows = Index.joined([])
        return shards

    def with_rows(self, rows: Index) -> "ShardSet":
        """Return this set with these rows of its index as its samples: positions count within them.

        Raises ShardError where a shard of these rows has not the size that the manifest says.
        """
        for number in [] if self.remote else np.unique(rows.shard).tolist():
            shard = self.manifest.shards[number]
            _check_size(self.path / shard.file, shard.bytes)
        shards = ShardSet.__new__(ShardSet)
        for name in ("where", "remote", "path", "manifest", "_transfers"):
            setattr(shards, name, getattr(self, name))
        shards.rows = rows
        return shards

    def index_by_shard(self) -> Iterator[Index]:
        """Yield the rows of each shard in order, read from the index file with one shard in memory at a time."""
        if self.remote:
            with self.remote.open(self.manifest.index):
                yield from Index.by_shard(self.path, self.manifest)
        else:
            yield from Index.by_shard(self.path, self.manifest)

    def _open(self, where: str, digest: str) -> None:
        """Open the set at a path or URL. A digest that is not empty is the one that its manifest must have."""
        self._open_manifest(where, digest)
        if self.remote:
            with self.remote.open(self.manifest.index):
                self.rows = Index.read(self.path, self.manifest)
            return
        for shard in self.manifest.shards:
            _check_size(self.path / shard.file, shard.bytes)
        self.rows = Index.read(self.path, self.manifest)  # the index by column; `index()` returns it as a DataFrame

    def _open_manifest(self, where: str, digest: str) -> None:
        """Read the manifest of the set at a path or URL, and check its digest as `_open` does."""
        self._transfers: dict[str, Transfer] = {}  # one Transfer per device
        self.where = where  # opens the set again; show people `urls.shown` of it, since a URL can hold secrets
        self.remote = _remote(where, digest) if is_url(where) else None
        if self.remote:
            self.path, self.manifest = self.remote.folder, self.remote.manifest
        else:
            self.path = Path(where)
            self.manifest = Manifest.read(self.path)
        _check_same(where, digest, self.manifest)

    def __reduce__(self) -> tuple[Callable[[str, str], "ShardSet"], tuple[str, str]]:
        return _reopen, (self.where if self.remote else str(self.path.absolute()), self.manifest.sha256)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Return the name of the source that was packed."""
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes: label i is classes[i]. A set without labels has none."""
        return self.manifest.classes

    def index(self) -> "pd.DataFrame":
        """Return one row per sample, in order: key, shard, offsets, label, group, split, roi_area (pixels), sha256."""
        import pandas as pd

        table = self.rows.table
        columns: dict[str, Any] = {name: table[name].to_numpy() for name in table.column_names}
        columns["offsets"] = np.fromiter(self.rows.offsets, object, len(self))
        # Arrow strings lose entries in some shuffles of numpy; plain str objects do not
        return pd.DataFrame({name: pd.Series(column, dtype=column.dtype) for name, column in columns.items()})

    def __getitem__(self, i: SupportsIndex) -> Sample:
        """Return sample i, checked. Raises ShardError where it is damaged, IndexError where there is no such i."""
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        i %= len(self)
        file = self._opened(int(self.rows.shard[i]))
        sample = self._read(i, file.descriptor)
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
        """Yield batches of the samples at these positions, in their order; the last batch can be smaller.

        Two threads read and check ahead, in runs of 16 MB. The memory of a run is free again once no batch of it is
        in use, and an error is raised before the first batch of its run. Copies to a CUDA device start from pinned
        memory, on a stream of their own beside the kernels of the consumer. Raises ShardError.

        Args:
            indices: Positions of the samples, 1-d integers.
            batch_size: Samples per batch.
            device: Device of the tensors.
        """
        positions = np.asarray(indices)
        if positions.size and (positions.ndim != 1 or positions.dtype.kind not in "iu"):
            raise ShardError(f"batches: indices must be 1-d integers, not {positions.dtype} {list(positions.shape)}")
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            low, high = positions.min(), positions.max()
            raise ShardError(f"batches: indices {low}…{high} are not all in 0…{len(self) - 1}")
        if batch_size < 1:
            raise ShardError(f"batches: batch_size {batch_size} is below 1")
        return self._batches(positions.astype(np.int64), batch_size, self._transfer(str(device)))

    def _batches(self, positions: np.ndarray, batch_size: int, transfer: "Transfer") -> Iterator[Batch]:
        """Yield the batches of `batches`, whose arguments are checked by now."""
        from torch.profiler import record_function

        checked, run = self._checked, min(self._run_samples(batch_size), len(positions))
        # An open file cannot be evicted from the cache, so a remote set keeps none open
        opened = lru_cache(0 if self.remote else _OPEN)(self._opened)

        def fill(blank: "tuple[np.ndarray, Tensors]") -> "tuple[np.ndarray, Sent]":
            rows, tensors = blank
            with record_function("reading"):
                self._fill(rows, opened, checked, tensors[0].numpy(), tensors[1].numpy())
                return rows, transfer.send(tensors)

        # The consumer makes the tensors, and readers hold the interpreter lock as little as possible: whenever a
        # thread releases it, other threads can take it
        runs = (positions[i : i + run] for i in range(0, len(positions), run or 1))
        blanks = ((rows, self._blank(rows, run, transfer)) for rows in runs)
        with transfer, closing(ordered_map(fill, blanks, _READERS, _AHEAD)) as filled:
            for rows, sent in filled:
                tensors, keys = transfer.receive(sent), self.rows.keys(rows)
                for i in range(0, len(rows), batch_size):
                    images, roi, has_roi, labels = (tensor[i : i + batch_size] for tensor in tensors)
                    yield Batch(images, roi, has_roi, labels, keys[i : i + batch_size])

    def _run_samples(self, batch_size: int) -> int:
        """Return the number of samples in a run.

        Small batches share a run, since the Python code of a run would otherwise take as long as its copies.
        """
        if not self._checked:
            return batch_size
        spec = self.manifest.image
        pixels = np.dtype(spec.dtype).itemsize * spec.channels * spec.size**2  # bytes
        words = 4 * math.prod(layout.roi_shape(spec.size))
        return batch_size * max(1, int(_RUN / (batch_size * (pixels + words))))

    def _blank(self, positions: np.ndarray, run: int, transfer: "Transfer") -> "Tensors":
        """Return the tensors of a run: images and ROI words to be filled, has_roi and labels already filled."""
        import torch

        spec, samples = self.manifest.image, len(positions)
        images = transfer.empty((run, spec.channels, spec.size, spec.size), spec.dtype)[:samples]
        roi = transfer.empty((run, *layout.roi_shape(spec.size)), "int32")[:samples]
        has_roi, labels = self.rows.roi_area[positions] > 0, self.rows.label[positions]
        return (
            images,
            roi,
            torch.from_numpy(has_roi),
            torch.from_numpy(labels),
        )  # pinned memory would not help the small ones

    def _fill(
        self,
        positions: np.ndarray,
        opened: "Callable[[int], _Opened]",
        checked: "Checked | None",
        images: np.ndarray,
        roi: np.ndarray,
    ) -> None:
        """Fill images and ROI words with the samples at these positions."""
        shard_of = self.rows.shard[positions]
        numbers = sorted(set(shard_of.tolist()))
        for part in (numbers[i : i + _AT_ONCE] for i in range(0, len(numbers), _AT_ONCE)):
            open_files = [opened(number) for number in part]
            descriptors = np.full(len(self.manifest.shards), -1)
            descriptors[part] = [file.descriptor for file in open_files]
            files = descriptors[shard_of]
            missing = files >= 0
            if checked:
                missing &= ~checked.read(files, positions, images, roi)
            for n in np.flatnonzero(missing):
                sample = self._read(int(positions[n]), int(files[n]))
                images[n], roi[n] = sample.image, sample.words.view("<i4")
                if checked:
                    checked.remember(positions[n], images[n], roi[n])

    def _read(self, i: int, file: int) -> Decoded:
        """Return row i, read from its open shard and checked."""
        start, end = self.rows.span(i)
        try:
            span = os.pread(file, end - start, start)
        except OSError as error:
            raise self._unreadable(int(self.rows.shard[i]), error) from None
        return decode_span(span, i, self.rows, self.manifest)

    def _transfer(self, device: str) -> "Transfer":
        from egal_shards.transfer import Transfer

        if device not in self._transfers:
            self._transfers[device] = Transfer(device)
        return self._transfers[device]

    def open_shard(self, number: int) -> FileIO:
        """Return the open file of a shard.

        A remote shard is fetched first. It is not evicted from the cache before the file is closed.
        """
        if self.remote:
            return self.remote.open_shard(number)
        return FileIO(f"{self.path}/{self.manifest.shards[number].file}")

    def _opened(self, shard: int) -> "_Opened":
        try:
            return _Opened(self.open_shard(shard))
        except OSError as error:
            raise self._unreadable(shard, error) from None

    def _unreadable(self, shard: int, error: OSError) -> ShardError:
        path = self.path / self.manifest.shards[shard].file
        return ShardError(f"{path}: {error.strerror}; copy or pack the set again")

    @cached_property
    def _checked(self) -> "Checked | None":
        """Return the fingerprints, or None for PNG and JPEG, where decoding takes longer than the digest."""
        from egal_shards.rereading import Checked

        return Checked(self.rows.offsets) if self.manifest.image.format == "npy" else None


class _Opened:
    """The open file of a shard. It is closed once nothing refers to it."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.descriptor = file, file.fileno()

    def __del__(self) -> None:
        self._file.close()


def _remote(url: str, digest: str) -> "Remote":
    from egal_shards.remote import Remote  # imported only for a URL, since it needs POSIX file locks

    return Remote(url, digest)


def _reopen(where: str, digest: str) -> ShardSet:
    """Open a set again after pickling. Raises ShardError where its digest has changed."""
    shards = ShardSet.__new__(ShardSet)
    shards._open(where, digest)
    return shards


def _check_same(where: str, digest: str, manifest: Manifest) -> None:
    """Raise ShardError where a digest is given and the manifest has another one."""
    if digest and manifest.sha256 != digest:
        raise ShardError(f"{shown(where)}: has changed since another process opened it; run it again")


def _check_size(path: Path, size: int) -> None:
    """Raise ShardError unless the file has this size in bytes."""
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack the set again") from None
    if actual != size:
        raise ShardError(f"{path}: has {actual} bytes, the manifest says {size}; copy or pack the set again")
