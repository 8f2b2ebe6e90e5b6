"""What large files cost: each is read in a process whose memory is bounded in proportion to the pixels of the file.

The bound is 2.5 GB for the largest file that is read, of 100 million pixels. `make fuzz` tries such files. The ordinary
tests try a quarter of these pixels, and a tenth of the elements of a DICOM file.
"""

import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from profiles import is_thorough
from shards.hostile_files import chunk

SIDE = 10_000 if is_thorough() else 5_000  # pixels; the largest image has 10,000
BOUND = 25 * SIDE**2  # bytes for one file, beyond the program itself
READS = 1_000_000 if is_thorough() else 100_000  # elements and items of a DICOM file; 1,000,000 are allowed

READ = """
    import resource, sys
    from pathlib import Path
    from egal_shards import ShardError, geometry
    from egal_shards.images import read_image, read_mask
    from egal_shards.intensity import fit_image

    name, use, bound = sys.argv[1:]
    for line in open("/proc/self/status"):
        if line.startswith("VmSize"):
            limit = 1024 * int(line.split()[1]) + int(bound)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        if use == "mask":
            mask = read_mask(Path(name))
            geometry.resize_mask(mask, geometry.place(*mask.shape[::-1], 64, "squash"))
        else:
            image = read_image(Path(name), (0, 100) if use == "window" else None)
            fit_image(image, geometry.place(image.shape[1], image.shape[0], 64, "squash"), 3, "uint16")
        print("read")
    except ShardError as error:
        print(error)
"""


LIMIT_READS = f"""
    from egal_shards.dicom import parsing
    assert parsing.MAX_READS == 1_000_000
    parsing.MAX_READS = {READS}
"""


def reading(path, use, prelude=""):
    """Return what a process that reads a file says, after the statements of `prelude`."""
    command = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(READ), str(path), use, str(BOUND)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


def png_of_zeros(path, width, height, samples, colour):
    squeezer = zlib.compressobj(1)
    rows = b"".join(squeezer.compress(bytes(1 + samples * width)) for _ in range(height)) + squeezer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(("use", "samples", "colour"), [("window", 3, 2), ("mask", 4, 6)])
def test_memory_of_colours_is_proportional_to_pixels(tmp_path, use, samples, colour):
    assert reading(png_of_zeros(tmp_path / "a.png", SIDE, SIDE, samples, colour), use) == "read"


def test_an_image_of_one_long_row_is_refused(tmp_path):
    assert "has 100000000×1 (w×h) pixels" in reading(png_of_zeros(tmp_path / "a.png", 100_000_000, 1, 1, 0), "image")


def test_memory_of_dicom_is_proportional_to_pixels(tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom import uid

    from shards.dicom_files import write

    values = np.zeros((SIDE, SIDE), np.uint32)
    values[0, 0] = 9
    elements = {"RescaleSlope": 2, "PixelPaddingValue": 3, "PhotometricInterpretation": "MONOCHROME1"}
    path = write(tmp_path / "a.dcm", values, uid.DeflatedExplicitVRLittleEndian, **elements)
    assert reading(path, "image") == "read"


def test_a_profile_that_inflates_without_end(tmp_path):
    squeezer, blocks = zlib.compressobj(1), BOUND // (1 << 24) + 8
    bomb = b"".join(map(squeezer.compress, [bytes(1 << 24)] * blocks)) + squeezer.flush()
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    good = path.read_bytes()
    path.write_bytes(good[:33] + chunk(b"iCCP", b"key\0\0" + bomb) + good[33:])
    assert reading(path, "image") == "read"


def test_a_deflated_data_set_of_endless_items(tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom import dcmread, uid

    from shards.dicom_files import write

    path = write(tmp_path / "a.dcm", np.zeros((9, 9), np.uint8), uid.DeflatedExplicitVRLittleEndian)
    raw = path.read_bytes()
    start = 144 + dcmread(path).file_meta.FileMetaInformationGroupLength
    squeezer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    items = [b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff", *[b"\xfe\xff\0\xe0\0\0\0\0" * (READS // 10)] * 30]
    path.write_bytes(raw[:start] + b"".join(map(squeezer.compress, items)) + squeezer.flush())
    assert f"has more than {READS} elements" in reading(path, "image", LIMIT_READS)
