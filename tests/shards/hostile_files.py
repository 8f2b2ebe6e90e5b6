"""Files that are made to do harm, or that are not what their names say."""

import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib

from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more, rows=b"", depth=8, colour=0):
    """Return a PNG that declares this size, whatever rows of pixels it holds."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )  # fmt: skip


def jpeg(width, height):
    """Return a JPEG of 8×8 pixels that declares another size."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    return re.sub(rb"(\xff\xc0..\x08)....", rb"\1" + struct.pack(">HH", height, width), stream.getvalue(), flags=re.S)


def zipped(data, name="../trace"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def tarred(data, name="../trace"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


NESTED = {  # archives, and archives in archives, of 64 MB of zeros
    "zip": zipped(bytes(64 << 20)),
    "zip in a zip": zipped(zipped(bytes(64 << 20)), "k.png"),
    "tar": tarred(b"x"),
    "compressed tar": gzip.compress(tarred(bytes(64 << 20))),
    "tar in a tar": tarred(tarred(b"x"), "k.png"),
}
