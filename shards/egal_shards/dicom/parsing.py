"""From the bytes of a file to a pydicom data set, in bounded time and memory."""

import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from egal_shards.dicom.syntaxes import DEFLATED, EXPLICIT, IMPLICIT
from egal_shards.errors import ShardError
from egal_shards.sniffing import HEAD, describe

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.tag import BaseTag

MAX_ELEMENTS = 10_000  # most elements at the top of a data set
MAX_READS = 1_000_000  # about one per element and item, at any depth
MAX_BYTES = 1 << 29  # largest file, also after a deflated one is inflated

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_SYNTAX = "Transfer Syntax UID (0002,0010)"


class _Stream(BytesIO):
    """Bytes that end where the file ends, whatever lengths it declares, and that bound how often they are read."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError(f"more than {MAX_READS} elements")
        return super().read(size)


def begins_as_dicom(path: Path) -> bool:
    """Return whether the first bytes of a file are those of DICOM, with or without its preamble."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _start(file.read(HEAD)) is not None
    except OSError:
        return False


def parse(path: Path) -> "Dataset":
    """Return the data set of a file, whose bytes and inflated bytes are bounded.

    A preamble and file meta information may be missing. Without a transfer syntax the data set is read as little
    endian; ShardError names that element where this yields no image.
    """
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    raw = _bytes_of(path)
    start = _start(raw[:HEAD])
    if start is None:
        kind, fix = describe(raw[:HEAD])
        actual = f" but {kind}" if kind else ""
        raise ShardError(f"{path}: is not a DICOM file{actual}; {fix or 'replace it, or name it by what it is'}")
    stream = _Stream(raw)
    stream.seek(start)
    meta = _meta(stream)
    declared = meta.get("TransferSyntaxUID")
    syntax = UID(declared or _assumed_syntax(raw, stream.tell()))
    if syntax == DEFLATED:
        stream = _Stream(_inflated(stream.read(), path))
    try:
        dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=_bounded())
        if not declared:
            _check_assumption(dataset, path)
    except (ValueError, EOFError, KeyError, OSError, NotImplementedError) as error:
        if stream.reads > MAX_READS:  # which pydicom may have reported as something else
            raise ShardError(
                f"{path}: has more than {MAX_READS} elements; no image needs so many, replace it"
            ) from None
        if declared or isinstance(error, ShardError):
            raise
        raise ShardError(
            f"{path}: has no {_SYNTAX} and does not read as little endian ({error}); export it again with one"
        ) from None
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    return dataset


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ShardError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; export the image alone")
        return path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the path") from None


def _start(head: bytes) -> int | None:
    """Return where the first element lies; None where nothing looks like DICOM."""
    if head[128:132] == b"DICM":
        return 132
    if head[:4] == b"DICM":
        return 4
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    if group not in (2, 8) or element > 0x0100 or len(head) < 16:
        return None
    length = int.from_bytes(head[4:8], "little")
    return 0 if head[4:6] in _VRS or length <= 256 else None


def _meta(stream: BytesIO) -> "FileMetaDataset":
    """Return the file meta information, which is empty where it is missing."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    return FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2))


def _assumed_syntax(raw: bytes, at: int) -> str:
    """Return the little endian syntax that the first element is written in."""
    return EXPLICIT if raw[at + 4 : at + 6] in _VRS else IMPLICIT


def _check_assumption(dataset: "Dataset", path: Path) -> None:
    """Raise ShardError unless a data set without a transfer syntax makes sense, and its pixels are not compressed."""
    if not any(name in dataset for name in ("SOPClassUID", "Rows", "PixelData")):
        raise ShardError(f"{path}: has no {_SYNTAX} and does not read as little endian; export it again with one")
    pixels = dataset.get_item("PixelData") if "PixelData" in dataset else None
    if pixels is not None and (pixels.value or b"")[:4] == b"\xfe\xff\x00\xe0":
        raise ShardError(f"{path}: has compressed pixels and no {_SYNTAX} that says how; export it again with one")


def _bounded() -> Callable[["BaseTag", str | None, int], bool]:
    """Return a condition that never stops reading, but raises ValueError at more elements than an image has."""
    counter = count()

    def stop(tag: "BaseTag", vr: str | None, length: int) -> bool:
        if next(counter) == MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements")
        return False

    return stop


def _inflated(data: bytes, path: Path) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, MAX_BYTES)
    if not inflater.eof:
        what = f"inflates to more than {MAX_BYTES >> 20} MiB" if len(plain) == MAX_BYTES else "is cut short"
        raise ShardError(f"{path}: its deflated data set {what}; replace it")
    return plain
