"""The chunks of a PNG file, read without decoding it."""

import struct
from io import BytesIO
from typing import IO

MAX_CHUNKS = 100_000  # a file of 100 million pixels in chunks of 8 KiB has fewer

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # what decides the pixels of the first picture


def for_decoding(file: IO[bytes]) -> tuple[IO[bytes], int]:
    """Return (a file without the chunks that do not decide pixels, the number of frames that it announces).

    Colour profiles and texts of any size are left out, so that no decoder inflates them. A file that is no sound
    sequence of chunks is returned as it is, for the decoder to refuse.
    """
    kept, dropped, frames = [], False, 1
    file.seek(len(_SIGNATURE))
    for _ in range(MAX_CHUNKS):
        start = file.tell()
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            frames = max(1, int.from_bytes(file.read(4), "big"))
        if kind in _PIXELS:
            kept.append((start, 12 + length))
        else:
            dropped = True
        file.seek(start + 12 + length)
        if kind == b"IEND":
            return (_joined(file, kept), frames) if dropped else (file, frames)
    return file, frames


def _joined(file: IO[bytes], spans: list[tuple[int, int]]) -> IO[bytes]:
    """Return a file in memory of the signature and these (start, length) spans."""
    out = BytesIO()
    out.write(_SIGNATURE)
    for start, length in spans:
        file.seek(start)
        out.write(file.read(length))
    return out
