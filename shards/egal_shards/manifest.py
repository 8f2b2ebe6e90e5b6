"""`manifest.json`: the description of a shard set, its counts, and the digest of every file in it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from egal_shards.errors import ShardError
from egal_shards.geometry import Resize
from egal_shards.layout import BLOCK, MAX_SIZE, ROI_LAYOUT, ImageDtype, ImageFormat, storable

MANIFEST = "manifest.json"
INDEX = "index.parquet"
VERSION = 1
MAX_INDEX_ROW = 4096  # bytes of the index per sample, far above what a row needs
MAX_MANIFEST = 16 << 20  # bytes

_CHECKSUM = re.compile(rb'\A\{\s*"checksum": "([0-9a-f]{64})"')
_ZEROS = "0" * 64

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Counts(_Part):
    """Numbers of samples: in all, per split and per class."""

    samples: Count
    splits: dict[Literal["pool", "test"], Count]
    classes: dict[str, Count]


class ImageSpec(_Part):
    """The shape, dtype and format of every image: dtype [channels,size,size], stored as `format`."""

    size: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    channels: Literal[1, 3]
    dtype: ImageDtype
    format: ImageFormat

    @model_validator(mode="after")
    def _storable(self) -> "ImageSpec":
        if not storable(self.format, self.dtype, self.channels):
            raise ValueError(f"{self.format} cannot store {self.dtype} with channels {self.channels}")
        return self


class ShardFile(_Part):
    """A shard: its file name, bytes, samples and digest."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]{6}\.tar$")]
    bytes: Count
    samples: Annotated[Count, Field(ge=1)]
    sha256: Digest


class IndexFile(_Part):
    """The index: its file name, bytes and digest."""

    file: Literal["index.parquet"]
    bytes: Count
    sha256: Digest


class Manifest(_Part):
    """The manifest of a set. Its `sha256` identifies the set."""

    checksum: Digest  # SHA-256 of this file with 0 for every digit of the checksum
    version: int
    name: str
    classes: tuple[str, ...]  # label i is classes[i]; none: the set has no labels, and the label of every sample is -1
    counts: Counts
    image: ImageSpec
    resize: Resize
    roi: Literal["u32-along-y"]
    shards: Annotated[tuple[ShardFile, ...], Field(min_length=1, max_length=1_000_000)]
    index: IndexFile
    made: dict[str, JsonValue]

    _sha256: str = PrivateAttr(default="")

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the manifest file, in hexadecimal. Sets are equal exactly when these digests are."""
        return self._sha256

    @field_validator("version")
    @classmethod
    def _supported(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(f"this release of egal-bench reads format {VERSION}, not format {version}")
        return version

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        """Check that the fields agree with each other."""
        if [shard.file for shard in self.shards] != [shard_name(i) for i in range(len(self.shards))]:
            raise ValueError("shards are not numbered shard-000000.tar, shard-000001.tar, … in order")
        if tuple(self.counts.classes) != self.classes:
            raise ValueError("counts.classes does not list the classes in their order, each once")
        totals = {
            "shards": sum(shard.samples for shard in self.shards),
            "counts.splits": sum(self.counts.splits.values()),
        }
        if self.classes:
            totals["counts.classes"] = sum(self.counts.classes.values())
        for part, total in totals.items():
            if total != self.counts.samples:
                raise ValueError(f"{part} add up to {total}, counts.samples is {self.counts.samples}")
        for shard in self.shards:
            if shard.bytes < 4 * BLOCK * shard.samples:  # a sample has at least two headers and two payloads
                raise ValueError(f"{shard.file} has {shard.bytes} bytes, too few for its samples ({shard.samples})")
        if self.index.bytes > MAX_INDEX_ROW * self.counts.samples + (1 << 20):
            raise ValueError(
                f"index has {self.index.bytes} bytes, too many for the samples of the set ({self.counts.samples})"
            )
        return self

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Return the manifest of the shard set in `folder`.

        Raises ShardError where the manifest is missing, damaged or of another version.
        """
        path = Path(folder) / MANIFEST
        try:
            if path.exists() and not path.is_file():
                raise ShardError(f"{path}: is not a regular file; copy or pack the set again")
            with path.open("rb") as file:
                raw = file.read(MAX_MANIFEST + 1)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}; is {folder} a shard set made by `egal-bench pack`?") from None
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: bytes, path: str) -> "Manifest":
        """Return the manifest that a file holds, or raise ShardError where it is damaged.

        Args:
            raw: The bytes of the file, or its first MAX_MANIFEST + 1 bytes where it has more.
            path: Name of the file for errors.
        """
        if len(raw) > MAX_MANIFEST:
            raise ShardError(
                f"{path}: is larger than {MAX_MANIFEST >> 20} MiB, so it is not a manifest; pack the set again"
            )
        checksum = _CHECKSUM.match(raw)
        if not checksum or checksum[1].decode() != _checksum(raw, checksum[1]):
            raise ShardError(
                f"{path}: does not match its own checksum, so it is damaged or was edited; pack the set again"
            )
        try:
            manifest = cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ShardError(f"{path}: {where + ': ' if where else ''}{message}; pack the set again") from None
        manifest._sha256 = hashlib.sha256(raw).hexdigest()
        return manifest


def shard_name(number: int) -> str:
    """Return the file name of shard `number`, counted from 0."""
    return f"shard-{number:06d}.tar"


def manifest_bytes(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest file. Equal fields give equal bytes.

    Args:
        fields: All fields of `Manifest` but checksum, version and roi.
    """
    text = json.dumps({"checksum": _ZEROS, "version": VERSION, "roi": ROI_LAYOUT, **fields}, allow_nan=False)
    raw = Manifest.model_validate_json(text).model_dump_json(indent=1).encode() + b"\n"
    return raw.replace(_ZEROS.encode(), _checksum(raw, _ZEROS.encode()).encode(), 1)


def _checksum(raw: bytes, digits: bytes) -> str:
    """Return the SHA-256 of a manifest file, in which the digits of its checksum count as zeros."""
    return hashlib.sha256(raw.replace(digits, _ZEROS.encode(), 1)).hexdigest()
