"""Image and mask files: every mode that is read, and clear errors for the rest."""

import io
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from egal_shards import ShardError
from egal_shards.images import MAX_PIXELS, read_image, read_mask
from shards.hostile_files import NESTED, jpeg, png

GREY = np.random.default_rng(0).integers(0, 256, (9, 13), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)
ALPHA = np.full((9, 13, 1), 7, np.uint8)


def saved(path, pixels, mode=None, **settings):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **settings)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_lossless_files_come_out_exactly(tmp_path, suffix):
    assert np.array_equal(read_image(saved(tmp_path / f"grey.{suffix}", GREY)), GREY)
    assert np.array_equal(read_image(saved(tmp_path / f"colour.{suffix}", COLOUR)), COLOUR)


def test_jpeg_comes_out_as_pillow_reads_it(tmp_path):
    path = saved(tmp_path / "a.jpg", COLOUR)
    assert np.array_equal(read_image(path), np.asarray(Image.open(path)))


def test_palette_bits_and_alpha(tmp_path):
    palette = Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(
        read_image(tmp_path / "p.png"), np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 9]])[GREY % 4]
    )
    bits = GREY > 128
    assert np.array_equal(read_image(saved(tmp_path / "1.png", bits)), bits * 255)
    assert np.array_equal(read_image(saved(tmp_path / "rgba.png", np.dstack([COLOUR, ALPHA]))), COLOUR)
    assert np.array_equal(read_image(saved(tmp_path / "la.png", np.dstack([GREY, ALPHA]))), GREY)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert read_image(saved(tmp_path / "a.jpg", GREY, exif=exif)).shape == GREY.shape


def test_masks_are_what_is_above_zero(tmp_path):
    inside = GREY > 200
    for name, pixels in {
        "l.png": inside * np.uint8(1),
        "grey.png": inside * GREY,
        "1.png": inside,
        "rgb.png": inside[..., None] * np.array([0, 0, 3], np.uint8),
        "rgba.png": np.dstack([inside[..., None] * np.array([0, 5, 0], np.uint8), ALPHA]),
        "la.png": np.dstack([inside * np.uint8(2), ALPHA]),
        "16.png": inside * np.uint16(256),
        "32.tif": inside * np.int32(70000),
        "l.bmp": inside * np.uint8(255),
    }.items():
        mask = read_mask(saved(tmp_path / name, pixels))
        assert mask.dtype == bool
        assert np.array_equal(mask, inside), name


def test_16_bit_grey_keeps_its_bits(tmp_path):
    deep = np.random.default_rng(2).integers(0, 65536, (9, 13)).astype(np.uint16)
    for name, stored in {"le.tif": deep, "be.tif": deep.astype(">u2"), "a.png": deep}.items():
        pixels = read_image(saved(tmp_path / name, stored))
        assert pixels.dtype == np.dtype(np.uint16)
        assert np.array_equal(pixels, deep), name
        shown = read_image(tmp_path / name, (1000, 50_000))
        expected = np.clip((deep.astype(np.float64) - 1000) / 49_000, 0, 1)
        assert shown.dtype == np.float32
        np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-7)
    shown = read_image(saved(tmp_path / "c.png", COLOUR), (0, 255))
    np.testing.assert_allclose(shown, COLOUR / 255, rtol=0, atol=1e-7)


def test_16_bit_colour_signed_and_float_images_are_refused(tmp_path):
    deep = png(2, 2, rows=zlib.compress((b"\0" + bytes(2 * 6)) * 2), depth=16, colour=2)
    (tmp_path / "rgb.png").write_bytes(deep)  # Pillow would cut it down to 8 bits and not say so
    with pytest.raises(ShardError, match=r"rgb.png: holds 16-bit colour or signed pixels; .* convert it"):
        read_image(tmp_path / "rgb.png")
    with pytest.raises(ShardError, match="holds I pixels"):
        read_image(saved(tmp_path / "i.tif", GREY.astype(np.int32)))
    with pytest.raises(ShardError, match="holds F pixels"):
        read_image(saved(tmp_path / "f.tif", GREY.astype(np.float32)))
    with pytest.raises(ShardError, match="mask of mode F"):
        read_mask(tmp_path / "f.tif")


def test_files_that_are_not_read(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    saved(tmp_path / "a.gif", GREY)
    saved(tmp_path / "lossy.jpg", GREY)
    frames = [Image.fromarray(GREY)] * 2
    frames[0].save(tmp_path / "many.tif", save_all=True, append_images=frames[1:])
    for read, name, message in [
        (read_image, "text.png", "is not a PNG or JPEG or BMP or TIFF file"),
        (read_image, "a.gif", "is not a PNG"),
        (read_mask, "lossy.jpg", "grey levels from 0 to 255, like a picture, and is no mask"),
        (read_image, "many.tif", "holds more than one frame"),
        (read_image, "absent.png", "No such file"),
        (read_image, "", "Is a directory"),
    ]:
        with pytest.raises(ShardError, match=message) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("sides", [(10_001, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("make", [png, jpeg], ids=["PNG", "JPEG"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, make, sides, read):
    (tmp_path / "bomb").write_bytes(make(*sides))
    assert sides[0] * sides[1] > MAX_PIXELS
    tracemalloc.start()
    with pytest.raises(ShardError, match=r"bomb: has more than 100 million pixels"):
        read(tmp_path / "bomb")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", NESTED)
def test_archives_are_no_images(tmp_path, monkeypatch, name):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    Path("k.png").write_bytes(NESTED[name])
    for read in (read_image, read_mask):
        with pytest.raises(ShardError, match=r"k.png: is not a PNG or"):
            read(Path("k.png"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "in", tmp_path / "in" / "k.png"]


def encoded(image_format):
    stream = io.BytesIO()
    settings = {"compression": "tiff_deflate"} if image_format == "TIFF" else {}
    Image.fromarray(COLOUR).save(stream, image_format, **settings)
    return stream.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named_or_read(tmp_path_factory, image_format):
    path = tmp_path_factory.mktemp("damaged") / "x.img"
    good = encoded(image_format)

    @given(
        st.integers(0, len(good) - 1),
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(1, 255)), max_size=3),
    )
    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def damage(cut, flips):
        data = bytearray(good)
        for at, value in flips:
            data[at] ^= value
        path.write_bytes(data if cut % 2 else data[:cut])
        try:
            assert read_image(path).dtype == np.uint8
        except ShardError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)  # noqa: PT017, PT018

    damage()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_half_a_file_is_refused(tmp_path, image_format):
    path = tmp_path / "half.img"
    path.write_bytes(encoded(image_format)[: len(encoded(image_format)) // 2])
    with pytest.raises(ShardError, match=r"half.img: "):
        read_image(path)
