"""PNG, JPEG and TIFF files as the world has them, and as people who mean harm write them."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardError
from egal_shards.images import read_image, read_mask
from shards.hostile_files import chunk, png

GREY = np.random.default_rng(0).integers(0, 256, (9, 13), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (9, 13)).astype(np.uint16)
SMOOTH = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
COLOUR = np.stack([SMOOTH * 2, 200 - SMOOTH, SMOOTH + 60], axis=-1).astype(np.uint8)


def tiff(values, photometric, order="<", extra=(), following=0, compress=False, bits=None):
    """An uncompressed or deflated TIFF of one strip, written by hand; `extra` are (tag, type, count, value) entries."""
    bits = bits or 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compress else data
    height, width = values.shape
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 8 if compress else 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data)), *extra,
    ]  # fmt: skip
    block = b"".join(
        struct.pack(order + "HHI", tag, kind, count) + struct.pack(order + ("I" if kind == 4 else "HH"), *
        ((value,) if kind == 4 else (value, 0)))
        for tag, kind, count, value in sorted(entries)
    )  # fmt: skip
    data += bytes(len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(entries)) + block + struct.pack(order + "I", following)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflated"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("values", [GREY, DEEP], ids=["8", "16"])
def test_tiff_grey_in_both_interpretations(tmp_path, values, photometric, order, compress):
    (tmp_path / "a.tif").write_bytes(tiff(values, photometric, order, compress=compress))
    pixels = read_image(tmp_path / "a.tif")
    top = np.iinfo(values.dtype).max
    assert pixels.dtype == values.dtype
    assert np.array_equal(pixels, values if photometric else top - values)


@pytest.mark.parametrize("photometric", [0, 1])
def test_16_bit_tiff_masks_in_both_interpretations(tmp_path, photometric):
    values = (GREY > 100) * np.uint16(65535)
    (tmp_path / "a.tif").write_bytes(tiff(values if photometric else 65535 - values, photometric))
    assert np.array_equal(read_mask(tmp_path / "a.tif"), GREY > 100)


def test_16_bit_png_keeps_its_values(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), DEEP)


def encoded(image, image_format="JPEG", **settings):
    stream = io.BytesIO()
    image.save(stream, image_format, **settings)
    return stream.getvalue()


def test_a_jpeg_of_several_pictures_is_the_first(tmp_path):
    pictures = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    (tmp_path / "a.jpg").write_bytes(encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=95))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - SMOOTH).max() <= 3


@pytest.mark.parametrize(
    "settings", [{"progressive": True}, {"icc_profile": bytes(300_000)}, {"comment": "x" * 60_000}]
)
def test_jpeg_files_of_every_kind(tmp_path, settings):
    data = encoded(Image.fromarray(COLOUR), quality=95, exif=Image.Exif(), **settings)
    (tmp_path / "a.jpg").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(image))


def test_cmyk_jpeg_has_the_colours_it_was_made_of(tmp_path):
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    (tmp_path / "a.jpg").write_bytes(encoded(cmyk, quality=98))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - COLOUR).max() <= 12


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_png_with_a_large_profile_or_text(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    good = encoded(Image.fromarray(COLOUR), "PNG")
    at = 8 + 25  # after IHDR
    extra = chunk(name, b"key\0\0" + zlib.compress(noise))
    (tmp_path / "a.png").write_bytes(good[:at] + extra + good[at:])
    assert np.array_equal(read_image(tmp_path / "a.png"), COLOUR)


def test_png_transparency_and_palette_survive_a_large_text(tmp_path):
    palette = Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    good = encoded(palette, "PNG")
    (tmp_path / "a.png").write_bytes(good[:33] + chunk(b"tEXt", b"key\0" + b"x" * 2_000_000) + good[33:])
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


PAGE = b"\n<!DOCTYPE html>\n<html><head><title>403</title></head></html>"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"but an empty file \(0 bytes\); copy or download it again"),
        (PAGE, r"but a web page \(HTML\); download the file itself again"),
        (b"\xef\xbb\xbf<html>", r"but a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "but a Git LFS pointer; fetch .* git lfs pull"),
        (b"GIF89a" + bytes(40), "but a GIF file; convert it to PNG"),
        (b"%PDF-1.7\n" + bytes(40), "but a PDF file"),
        (b'{"error": "quota"}\n', "but a text file"),
        (bytes(range(200, 250)), "file; convert it to PNG"),
    ],
)
def test_files_are_called_what_they_are(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    for read in (read_image, read_mask):
        with pytest.raises(ShardError, match=rf"{name}: is not a PNG or JPEG or BMP or TIFF file {message}|{message}"):
            read(tmp_path / name)


def test_a_layout_that_is_not_read_is_no_foreign_file(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(DEEP, 9))
    with pytest.raises(ShardError, match="is a TIFF file of a layout that is not read, or damaged; save it as"):
        read_image(tmp_path / "a.tif")


def test_signed_8_bit_tiff_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(GREY, 1, extra=[(339, 3, 1, 2)]))
    with pytest.raises(ShardError, match="holds signed 8-bit pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("sides", [(100_000_000, 1), (1, 70_000), (65_536, 400), (201, 1), (40_200, 200)])
def test_sides_of_no_real_image_are_refused(tmp_path, sides, read):
    (tmp_path / "a.png").write_bytes(png(*sides))
    with pytest.raises(ShardError, match=rf"has {sides[0]}×{sides[1]} \(w×h\) pixels; sides of at most 65535"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("sides", [(200, 1), (1, 200), (13, 9)])
def test_sides_that_may_be_real_are_read(tmp_path, sides):
    Image.new("L", sides).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == sides[::-1]


def test_frames_are_not_counted(tmp_path):
    """A directory that points to a second one is enough, also where that one is never read."""
    one = tiff(GREY, 1)
    (tmp_path / "a.tif").write_bytes(tiff(GREY, 1, following=len(one)) + b"garbage")
    with pytest.raises(ShardError, match=r"a.tif: holds more than one frame; save the one you want"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(tiff(GREY, 1, following=len(one) + 10))  # behind the end: viewers ignore it
    assert np.array_equal(read_image(tmp_path / "a.tif"), GREY)


def test_animated_png_is_refused(tmp_path):
    good = encoded(Image.fromarray(GREY), "PNG")
    (tmp_path / "a.png").write_bytes(good[:33] + chunk(b"acTL", struct.pack(">II", 7, 0)) + good[33:])
    with pytest.raises(ShardError, match="holds 7 frames"):
        read_image(tmp_path / "a.png")


def test_tags_that_overlap_cost_no_memory(tmp_path):
    """3000 tags that all point at the same megabyte would be read 3000 times."""
    tags = [(40_000 + i, 1, 1_000_000) for i in range(3000)]
    data = tiff(GREY, 1, extra=[(tag, 4, count // 4, 8) for tag, _, count in tags]) + bytes(1_000_000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ShardError, match=r"declares 3000000000 bytes of tags and has \d+ in all"):
        read_image(tmp_path / "a.tif")


def test_tiles_beyond_any_image_are_refused(tmp_path):
    extra = [(322, 4, 1, 60_000), (323, 4, 1, 60_000)]
    (tmp_path / "a.tif").write_bytes(tiff(GREY, 1, extra=extra))
    with pytest.raises(ShardError, match=r"has tiles of 60000×60000 \(w×h\) pixels"):
        read_image(tmp_path / "a.tif")


def test_endless_scans_are_refused(tmp_path):
    data = encoded(Image.fromarray(SMOOTH), progressive=True)
    at = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:at] + data[at:-2] * 600 + data[-2:])
    with pytest.raises(ShardError, match="more than 500 scans in one JPEG file"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xe1\0\2"])
def test_endless_markers_end(tmp_path, filler):
    data = encoded(Image.fromarray(SMOOTH))
    (tmp_path / "a.jpg").write_bytes(data[:2] + filler * 3_000_000 + data[2:])
    if filler in (b"\xff", b"\xff\0"):  # fill bytes and garbage, which decoders skip
        assert read_image(tmp_path / "a.jpg").shape == SMOOTH.shape
    else:
        with pytest.raises(ShardError, match="more than 10000 segments in one JPEG stream"):
            read_image(tmp_path / "a.jpg")


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, read_mask):
        with pytest.raises(ShardError, match=r"a.png: is a pipe, socket or device"):
            read(tmp_path / "a.png")
