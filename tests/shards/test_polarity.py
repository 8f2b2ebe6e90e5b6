"""Masks with inverted colours: read by a flag, refused without it, and never guessed file by file."""

import io
import json

import numpy as np
import pytest
import webdataset

from egal_shards import ShardError, pack
from egal_shards.sources import SOURCES
from shards.source_examples import png_bytes

SIDE, SAMPLES = 40, 20
Y, X = np.mgrid[:SIDE, :SIDE]
GREY = np.tile(np.linspace(0, 255, SIDE, dtype=np.uint8), (SIDE, 1))
EMPTY, FULL = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)


def disc(radius, column=20):
    return (X - column) ** 2 + (Y - 20) ** 2 < radius**2


LESIONS = {
    "small": [disc(6, 8 + i) for i in range(SAMPLES)],
    "60 % of the image": [disc(17.5)] * SAMPLES,
    "cut off by the border": [(X - i < 9) & (abs(Y - 20) < 7) for i in range(SAMPLES)],
    "small, or none": [EMPTY] * 12 + [disc(6, 8 + i) for i in range(SAMPLES - 12)],
}


@pytest.fixture
def folder_of(tmp_path):
    """A function that writes a `folder` data set with these masks, bool [H,W], as white on black."""

    def write(masks):
        root = tmp_path / "data"
        root.mkdir()
        rows = ["file,label,mask_file"]
        for i, mask in enumerate(masks):
            (root / f"k{i:02}.png").write_bytes(png_bytes(GREY))
            (root / f"m{i:02}.png").write_bytes(png_bytes(mask * np.uint8(255)))
            rows.append(f"k{i:02}.png,{'ab'[i % 2]},m{i:02}.png")
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
        return root

    return write


@pytest.fixture
def packed_rois(pack_set):
    """A function that packs a `folder` data set, with the notes on stderr, and returns its ROIs."""

    def packed_rois(root, **settings):
        shards = pack_set(SOURCES["folder"].load()(root, **settings), size=SIDE, progress=True)
        return [shards[i].roi for i in range(SAMPLES)]

    return packed_rois


@pytest.mark.parametrize("kind", LESIONS)
def test_inverted_masks_need_a_flag_and_are_read_by_it(folder_of, packed_rois, tmp_path, kind):
    root = folder_of([~lesion for lesion in LESIONS[kind]])
    with pytest.raises(ShardError, match=r"^data: (\d+) of \1 masks are light along the border .* --mask-roi dark if"):
        packed_rois(root)
    assert not (tmp_path / "set").exists()
    assert np.array_equal(packed_rois(root, mask_roi="dark"), LESIONS[kind])


@pytest.mark.parametrize("masks", [*LESIONS.values(), [EMPTY, FULL] * 10], ids=[*LESIONS, "all or nothing"])
def test_ordinary_masks_need_no_flag(folder_of, packed_rois, capsys, masks):
    assert np.array_equal(packed_rois(folder_of(masks)), masks)
    assert "light along the border" not in capsys.readouterr().err


def test_a_light_frame_is_the_roi_where_the_user_says_so(folder_of, packed_rois):
    frames = [~lesion for lesion in LESIONS["small"]]
    assert np.array_equal(packed_rois(folder_of(frames), mask_roi="light"), frames)


def test_a_few_inverted_masks_are_mentioned_and_not_turned(folder_of, packed_rois, capsys):
    masks = [lesion ^ (i < 7) for i, lesion in enumerate(LESIONS["small"])]
    assert np.array_equal(packed_rois(folder_of(masks)), masks)
    assert capsys.readouterr().err.count("data: 7 of 20 masks are light along the border and dark inside") == 1


def imagefolder_of(folder, masks):
    rows = []
    for i, mask in enumerate(masks):
        (folder / f"k{i:02}.png").write_bytes(png_bytes(GREY))
        (folder / f"m{i:02}.png").write_bytes(png_bytes(mask * np.uint8(255)))
        rows.append({"file_name": f"k{i:02}.png", "label": "ab"[i % 2], "mask_file_name": f"m{i:02}.png"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {}


def tar_of_masks(suffix):
    def build(folder, masks):
        with webdataset.TarWriter(str(folder / "000.tar"), encoder=False) as writer:
            for i, mask in enumerate(masks):
                stream = io.BytesIO()
                np.save(stream, mask)
                payload = png_bytes(mask * np.uint8(255)) if suffix == "png" else stream.getvalue()
                writer.write(
                    {
                        "__key__": f"k{i:02}",
                        "png": png_bytes(GREY),
                        "cls": "ab"[i % 2].encode(),
                        f"mask.{suffix}": payload,
                    }
                )
        return {"mask": f"mask.{suffix}", "image": "png"}

    return build


@pytest.mark.parametrize(
    ("name", "build"),
    [("imagefolder", imagefolder_of), ("wds", tar_of_masks("png")), ("wds", tar_of_masks("npy"))],
    ids=["imagefolder", "wds of png", "wds of npy"],
)
def test_other_sources_of_mask_files_have_the_same_flag(tmp_path, pack_set, name, build):
    (tmp_path / "data").mkdir()
    settings = build(tmp_path / "data", [~lesion for lesion in LESIONS["small"]])

    def load(**choice):
        return SOURCES[name].load()(tmp_path / "data", **settings, **choice)

    with pytest.raises(ShardError, match="20 of 20 masks are light along the border"):
        pack(load(), tmp_path / "refused", size=16, progress=False)
    shards = pack_set(load(mask_roi="dark"), size=SIDE)
    assert np.array_equal([shards[i].roi for i in range(SAMPLES)], LESIONS["small"])
    assert load(mask_roi="dark").made["mask_roi"] == "dark"
    with pytest.raises(ShardError, match="mask_roi 'black' is neither light nor dark"):
        load(mask_roi="black")


def test_a_mask_that_is_not_inverted_is_named_after_the_choice(folder_of, packed_rois, capsys):
    masks = [~disc(6, 8 + i) for i in range(SAMPLES - 2)] + [disc(6), EMPTY]
    packed_rois(folder_of(masks), mask_roi="dark")
    assert "with --mask-roi dark a mask whose ROI fills the border" in capsys.readouterr().err
