"""Encoded samples into the files of a set: shards as they fill, then index and manifest."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from egal_shards import layout
from egal_shards.index import SCHEMA, index_bytes
from egal_shards.manifest import INDEX, MANIFEST, manifest_bytes, shard_name

_END = bytes(2 * layout.BLOCK)  # what closes a tar


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be written."""

    key: str
    about: layout.SampleJson
    roi_area: int
    payloads: tuple[bytes, bytes, bytes]  # image, roi (empty where there is none), json


class SetWriter:
    """Writes shards of at most `shard_bytes` (but of one sample at least) into a folder."""

    def __init__(self, folder: Path, shard_bytes: float) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, sample: Encoded, image_format: str) -> None:
        """Append a sample to the open shard, or to a new one where it would not fit."""
        names = iter(layout.members(sample.key, image_format, sample.roi_area > 0))
        blocks: list[bytes] = []
        offsets: list[tuple[int, int]] = []
        end = 0
        for payload in sample.payloads:
            if payload:
                padded = payload.ljust(layout.padded(len(payload)), b"\0")
                blocks += [layout.member_header(next(names), len(payload)), padded]
                offsets.append((end + layout.BLOCK, len(payload)))
                end += layout.BLOCK + len(padded)
            else:
                offsets.append((0, 0))
        base = self._make_room(end)
        self._append(b"".join(blocks))
        self._shards[-1]["samples"] += 1
        row = {
            "key": sample.key,
            "shard": len(self._shards) - 1,
            "offsets": [value for at, size in offsets for value in ((base + at if size else 0), size)],
            "label": sample.about.label,
            "group": sample.about.group,
            "split": sample.about.split,
            "roi_area": sample.roi_area,
            "sha256": hashlib.sha256(b"".join(sample.payloads)).digest(),
        }
        for name, value in row.items():
            self._rows[name].append(value)

    def finish(self, classes: tuple[str, ...], **fields: Any) -> None:
        """Close the last shard, and write the index and the manifest with these fields."""
        self._finish_shard()
        index = index_bytes(self._rows)
        _write(self._folder / INDEX, index)
        splits, labels = Counter(self._rows["split"]), Counter(self._rows["label"])
        counts = {
            "samples": len(self._rows["key"]),
            "splits": {split: splits[split] for split in layout.SPLITS},
            "classes": {name: labels[label] for label, name in enumerate(classes)},
        }
        described = {"file": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
        fields |= {"classes": classes, "counts": counts, "shards": self._shards, "index": described}
        _write(self._folder / MANIFEST, manifest_bytes(fields))

    def _make_room(self, size: int) -> int:
        """Where the next `size` bytes begin in the shard that will take them."""
        if self._file is None or self._shards[-1]["bytes"] + size + len(_END) > self._shard_bytes:
            self._finish_shard()
            name = shard_name(len(self._shards))
            self._file = (self._folder / name).open("xb")
            self._digest = hashlib.sha256()
            self._shards.append({"file": name, "bytes": 0, "samples": 0})
        return self._shards[-1]["bytes"]

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._shards[-1]["bytes"] += len(data)

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._append(_END)
        _close(self._file)
        self._shards[-1]["sha256"] = self._digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _close(file)


def _close(file: BinaryIO) -> None:
    """Close a file once its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
