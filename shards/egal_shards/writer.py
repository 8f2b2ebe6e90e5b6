"""Writes the files of a set: shards as they fill up, then the index, then the manifest."""

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

_END = bytes(2 * layout.BLOCK)  # the end marker of a tar


@dataclass(frozen=True)
class Encoded:
    """A sample that is ready to be written."""

    row: dict[str, Any]  # row of the index, without its shard; offsets count from the first byte of the sample
    data: bytes  # its tar members
    notes: tuple[str, ...] = ()  # what was noticed when it was read


def encode(
    key: str, contents: layout.SampleJson, roi_area: int, image: bytes, roi: bytes, image_format: layout.ImageFormat,
    notes: tuple[str, ...] = (),
) -> Encoded:  # fmt: skip
    """Return the sample with these payloads. Raises ShardError where its json is too long.

    Args:
        key: Key of the sample.
        contents: Contents of its json.
        roi_area: Pixels of the ROI; 0 without an ROI.
        image: Payload of the image.
        roi: Payload of the ROI; empty without an ROI.
        image_format: Format of the image payload.
        notes: What was noticed when the sample was read.
    """
    text = contents.to_bytes()
    if len(text) > layout.MAX_SAMPLE_JSON:
        raise ShardError(
            f"{contents.file}: has too many boxes ({len(contents.boxes)}) to be stored; merge them or use a mask"
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
        "key": key, "offsets": offsets, "label": contents.label, "group": contents.group, "split": contents.split,
        "roi_area": roi_area, "sha256": digest.digest(),
    }  # fmt: skip
    return Encoded(row, b"".join(blocks), notes)


class SetWriter:
    """A writer of a set into a folder, in shards of at most `shard_bytes` or of one sample."""

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
        """Append a sample to the open shard, or to a new shard where it does not fit."""
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
        index_file = {"file": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
        fields |= {"classes": classes, "counts": counts, "shards": self._shards, "index": index_file}
        _write(self._folder / MANIFEST, manifest_bytes(fields))

    def _make_room(self, size: int) -> int:
        """Open a new shard where `size` more bytes do not fit. Return the offset at which they will begin."""
        if self._file is None or self._shards[-1]["bytes"] + size + len(_END) > self._shard_bytes:
            self._finish_shard()
            name = shard_name(len(self._shards))
            # Large writes make large pages in the page cache, which are faster to read
            self._file = (self._folder / name).open("xb", buffering=1 << 20)
            self._digest = hashlib.sha256()
            self._shards.append({"file": name, "bytes": 0, "samples": 0})
        return self._shards[-1]["bytes"]

    def _append(self, data: bytes) -> None:
        """Append bytes to the open shard."""
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._shards[-1]["bytes"] += len(data)

    def _finish_shard(self) -> None:
        """Write the end of the open shard, if there is one, and close it."""
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
    """Flush a file to the disk and close it."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
