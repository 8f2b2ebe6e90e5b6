"""The header of a JPEG or JPEG-LS stream, read without decoding it."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_SEGMENTS = 10_000  # before the first scan; files with colour profiles and previews have some hundreds
MAX_SCANS = 500  # most scans of a file; progressive files have about ten

SCAN, END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # after fill bytes; 0 after 255 is no marker
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, restarts, start of image
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of frame headers, 0xF7 of JPEG-LS
_DCT = {0xC0, 0xC1, 0xC2, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE}  # frame headers of lossy streams
_HIERARCHICAL = 0xDE


class Segment(NamedTuple):
    """One segment before the first scan."""

    marker: int
    payload: bytes


class Frame(NamedTuple):
    """What a frame header says."""

    width: int
    height: int
    precision: int  # bits per sample
    components: tuple[int, ...]  # their identifiers
    is_dct: bool


def segments(data: bytes) -> tuple[list[Segment], int]:
    """Return (the segments before the first scan, where its marker begins).

    Bytes between segments are skipped, as libjpeg does. ValueError where the stream does not begin as one, ends before
    its first scan or has more than MAX_SEGMENTS segments.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG stream")
    parts: list[Segment] = []
    for marker, at in _markers(data):
        if marker == SCAN:
            return parts, at - 2
        parts.append(Segment(marker, data[at + 2 : at + _length(data, at)]))
    raise ValueError("a JPEG stream that ends before its pixels")


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, where its length begins) of each segment that has a length."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, at)
        if not match or match[1][0] == END:
            return
        marker, at = match[1][0], match.end()
        if marker not in _ALONE:
            yield marker, at
            at += _length(data, at)
    raise ValueError(f"more than {MAX_SEGMENTS} segments in one JPEG stream")


def _length(data: bytes, at: int) -> int:
    length = int.from_bytes(data[at : at + 2], "big")
    if length < 2 or at + length > len(data):
        raise ValueError("a JPEG segment that leaves its stream")
    return length


def frame(parts: list[Segment]) -> Frame:
    """Return what the one frame header says. ValueError unless there is exactly one."""
    headers = [part for part in parts if part.marker in _FRAMES or part.marker == _HIERARCHICAL]
    if len(headers) != 1:
        raise ValueError(f"{len(headers)} frame headers in one JPEG stream")
    [(marker, payload)] = headers
    precision, height, width, count = struct.unpack_from(">BHHB", payload)
    components = tuple(payload[6 + 3 * i] for i in range(count))
    return Frame(width, height, precision, components, marker in _DCT)


def is_ycbcr(parts: list[Segment], components: tuple[int, ...]) -> bool | None:
    """Return whether the three components of a DCT stream are YCbCr (else RGB); None where the stream does not say.

    The rule is libjpeg's (`default_decompress_parms`): a JFIF marker means YCbCr, else an Adobe marker tells, else the
    identifiers 1, 2, 3 mean YCbCr and R, G, B mean RGB.
    """
    if any(part.marker == 0xE0 and part.payload.startswith(b"JFIF\0") for part in parts):
        return True
    for part in parts:
        if part.marker == 0xEE and part.payload.startswith(b"Adobe") and len(part.payload) >= 12:
            return part.payload[11] != 0
    return {(1, 2, 3): True, tuple(b"RGB"): False}.get(components)


def for_decoding(data: bytes) -> bytes:
    """Return the stream without the segments that do not decide its pixels: Exif, profiles, previews, comments.

    What follows the first picture stays and is ignored by decoders, also where it is a second picture. ValueError as
    `segments`, and for more than MAX_SCANS scans, each of which costs a pass over all pixels.
    """
    parts, scan = segments(data)
    if data.count(b"\xff\xda", scan) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans in one JPEG file")
    kept = [part for part in parts if _decides_pixels(part)]
    if len(kept) == len(parts) and scan == 2 + sum(4 + len(part.payload) for part in parts):
        return data
    head = [b"\xff" + bytes([part.marker]) + struct.pack(">H", len(part.payload) + 2) + part.payload for part in kept]
    return b"\xff\xd8" + b"".join(head) + data[scan:]


def _decides_pixels(part: Segment) -> bool:
    if part.marker == 0xE0:
        return part.payload.startswith(b"JFIF\0")
    return part.marker == 0xEE or not (0xE1 <= part.marker <= 0xEF or part.marker == 0xFE)
