"""16-bit images, from the source through pack, index, reader, batches, verify and networks."""

import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from egal_shards import Raw, ShardError, ShardSet, layout, pack, verify
from egal_shards.geometry import place
from egal_shards.intensity import fit_image, windowed
from egal_shards.sources import folder
from shards.shard_sets import edit_manifest, source

SIZE = 16


def image_16_bit(i, colour=False):
    """Return uint16 [16,16] or [16,16,3], the packed size, so that nothing is resized. Every second one has an ROI."""
    values = np.random.default_rng([3, i]).integers(0, 65536, (SIZE, SIZE, 3) if colour else (SIZE, SIZE))
    return Raw(values.astype(np.uint16), np.eye(SIZE, dtype=bool) if i % 2 else None)


@pytest.fixture
def packed(pack_set):
    """A function that packs 16-bit images and opens the set."""

    def packed(name, channels=1, **settings):
        data = source(load=lambda i: image_16_bit(i, channels == 3))
        return pack_set(data, name, dtype="uint16", channels=channels, **settings)

    return packed


@pytest.mark.parametrize(("channels", "image_format"), [(1, "npy"), (3, "npy"), (1, "png")])
def test_16_bits_come_back(tmp_path, packed, channels, image_format):
    import torch

    shards = packed("set", channels=channels, image_format=image_format, shard_mb=0.01)
    assert shards.manifest.image.dtype == "uint16"
    assert verify(tmp_path / "set", progress=False).samples == 12
    expected = [np.atleast_3d(image_16_bit(i, channels == 3).image).transpose(2, 0, 1) for i in range(12)]
    for i in range(12):
        assert shards[i].image.dtype == np.uint16
        assert np.array_equal(shards[i].image, expected[i])
    for batch, at in zip(shards.batches(range(12), 5), (0, 5, 10), strict=True):
        assert batch.images.dtype == torch.uint16
        assert np.array_equal(batch.images.numpy(), np.stack(expected[at : at + 5]))


def test_stock_tools_read_16_bits(tmp_path, packed):
    packed("npy", channels=3)
    read = webdataset.WebDataset([str(tmp_path / "npy" / "shard-000000.tar")], shardshuffle=False).decode()
    for i, sample in enumerate(read):
        assert sample["image.npy"].dtype == np.uint16
        assert np.array_equal(sample["image.npy"], image_16_bit(i, True).image.transpose(2, 0, 1))
    packed("png", image_format="png")
    with tarfile.open(tmp_path / "png" / "shard-000000.tar") as tar:
        images = [Image.open(tar.extractfile(name)) for name in tar.getnames() if name.endswith("image.png")]
        assert all(np.array_equal(np.asarray(image), image_16_bit(i).image) for i, image in enumerate(images))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image_format": "jpg"}, "image_format jpg cannot store uint16 with channels 1; use npy"),
        ({"image_format": "png", "channels": 3}, "image_format png cannot store uint16 with channels 3; use npy"),
        ({"dtype": "float32"}, "dtype 'float32' is none of uint8, uint16"),
        ({"dtype": "uint8"}, "images/0.png: holds 16-bit values; pack dtype uint16, or give the window"),
    ],
)
def test_images_that_cannot_be_stored_are_refused(tmp_path, how, message):
    with pytest.raises(ShardError, match=message):
        pack(source(load=image_16_bit), tmp_path / "set", **{"dtype": "uint16", "size": SIZE, "progress": False, **how})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "edit", [{"format": "jpg"}, {"format": "png", "channels": 3}, {"dtype": "int16"}, {"dtype": "uint8"}]
)
def test_a_manifest_of_another_dtype_is_refused(tmp_path, packed, edit):
    packed("set")
    edit_manifest(tmp_path / "set", lambda fields: fields["image"].update(edit))
    with pytest.raises(ShardError):
        ShardSet(tmp_path / "set")


def test_a_png_of_other_depth_is_refused():
    eight, sixteen = (np.zeros((8, 8), dtype) for dtype in (np.uint8, np.uint16))
    for image, dtype in [(eight, "uint16"), (sixteen, "uint8")]:
        for image_format in ("png", "npy"):
            payload = layout.encode_image(image, image_format)
            with pytest.raises(ShardError, match="shard: "):
                layout.decode_image(payload, image_format, dtype, 1, 8, "shard")


def test_pixels_are_stored_with_the_low_byte_first():
    image = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert layout.encode_image(image.astype(">u2"), "npy") == layout.encode_image(image, "npy")
    assert layout.encode_image(image, "npy")[128:] == image.astype("<u2").tobytes()


def test_16_bit_files_need_uint16_or_a_window(tmp_path):
    """uint16 keeps the values. uint8 needs a window, and rounds once."""
    values = [image_16_bit(i).image for i in range(8)]
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    lines = [f"{i}.png,{'ab'[i % 2]}," for i in range(8)]
    (tmp_path / "labels.csv").write_text("file,label,boxes\n" + "\n".join(lines) + "\n")
    how = {"size": SIZE, "progress": False}
    pack(folder(tmp_path), tmp_path / "sixteen", dtype="uint16", **how)
    assert all(np.array_equal(ShardSet(tmp_path / "sixteen")[i].image[0], values[i]) for i in range(8))
    with pytest.raises(ShardError, match=r"0.png: holds 16-bit values; pack dtype uint16, or give the window LOW,HIGH"):
        pack(folder(tmp_path), tmp_path / "eight", **how)
    pack(folder(tmp_path, window=(10_000, 40_000)), tmp_path / "eight", **how)
    for i in range(8):
        expected = np.rint(np.clip((values[i] - 10_000.0) / 30_000, 0, 1) * 255)
        assert np.array_equal(ShardSet(tmp_path / "eight")[i].image[0], expected)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.sampled_from(["uint8", "uint16"]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_white_stays_white_and_values_are_rounded_once(kind, dtype, planes, channels, height, width, seed):
    """Without resizing, values follow the definition in float64. With resizing, constants stay constant."""
    if (kind, dtype) == ("uint16", "uint8"):
        return
    rng = np.random.default_rng(seed)
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    shape = (height, width, 3) if planes == 3 else (height, width)
    values = rng.random(shape).astype(np.float32) if kind == "float32" else rng.integers(0, top + 1, shape).astype(kind)
    most = np.iinfo(dtype).max
    for image in (values, np.full_like(values, top), np.zeros_like(values)):
        for size in (max(height, width), 17):
            fitted = fit_image(image, place(width, height, size, "letterbox"), channels, dtype)
            assert fitted.dtype == dtype
            assert fitted.shape == ((size, size, 3) if channels == 3 else (size, size))
            at = place(width, height, size, "letterbox")
            inside = fitted[at.top : at.top + at.rows, at.left : at.left + at.columns]
            if image is not values:
                assert (inside == (most if image.flat[0] else 0)).all()
            elif (at.columns, at.rows) == (width, height):
                exact = np.atleast_3d(values).astype(np.float64) / top * most
                if channels == 1 and planes == 3:
                    exact = exact @ [0.299, 0.587, 0.114]
                expected = exact.reshape(height, width, -1)
                assert np.abs(np.atleast_3d(inside) - expected).max() <= (
                    0.51 if kind != "uint8" or planes == channels else 1
                )


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(0, 2**32))
def test_windows_are_linear_and_clipped(low, width, seed):
    values = np.random.default_rng(seed).uniform(low - width, low + 2 * width, 50)
    expected = np.clip((values - low) / ((low + width) - low), 0, 1)
    np.testing.assert_allclose(windowed(values, (low, low + width)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_see_the_same_image_in_8_and_16_bits(channels):
    import torch

    from egal_bench.models.network import build

    network = build("small-cnn", 3, image_channels=channels, image_size=32, size=None, seed=0).eval()
    eight = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, 32, 32)).astype(np.uint8))
    sixteen = torch.from_numpy(eight.numpy().astype(np.uint16) * 257)
    with torch.no_grad():
        torch.testing.assert_close(network(sixteen), network(eight), rtol=0, atol=1e-5)
