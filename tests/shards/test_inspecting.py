"""The summary of a set, compared with pandas, and its picture, compared with the known place of the ROI."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw

from egal_shards import ShardError, ShardSet, Split, pack, verify
from egal_shards.inspecting import QUANTILES, contact_sheet, save_contact_sheet, summarise
from egal_shards.records import Raw, Record, Source
from shards.shard_sets import source

TILE, TOP, LEFT = 224, 32, 8
YELLOW = np.array([255, 210, 0], np.uint8)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "set"
    pack(source(36), folder, size=24, progress=False)
    return ShardSet(folder)


@pytest.fixture
def pack_pair(pack_set):
    """A function that packs two equal samples of one class, at 56 pixels unless told otherwise, and opens the set."""

    def pack_pair(raw, keys=("k0", "k1"), **settings):
        records = [Record(key, "a", key, "f.png", lambda: raw) for key in keys]
        return pack_set(Source("pair", ("a",), records, {}), **{"size": 56, "split": Split(0.5, 0), **settings})

    return pack_pair


def black(box, height=56, width=56):
    """Return a black image with a box."""
    return Raw(np.zeros((height, width), np.uint8), None, (box,))


def first_tile(shards):
    """Return the first tile of the picture of a set."""
    return np.asarray(contact_sheet(shards))[TOP : TOP + TILE, LEFT : LEFT + TILE]


def outlined(sheet, column=0):
    """Return the rows and columns of the outline in a tile."""
    left = LEFT + column * (TILE + LEFT)
    tile = np.asarray(sheet)[TOP : TOP + TILE, left : left + TILE]
    return np.nonzero((tile == YELLOW).all(axis=2))


def test_summary_equals_that_of_pandas(mixed):
    frame = mixed.index()
    summary = summarise(mixed)
    assert list(summary) == [*mixed.classes, ""]
    for name, row in summary.items():
        rows = frame if not name else frame[frame.label == mixed.classes.index(name)]
        marked = rows[rows.roi_area > 0]
        assert (row.samples, row.groups, row.with_roi) == (len(rows), rows.group.nunique(), len(marked))
        assert row.splits == {"pool": (rows.split == "pool").sum(), "test": (rows.split == "test").sum()}
        np.testing.assert_allclose(row.roi_area, marked.roi_area.quantile(list(QUANTILES)) / 24**2 * 100)


def test_a_class_without_roi_has_no_areas(pack_pair):
    shards = pack_pair(Raw(np.zeros((9, 9), np.uint8), None), size=8)
    assert summarise(shards)["a"].roi_area is None
    assert outlined(contact_sheet(shards))[0].size == 0


def test_the_outline_lies_where_the_box_is(pack_pair):
    """No axis is flipped or exchanged, and the scale is right: 4 pixels of the tile are one of the sample."""
    sheet = contact_sheet(pack_pair(black((4.0, 30.0, 12.0, 50.0))))
    for column in (0, 1):
        rows, columns = outlined(sheet, column)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (120, 199, 16, 47)
        assert len(rows) == 2 * (200 - 120) + 2 * (48 - 16) - 4  # the border alone


def test_the_image_lies_under_its_outline(pack_pair):
    """The bright pixels are in the box, so the image is not flipped without its ROI."""
    image = np.zeros((56, 56), np.uint8)
    image[30:50, 4:12] = 200
    tile = first_tile(pack_pair(Raw(image, None, ((4, 30, 12, 50),))))
    assert (tile[123:197, 19:45] == 200).all()  # inside the outline, without pixels that resizing blurs
    tile = tile.copy()
    tile[117:203, 13:51] = 0
    assert not tile.any()


def test_the_outline_is_visible_on_its_own_colour(pack_pair):
    """Pixels just outside the outline are black. No other pixel is changed."""
    yellow = Raw(np.tile(YELLOW, (56, 56, 1)), None, ((4.0, 30.0, 12.0, 50.0),))
    sheet = first_tile(pack_pair(yellow, channels=3))
    rim = (sheet == 0).all(axis=2)
    expected = np.zeros_like(rim)
    expected[119, 16:48] = expected[200, 16:48] = expected[120:200, 15] = expected[120:200, 48] = True
    assert np.array_equal(rim, expected)
    assert (sheet[~rim] == YELLOW).all()


def test_the_outline_follows_the_letterbox(pack_pair):
    """56×28 (w×h) pixels fill the middle half of the square."""
    sheet = contact_sheet(pack_pair(black((0.0, 0.0, 56.0, 28.0), height=28)))
    rows, columns = outlined(sheet)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (56, 167, 0, 223)


def test_16_bit_images_are_stretched(pack_pair):
    image = np.full((56, 56), 300, np.uint16)
    image[:, 28:] = 1300
    tile = first_tile(pack_pair(Raw(image, None), dtype="uint16"))
    assert (tile[:, :80] == 0).all()
    assert (tile[:, -80:] == 255).all()


def test_the_draw_is_seeded_and_takes_samples_with_roi_first(mixed):
    def picture(**how):
        return np.asarray(contact_sheet(mixed, **how)).tobytes()

    assert picture(samples=3, seed=1) == picture(samples=3, seed=1) != picture(samples=3, seed=2)
    for name, row in summarise(mixed).items():
        if name:
            assert row.with_roi >= 3
    sheet = contact_sheet(mixed, samples=3)
    assert all(outlined(sheet, column)[0].size for column in range(3))
    assert sheet.size == (LEFT + 3 * (TILE + LEFT), TOP + 3 * (TILE + TOP + LEFT))


def test_captions_are_right_and_samples_with_roi_come_first(mixed, monkeypatch):
    written = {}
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, what, *rest: (written.update({at: what}), text(self, at, what, *rest)),
    )
    sheet = np.asarray(contact_sheet(mixed, samples=12))
    rows = mixed.index().set_index("key")
    assert written.pop((LEFT, 8)) == "tiny: 36 samples, 1×24×24 uint8, ROI outlined"
    assert len(written) == 2 * len(rows)
    for label, name in enumerate(mixed.classes):
        top, marked = TOP + label * (TILE + TOP + LEFT), []
        for column in range(12):
            left = LEFT + column * (TILE + LEFT)
            row = rows.loc[written.pop((left, top + TILE + 1))]
            caption = f"ROI {100 * row.roi_area / 24**2:.2g} %" if row.roi_area else "no ROI"
            assert written.pop((left, top + TILE + 15)) == f"{name}, {caption}"
            assert row.label == label
            tile = sheet[top : top + TILE, left : left + TILE]
            assert (tile == YELLOW).all(axis=2).any() == (row.roi_area > 0)
            marked.append(row.roi_area > 0)
        assert marked == sorted(marked, reverse=True)
        assert sum(marked) == (12, 6, 6)[label]


def test_a_key_too_long_for_its_tile_keeps_its_end(pack_pair, monkeypatch):
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, what, *rest: written.append(what))
    keys = ["x" * 78 + end for end in ("_1", "_2")]
    contact_sheet(pack_pair(Raw(np.zeros((8, 8), np.uint8), None), keys, size=8), samples=2)
    shown = sorted(text for text in written if "_" in text)
    assert [text[0] + text[-3:] for text in shown] == ["…x_1", "…x_2"]
    assert all(20 < len(text) < 40 for text in shown)


@pytest.mark.parametrize("samples", [0, -1, 401])
def test_samples_per_class_out_of_range_are_refused(mixed, samples):
    with pytest.raises(ShardError, match=f"samples {samples} is not between 1 and 400"):
        contact_sheet(mixed, samples)


def test_a_picture_has_at_most_400_tiles(mixed):
    assert contact_sheet(mixed, samples=200).size == (LEFT + 200 * (TILE + LEFT), TOP + 2 * (TILE + TOP + LEFT))


def test_the_picture_is_written_completely_or_not_at_all(mixed, tmp_path):
    save_contact_sheet(mixed, tmp_path / "sheet.png", 2, 0)
    assert (tmp_path / "sheet.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ShardError, match=r"absent/sheet.png: No such file"):
        save_contact_sheet(mixed, tmp_path / "absent" / "sheet.png", 2, 0)
    with pytest.raises(ShardError):
        save_contact_sheet(mixed, tmp_path / "other.png", 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_picture_inside_a_set_is_refused(mixed, monkeypatch):
    monkeypatch.chdir(mixed.path)
    for path in (Path("sheet.png"), mixed.path / "sheet.png"):
        with pytest.raises(ShardError, match=r"sheet.png: lies in the shard set"):
            save_contact_sheet(mixed, path, 2, 0)
    assert verify(mixed.path, progress=False).samples == 36
