"""A shard set to read from: samples by position, batches on a device, every byte checked on the way."""

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
_AHEAD = 2  # runs of batches they may be ahead
_RUN = 16e6  # bytes that a thread reads at a time, in batches but at least one
_AT_ONCE = 16  # shards that a run opens at a time
_OPEN = 64  # shards that stay open for the next batches


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
    Both raise ShardError. Files stay open only while batches are read, and the set can be pickled: it is opened again
    where it arrives.
    """

    def __init__(self, path: str | Path) -> None:
        self._open(str(path), "")

    def _open(self, where: str, digest: str) -> None:
        self._transfers: dict[str, Transfer] = {}  # by device
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
        """Batches of the samples at these positions (1-d integers), in their order; the last may be short.

        Two threads read and check ahead, in runs of 16 MB: as much memory stays while one batch of a run is kept, and
        an error comes before the first batch of its run. To a CUDA device they copy from pinned memory on a stream of
        their own, beside the consumer's kernels.
        """
        wanted = np.asarray(indices)
        if wanted.size and (wanted.ndim != 1 or wanted.dtype.kind not in "iu"):
            raise ShardError(f"batches: indices must be 1-d integers, not {wanted.dtype} {list(wanted.shape)}")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise ShardError(f"batches: indices {wanted.min()}…{wanted.max()} are not all in 0…{len(self) - 1}")
        if batch_size < 1:
            raise ShardError(f"batches: batch_size {batch_size} is below 1")
        return self._batches(wanted.astype(np.int64), batch_size, self._transfer(str(device)))

    def _batches(self, wanted: np.ndarray, batch_size: int, transfer: "Transfer") -> Iterator[Batch]:
        from torch.profiler import record_function

        checked, run = self._checked, min(self._run(batch_size), len(wanted))
        opened = lru_cache(0 if self.remote else _OPEN)(self._opened)  # what is open cannot be evicted from a cache

        def fill(blank: "tuple[np.ndarray, Tensors]") -> "tuple[np.ndarray, Sent]":
            positions, tensors = blank
            with record_function("reading"):
                self._fill(positions, opened, checked, tensors[0].numpy(), tensors[1].numpy())
                return positions, transfer.send(tensors)

        # Each time that a thread lets go of the GIL others may take it: readers do as little under it as can be
        runs = (wanted[i : i + run] for i in range(0, len(wanted), run or 1))
        blanks = ((positions, self._blank(positions, run, transfer)) for positions in runs)
        with transfer, closing(ordered_map(fill, blanks, _READERS, _AHEAD)) as filled:
            for positions, sent in filled:
                tensors, keys = transfer.receive(sent), self.rows.keys(positions)
                for i in range(0, len(positions), batch_size):
                    images, roi, has_roi, labels = (tensor[i : i + batch_size] for tensor in tensors)
                    yield Batch(images, roi, has_roi, labels, keys[i : i + batch_size])

    def _run(self, batch_size: int) -> int:
        """Samples that a thread reads at a time: of many batches where Python would take as long as the copies."""
        if not self._checked:
            return batch_size
        spec = self.manifest.image
        pixels = np.dtype(spec.dtype).itemsize * spec.channels * spec.size**2  # bytes
        words = 4 * math.prod(layout.roi_shape(spec.size))
        return batch_size * max(1, int(_RUN / (batch_size * (pixels + words))))

    def _blank(self, positions: np.ndarray, run: int, transfer: "Transfer") -> "Tensors":
        """Tensors of a run, of which labels and has_roi are filled."""
        import torch

        spec, samples = self.manifest.image, len(positions)
        images = transfer.empty((run, spec.channels, spec.size, spec.size), spec.dtype)[:samples]
        roi = transfer.empty((run, *layout.roi_shape(spec.size)), "int32")[:samples]
        has_roi, labels = self.rows.roi_area[positions] > 0, self.rows.label[positions]
        return images, roi, torch.from_numpy(has_roi), torch.from_numpy(labels)  # too small for pinned memory to matter

    def _fill(
        self,
        positions: np.ndarray,
        opened: "Callable[[int], _Opened]",
        checked: "Checked | None",
        images: np.ndarray,
        roi: np.ndarray,
    ) -> None:
        """Images and ROI words of the samples at these positions."""
        homes = self.rows.shard[positions]
        shards = sorted(set(homes.tolist()))
        for few in (shards[i : i + _AT_ONCE] for i in range(0, len(shards), _AT_ONCE)):
            held = [opened(shard) for shard in few]
            descriptors = np.full(len(self.manifest.shards), -1)
            descriptors[few] = [file.descriptor for file in held]
            files = descriptors[homes]
            rest = files >= 0
            if checked:
                rest &= ~checked.read(files, positions, images, roi)
            for n in np.flatnonzero(rest):
                sample = self._read(int(positions[n]), int(files[n]))
                images[n], roi[n] = sample.image, sample.words.view("<i4")
                if checked:
                    checked.remember(positions[n], images[n], roi[n])

    def _read(self, i: int, file: int) -> Decoded:
        """Row i, from its open shard."""
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
        """The shard's file; a remote one is fetched first, and not evicted from the cache before it is closed."""
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
        """None where images have to be decoded, which takes longer than any digest."""
        from egal_shards.rereading import Checked

        return Checked(self.rows.offsets) if self.manifest.image.format == "npy" else None


class _Opened:
    """A shard's file, which is closed once nobody refers to it."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.descriptor = file, file.fileno()

    def __del__(self) -> None:
        self._file.close()


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
