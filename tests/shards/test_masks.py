"""Mask files of many tools, each against the mask it was made of."""

import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from egal_shards import ShardError
from egal_shards.images import read_mask
from egal_shards.notes import collected

Y, X = np.mgrid[:64, :80]
DISC = (X - 30) ** 2 + (Y - 28) ** 2 < 14**2
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
U8 = np.uint8


def paletted(indices, *colours, transparency=None):
    image = Image.fromarray(np.asarray(indices, U8)).convert("P")
    image.putpalette([level for colour in colours for level in colour])
    if transparency is not None:
        image.info["transparency"] = bytes(transparency)
    return image


def coloured(inside, outside=BLACK, alpha=None, mask=DISC):
    """RGB or, with (alpha inside, alpha outside), RGBA."""
    pixels = np.where(mask[..., None], np.array(inside, U8), np.array(outside, U8))
    return Image.fromarray(pixels if alpha is None else np.dstack([pixels, np.where(mask, *np.array(alpha, U8))]))


def grey(inside, outside=0, alpha=None):
    pixels = np.where(DISC, U8(inside), U8(outside))
    return Image.fromarray(pixels if alpha is None else np.dstack([pixels, np.where(DISC, *np.array(alpha, U8))]))


MASKS = {
    "0 and 1": grey(1),
    "0 and 255": grey(255),
    "0 and 254": grey(254),
    "an inverted 0 and 1": grey(255, outside=254),
    "bits": Image.fromarray(DISC),
    "alpha on white": coloured(WHITE, WHITE, alpha=(255, 0)),
    "alpha on black": coloured(BLACK, BLACK, alpha=(255, 0)),
    "half-transparent on a colour": coloured((255, 0, 0), (255, 0, 0), alpha=(128, 0)),
    "black strokes on transparent white": coloured(BLACK, WHITE, alpha=(255, 0)),
    "strokes of a colour on transparent black": coloured((255, 0, 0), BLACK, alpha=(255, 0)),
    "opaque colour": coloured(WHITE, BLACK, alpha=(255, 255)),
    "grey and alpha": grey(255, outside=255, alpha=(255, 0)),
    "black first": paletted(DISC, BLACK, WHITE),
    "white first": paletted(~DISC, WHITE, BLACK),
    "white first, more entries": paletted(np.where(DISC, 2, 5), BLACK, (9, 9, 9), WHITE, WHITE, BLACK, BLACK),
    "colours by index": paletted(DISC * 3, BLACK, (128, 0, 0), (0, 128, 0), (128, 128, 0)),
    "white and a colour by index": paletted(DISC, WHITE, (255, 0, 0)),
    "one colour by index": paletted(DISC, BLACK, BLACK),
    "transparent palette entry": paletted(DISC, WHITE, WHITE, transparency=(0, 255)),
}


def saved(path, image, **settings):
    image.save(path, **settings)
    return path


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_read_as_they_are_meant(tmp_path, case):
    image = MASKS[case]
    extra = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", image, **extra)), DISC)


@pytest.mark.parametrize(
    ("image", "is_roi"),
    [
        (Image.new("L", (9, 7), 0), False),
        (Image.new("L", (9, 7), 1), True),
        (Image.new("L", (9, 7), 255), True),
        (Image.new("RGBA", (9, 7), (255, 255, 255, 255)), True),
        (Image.new("RGBA", (9, 7), (0, 0, 0, 0)), False),
        (paletted(np.zeros((7, 9)), WHITE), True),
        (paletted(np.ones((7, 9)), WHITE, BLACK), False),
        (paletted(np.ones((7, 9)), BLACK, WHITE), True),
        (paletted(np.zeros((7, 9)), BLACK, WHITE), False),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_masks_of_one_value(tmp_path, image, is_roi):
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", image)), np.full((7, 9), is_roi))


@pytest.mark.parametrize("values", ["labels", "instances", "void", "multiples", "grey ramp"])
def test_labels_of_any_value_are_roi(tmp_path, values):
    """Masks of many levels that are labels or instances, not tones: every label counts."""
    rng = np.random.default_rng(0)
    mask = np.zeros((128, 128), U8)
    y, x = np.mgrid[:128, :128]
    levels = {
        "labels": range(1, 5),
        "instances": range(1, 120),
        "void": [1, 15, 20, 255],
        "multiples": [40, 80, 120, 160, 200, 240],
        "grey ramp": range(20, 250, 20),
    }[values]
    for level in levels:
        cx, cy = rng.integers(8, 120, 2)
        mask[(x - cx) ** 2 + (y - cy) ** 2 < rng.integers(3, 8) ** 2] = level
    with collected() as notes:
        assert np.array_equal(read_mask(saved(tmp_path / "m.png", Image.fromarray(mask)), "light"), mask > 0)
    assert notes == []


@st.composite
def shapes(draw):
    """bool [64,80]: up to five discs and rectangles of at least 5 pixels."""
    mask = np.zeros(DISC.shape, bool)
    for _ in range(draw(st.integers(1, 5))):
        cx, cy, radius = draw(st.integers(0, 79)), draw(st.integers(0, 63)), draw(st.integers(3, 20))
        disc = draw(st.booleans())
        mask |= (X - cx) ** 2 + (Y - cy) ** 2 < radius**2 if disc else (abs(X - cx) < radius) & (abs(Y - cy) < radius)
    return mask


@given(shapes(), st.integers(40, 95), st.sampled_from(["L", "RGB"]), st.sampled_from(["jpg", "png", "tif", "bmp"]))
@settings(deadline=None, max_examples=60)
def test_masks_that_went_through_jpeg(tmp_path_factory, mask, quality, mode, suffix):
    stream = io.BytesIO()
    Image.fromarray(mask * U8(255)).convert(mode).save(stream, "JPEG", quality=quality)
    path = tmp_path_factory.mktemp("lossy") / f"m.{suffix}"
    if suffix == "jpg":
        path.write_bytes(stream.getvalue())
    else:
        Image.open(stream).save(path)
        levels = np.unique(np.asarray(Image.open(stream).convert("L")))
        assume(((levels > 15) & (levels < 255)).any())  # else they may as well be labels and a void of 255
    with collected() as notes:
        roi = read_mask(path, "light")
    assert np.count_nonzero(roi != mask) <= 0.02 * np.count_nonzero(mask) + 2
    with Image.open(stream) as image:
        values = np.asarray(image.convert("L"))
    if ((values > 0) & (values < 64)).sum() > 20:
        assert ["upper half is read as ROI" in note for note in notes] == [True]


@pytest.mark.parametrize("factor", [2, 3])
def test_smoothed_masks_end_at_half(tmp_path, factor):
    width, height = 80 // factor, 64 // factor
    small = Image.fromarray(DISC * U8(255)).resize((width, height), Image.Resampling.BILINEAR)
    with collected() as notes:
        roi = read_mask(saved(tmp_path / "m.png", small), "light")
    assert np.array_equal(roi, np.asarray(small) >= 128)
    assert ["smoothing" in note for note in notes] == [True]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_is_no_mask(tmp_path, suffix):
    tones = 40 + 2 * X + Y + np.random.default_rng(0).integers(0, 20, X.shape)
    path = saved(tmp_path / f"m.{suffix}", Image.fromarray(tones.clip(0, 255).astype(U8)))
    with pytest.raises(ShardError, match=rf"m.{suffix}: holds .* like a picture, and is no mask; give the mask"):
        read_mask(path)


@pytest.mark.parametrize("compression", [None, "group4", "tiff_lzw"])
def test_tiff_masks_where_0_is_white(tmp_path, compression):
    """As fax and drawing programs write them: photometric interpretation 0."""
    settings = {"compression": compression} if compression else {}
    image = Image.fromarray(DISC)
    path = saved(tmp_path / "m.tif", image, tiffinfo={262: 0}, **settings)
    with Image.open(path) as written:
        assert written.tag_v2[262] == 0
    assert np.array_equal(read_mask(path), np.asarray(Image.open(path)))
