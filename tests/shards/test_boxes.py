"""Boxes in the notations of other tools: read by flag, refused with a hint where they look like another one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from egal_shards import ShardError
from egal_shards.sources import folder
from egal_shards.sources.boxes import Notation

WIDTH, HEIGHT = 40, 50
WRITERS = {  # what each notation makes of x0, y0, x1, y1
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "xywh": lambda a, b, c, d: (a, b, c - a, d - b),
    "cxcywh": lambda a, b, c, d: ((a + c) / 2, (b + d) / 2, c - a, d - b),
}
LOWER_RIGHT = [(25 + i, 30 + i, 33 + i, 41 + i) for i in range(6)]
UPPER_LEFT = [(2 + i % 3, 3, 8 + i % 3, 11) for i in range(12)]


def shares(box):
    return [value / side for value, side in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]


@pytest.fixture
def write(tmp_path):
    """Write a folder with one box per image; return it."""

    def make(boxes):
        lines = ["file;label;boxes"]
        for i, box in enumerate(boxes):
            Image.fromarray(np.full((HEIGHT, WIDTH), i, np.uint8)).save(tmp_path / f"{i}.png")
            lines.append(f"{i}.png;{'ab'[i % 2]};{json.dumps([box])}")
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        return tmp_path

    return make


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("notation", WRITERS)
@pytest.mark.parametrize("boxes", [LOWER_RIGHT, UPPER_LEFT], ids=["lower right", "upper left"])
def test_every_notation_is_read_by_its_flag(write, boxes, notation, normalised):
    written = [WRITERS[notation](*(shares(box) if normalised else box)) for box in boxes]
    source = folder(write(written), boxes=notation + "-normalised" * normalised)
    assert source.made["boxes"] == notation + "-normalised" * normalised
    for record, box in zip(source.records, boxes, strict=True):
        np.testing.assert_allclose(record.load().boxes, [box], rtol=0, atol=1e-9)


def test_pixels_need_no_flag(write):
    source = folder(write(LOWER_RIGHT + UPPER_LEFT))
    assert "boxes" not in source.made
    assert [record.load().boxes for record in source.records] == [(box,) for box in LOWER_RIGHT + UPPER_LEFT]


@pytest.mark.parametrize("notation", WRITERS)
@pytest.mark.parametrize("boxes", [LOWER_RIGHT, UPPER_LEFT], ids=["lower right", "upper left"])
def test_shares_of_the_image_are_refused_without_a_flag(write, boxes, notation):
    root = write([WRITERS[notation](*shares(box)) for box in boxes])
    with pytest.raises(ShardError, match=r"labels.csv line 2: boxes of 0.png are .* shares of the image.*-normalised"):
        folder(root)


def test_whole_shares_are_refused_without_a_flag(write):
    root = write([(0, 0, 1, 1)] * 3)
    with pytest.raises(ShardError, match=r"labels.csv: all boxes lie between 0 and 1.*xyxy for pixels"):
        folder(root)
    assert folder(root, boxes="xyxy").records[0].load().boxes == ((0, 0, 1, 1),)


@pytest.mark.parametrize("notation", ["xywh", "cxcywh"])
def test_sizes_instead_of_corners_are_refused(write, notation):
    root = write([WRITERS[notation](*box) for box in LOWER_RIGHT])
    with pytest.raises(ShardError, match=r"line 2: .*x0 < x1 and y0 < y1 do not hold.*xywh \(COCO\) or cxcywh"):
        folder(root)


def test_boxes_that_could_be_corners_or_sizes_are_refused(write):
    root = write([WRITERS["xywh"](*box) for box in [(3, 4, 3 + 5 + i, 4 + 6 + i) for i in range(12)]])
    with pytest.raises(ShardError, match="boxes of all 12 images can be x0,y0,x1,y1 as well as x,y,width,height"):
        folder(root)
    assert folder(root, boxes="xywh").records[1].load().boxes == ((3, 4, 9, 11),)


def test_pixels_flagged_as_shares_are_refused(write):
    with pytest.raises(ShardError, match="boxes xyxy-normalised lie between 0 and 1; for pixels set boxes to xyxy"):
        folder(write(LOWER_RIGHT), boxes="xyxy-normalised")


@given(st.tuples(*[st.floats(0.001, 0.999)] * 4).filter(lambda b: b[0] + 1e-3 < b[2] and b[1] + 1e-3 < b[3]))
def test_notations_agree(box):
    for name, write in WRITERS.items():
        cell = json.dumps([write(*box)])
        assert Notation.of(f"{name}-normalised").read(cell, "")[0] == pytest.approx(box, abs=1e-12)


def test_rounded_shares_stay_inside_the_image(write):
    root = write([[0.750001, 0.5, 0.500002, 1.0]])  # xcentre, ycentre, width, height with six decimals
    [record] = folder(root, boxes="cxcywh-normalised").records
    assert record.load().boxes[0][1:] == (0.0, WIDTH, HEIGHT)
