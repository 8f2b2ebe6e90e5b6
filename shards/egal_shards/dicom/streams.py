"""Compressed frames, checked against their header before a decoder allocates, and made to agree with it."""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from egal_shards.dicom.syntaxes import JPEG, NATIVE, RLE
from egal_shards.errors import ShardError
from egal_shards.notes import note
from egal_shards.rasters import jpeg

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"  # how a JPEG 2000 file begins; DICOM has the codestream in it alone
_MAX_BOXES = 1000


def conform_stream(dataset: "Dataset", path: Path) -> None:
    """Change the data set to agree with its compressed frame.

    - The frame must have the declared size, so that its decoder allocates no more; else ShardError.
    - Of a JPEG 2000 file only the codestream is kept.
    - PhotometricInterpretation of a lossy JPEG frame in colour becomes what libjpeg's rule says.
    """
    from pydicom.encaps import encapsulate, generate_frames

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        return
    [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
    declared = int(dataset.Columns), int(dataset.Rows), int(dataset.SamplesPerPixel)
    if syntax == RLE:
        most = 2 * math.prod(declared) * dataset.BitsAllocated // 8 + 64
        if len(frame) > most:
            raise ShardError(
                f"{path}: its RLE frame of {len(frame)} bytes is longer than its pixels can need; replace it"
            )
        return
    if syntax in JPEG:
        parts, scan = jpeg.segments(frame)
        if frame.count(b"\xff\xda", scan) > jpeg.MAX_SCANS:
            raise ValueError(f"more than {jpeg.MAX_SCANS} scans in one JPEG stream")
        header = jpeg.frame(parts)
        size = header.width, header.height, len(header.components)
        _conform_colour(dataset, parts, header)
    else:
        if frame.startswith(_JP2):
            frame = _codestream(frame)
            dataset.PixelData = encapsulate([frame])
            dataset["PixelData"].is_undefined_length = True
        size = _jpeg2000_size(frame)
    if size != declared:
        raise ShardError(
            f"{path}: its compressed image is {'×'.join(map(str, size))} (w×h×samples), "
            f"its header says {'×'.join(map(str, declared))}; replace it"
        )


def _conform_colour(dataset: "Dataset", parts: list[jpeg.Segment], header: jpeg.Frame) -> None:
    """Set PhotometricInterpretation to the colours of a lossy frame, where the frame tells them."""
    if not header.is_dct or len(header.components) != 3:
        return
    is_ycbcr = jpeg.is_ycbcr(parts, header.components)
    says_ycbcr = str(dataset.PhotometricInterpretation) != "RGB"
    if is_ycbcr is None or is_ycbcr == says_ycbcr:
        return
    dataset.PhotometricInterpretation = "YBR_FULL" if is_ycbcr else "RGB"
    note(
        f"DICOM files whose header says {'YBR' if says_ycbcr else 'RGB'} and whose JPEG stream is "
        f"{'YCbCr' if is_ycbcr else 'RGB'}: the stream is believed"
    )


def _codestream(frame: bytes) -> bytes:
    """Return the codestream in a JPEG 2000 file. ValueError where it has none."""
    at = 0
    for _ in range(_MAX_BOXES):
        length, kind = struct.unpack_from(">I4s", frame, at)
        head = 8
        if length == 1:
            [length] = struct.unpack_from(">Q", frame, at + 8)
            head = 16
        end = at + length if length else len(frame)
        if kind == b"jp2c":
            return frame[at + head : end]
        if end <= at or end >= len(frame):
            break
        at = end
    raise ValueError("a JPEG 2000 file without codestream")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Return (width, height, components) of a JPEG 2000 codestream, by its SIZ segment."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    return right - left, bottom - top, struct.unpack_from(">H", frame, 40)[0]


def precision(dataset: "Dataset") -> int | None:
    """Return the bits per sample that a compressed frame says it has; None of one that does not say."""
    from pydicom.encaps import generate_frames

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in (*NATIVE, RLE):
        return None
    [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
    if syntax in JPEG:
        return jpeg.frame(jpeg.segments(frame)[0]).precision
    return (frame[42] & 0x7F) + 1 if len(frame) > 42 else None
