"""The bytes of members: numpy and tarfile read them, and any difference is refused."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_shards import ShardError, layout


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_roi_bit_y_of_row_x_is_pixel_y_x(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    words = layout.pack_rows(mask)
    assert words.dtype == np.dtype("<u4")
    assert words.shape == (width, (height + 31) // 32)
    for x in range(width):
        for y in range(words.shape[1] * 32):
            bit = int(words[x, y // 32]) >> (y % 32) & 1
            assert bit == (mask[y, x] if y < height else 0)
    assert np.array_equal(layout.unpack_rows(words, height), mask)


@pytest.mark.parametrize("size", [8, 31, 224, 4096])
def test_npy_headers_equal_those_of_numpy(size):
    for array in (np.zeros((3, size, 8), np.uint8), np.zeros(layout.roi_shape(size), "<u4")):
        stream = io.BytesIO()
        np.save(stream, array)
        header = layout.npy_header(array.dtype.str, array.shape)
        assert stream.getvalue()[: layout.HEADER] == header
        assert len(stream.getvalue()) == layout.HEADER + array.nbytes


@given(st.integers(0, layout.HEADER * 8 - 1))
@settings(deadline=None)
def test_any_flipped_header_bit_is_refused(bit):
    payload = bytearray(layout.encode_image(np.zeros((8, 8), np.uint8), "npy"))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ShardError, match="shard: an array"):
        layout.decode_image(bytes(payload), "npy", "uint8", 1, 8, "shard")


def test_pickled_object_and_other_shapes_are_refused():
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    good = layout.encode_image(np.zeros((8, 8), np.uint8), "npy")
    for payload in (
        stream.getvalue(),
        good[:-1],
        good + b"\0",
        b"",
        layout.encode_image(np.zeros((4, 16), np.uint8), "npy"),
    ):
        with pytest.raises(ShardError):
            layout.decode_image(payload, "npy", "uint8", 1, 8, "shard")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_png_and_npy_are_lossless_and_jpg_close(shape):
    y, x = np.mgrid[:8, :8]
    image = np.broadcast_to((16 * y + 8 * x)[..., None], (8, 8, 3)).astype(np.uint8)[
        ..., : shape[2] if shape[2:] else 1
    ]
    image = image.reshape(shape)
    planes = np.atleast_3d(image).transpose(2, 0, 1)
    for image_format in ("npy", "png", "jpg"):
        payload = layout.encode_image(image, image_format)
        decoded = layout.decode_image(payload, image_format, "uint8", len(planes), 8, "shard")
        assert decoded.shape == planes.shape
        assert decoded.dtype == np.uint8
        error = abs(decoded.astype(int) - planes).max()
        assert error == 0 if image_format != "jpg" else error <= 4


def test_png_of_another_size_mode_or_format_is_refused():
    png = layout.encode_image(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8), "png")
    for channels, size in [(1, 9), (3, 8)]:
        with pytest.raises(ShardError, match="not the"):
            layout.decode_image(png, "png", "uint8", channels, size, "shard")
    for payload, image_format in [(png, "jpg"), (png[:50], "png"), (b"GIF89a", "png")]:
        with pytest.raises(ShardError, match="cannot be decoded"):
            layout.decode_image(payload, image_format, "uint8", 1, 8, "shard")


def test_member_headers_are_ustar_without_owner_or_time():
    block = layout.member_header("k.json", 7)
    member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    assert block == member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    assert block[257:265] == b"ustar\x0000"
    assert (member.name, member.size, member.mtime, member.uid, member.gid, member.uname, member.mode) == (
        "k.json", 7, 0, 0, 0, "", 0o644,
    )  # fmt: skip
