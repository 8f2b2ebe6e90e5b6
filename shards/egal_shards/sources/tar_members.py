"""Members of a foreign tar by position. Hostile tars are refused; nothing is extracted, and no size is trusted."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from egal_shards.errors import ShardError
from egal_shards.sources.files import open_regular

_BLOCK = 512
_LONGEST_EXTENSION = 1 << 16  # bytes of a PAX header or a long name
_LONGEST_PADDING = 1 << 26  # bytes of zeros after the end marker that are read
_LARGEST_TAR = 1 << 62
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_SKIPPED = (tarfile.DIRTYPE,)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    tar: Path
    name: str  # relative, without ..
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def read(self, limit: int) -> bytes:
        """Return the payload. Raise ShardError where it has more than `limit` bytes."""
        if self.size > limit:
            raise ShardError(f"{self}: has {self.size} bytes, more than the {limit} that are read of its kind")
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Return the payload as a file."""
        return io.BytesIO(self.read(1 << 29))


def members(tar: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar (ustar, PAX, GNU) in order. Payloads are skipped, not read.

    Directories are skipped. Raise ShardError for links, devices, sparse files, global and size-changing PAX headers,
    absolute names and names with .., for a tar without its end marker, which was cut short, and for one with more than
    zeros after its end marker, which is several tars in one file.
    """
    try:
        with open_regular(tar, _LARGEST_TAR) as file:
            yield from _members(tar, file, tar.stat().st_size)
    except OSError as error:
        raise ShardError(f"{tar}: {error.strerror}; check the path") from None


def _members(tar: Path, file: BinaryIO, end: int) -> Iterator[Member]:
    long_name, at = "", 0
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            _check_padding(tar, file)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise ShardError(
                f"{tar}: byte {at} is no tar header ({error}); it is cut short, damaged or compressed"
            ) from None
        offset = at + _BLOCK
        if not 0 <= info.size <= end - offset:
            raise ShardError(f"{tar}: {info.name!r} claims {info.size} bytes, which the file does not have; replace it")
        at = offset + -(-info.size // _BLOCK) * _BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if info.size > _LONGEST_EXTENSION:
                raise ShardError(f"{tar}: byte {offset - _BLOCK} is a header of {info.size} bytes; no honest one is")
            payload = file.read(info.size)
            is_pax = info.type == tarfile.XHDTYPE
            long_name = (_pax_path(payload, tar) if is_pax else _text(payload.rstrip(b"\0"), tar)) or long_name
            continue
        name, long_name = long_name or info.name, ""
        if info.type in _FILES:
            yield Member(tar, _inside(name, tar), offset, info.size)
        elif info.type not in _SKIPPED:
            raise ShardError(
                f"{tar}: {name!r} is a link, device, sparse file or the like (type {info.type!r}), "
                "which a set of images has no use for; pack the tar anew with plain files"
            )


def _check_padding(tar: Path, file: BinaryIO) -> None:
    """Raise ShardError unless only zeros follow the end marker. `file` stands right after its first block."""
    start = file.tell()
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            at = file.tell() - len(chunk.lstrip(b"\0"))
            raise ShardError(
                f"{tar}: has data after its end marker, at byte {at}, as when tars are joined by cat, and readers skip "
                "them; unpack the file by tar --ignore-zeros -xf, and pack what it holds into a new tar"
            )
        if file.tell() - start > _LONGEST_PADDING:
            raise ShardError(f"{tar}: has more than {_LONGEST_PADDING} bytes after its end marker; pack it anew")


def _inside(name: str, tar: Path) -> str:
    """Return the name as a relative path. Raise ShardError where it leads out of the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ShardError(f"{tar}: {name!r} leads out of the archive; no tar that does so is read")
    return str(path)


def _pax_path(payload: bytes, tar: Path) -> str:
    """Return the path in a PAX header, "" where it has none. Its records are "LENGTH KEY=VALUE\\n"."""
    path, at = "", 0
    while at < len(payload):
        length, _, _ = payload[at : at + 20].partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(payload) - at:
            raise ShardError(f"{tar}: a PAX header in it is damaged; replace it")
        record = payload[at + len(length) + 1 : at + int(length) - 1]
        key, _, value = record.partition(b"=")
        if key in (b"size", b"linkpath") or key.startswith(b"GNU.sparse"):
            raise ShardError(
                f"{tar}: a PAX header changes {_text(key, tar)!r}; pack the tar anew with plain files below 8 GB"
            )
        if key == b"path":
            path = _text(value, tar)
        at += int(length)
    return path


def _text(raw: bytes, tar: Path) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ShardError(f"{tar}: a name in it is not UTF-8; rename the file") from None
