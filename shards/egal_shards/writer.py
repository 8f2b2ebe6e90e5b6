"""Encoded samples into the files of a set: shards as they fill, then index and manifest."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from egal_shards import layout
from egal_shards.errors import ShardError
from egal_shards.index import SCHEMA, index_bytes
from egal_shards.manifest import INDEX, MANIFEST, manifest_bytes, shard_name

_END = bytes(2 * layout.BLOCK)  # what closes a tar


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be written."""

    row: dict[str, Any]  # of the index, but for its shard; offsets count from the sample's first byte
    data: bytes  # its members


def encode(
    key: str, about: layout.SampleJson, roi_area: int, image: bytes, roi: bytes, image_format: layout.ImageFormat
) -> Encoded:
    """A sample of these payloads (roi: empty where there is none). ShardError where its json is too long."""
    text = about.to_bytes()
    if len(text) > layout.MAX_SAMPLE_JSON:
        raise ShardError(
            f"{about.file}: has too many boxes ({len(about.boxes)}) to be stored; merge them or use a mask"
        )
    names = iter(layout.members(key, image_format, roi_area > 0))
    blocks: list[bytes] = []
    offsets: list[int] = []
    digest, end = hashlib.sha256(), 0
    for payload in (image, roi, text):
        digest.update(payload)
        offsets += (end + layout.BLOCK if payload else 0, len(payload))
        if payload:
            blocks += [layout.member_header(next(names), len(payload)), payload, bytes(-len(payload) % layout.BLOCK)]
            end += layout.BLOCK + layout.padded(len(payload))
    row = {
        "key": key, "offsets": offsets, "label": about.label, "group": about.group, "split": about.split,
        "roi_area": roi_area, "sha256": digest.digest(),
    }  # fmt: skip
    return Encoded(row, b"".join(blocks))


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

    def add(self, sample: Encoded) -> None:
        """Append a sample to the open shard, or to a new one where it would not fit."""
        base = self._make_room(len(sample.data))
        self._append(sample.data)
        self._shards[-1]["samples"] += 1
        image, size, roi, roi_size, text, text_size = sample.row["offsets"]
        offsets = [base + image, size, base + roi if roi_size else 0, roi_size, base + text, text_size]
        for name, value in (sample.row | {"shard": len(self._shards) - 1, "offsets": offsets}).items():
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
            # Large writes make large pages in the cache, which are read faster
            self._file = (self._folder / name).open("xb", buffering=1 << 20)
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
