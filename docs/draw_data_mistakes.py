"""Draws the pictures of typical mistakes in shards/README.md: `python docs/draw_data_mistakes.py`.

Packs phantoms with one mistake each, shows them as `egal-bench inspect` does, and puts the right picture on the left.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from egal_shards import Raw, Record, ShardSet, Source, pack
from egal_shards.inspecting import contact_sheet
from egal_shards.sources import phantom

HERE = Path(__file__).parent
SIZE = 224  # pixels per side, as large as a tile of the contact sheet
TITLE, GAP = 20, 12  # pixels


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of a mask, with x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def unchanged(raw: Raw) -> Raw:
    """Return the sample as it is."""
    return raw


def boxed(raw: Raw) -> Raw:
    """Return the sample with the bounding box of its ROI instead of its mask."""
    return Raw(raw.image, None, (bounding_box(raw.mask),))


def swapped(raw: Raw) -> Raw:
    """Return the sample with the x and y of its ROI swapped."""
    return dataclasses.replace(raw, mask=raw.mask.T)


def sizes_as_corner(raw: Raw) -> Raw:
    """Return the sample with its box x, y, width, height read as two corners."""
    x0, y0, x1, y1 = bounding_box(raw.mask)
    return Raw(raw.image, None, ((x0, y0, x1 - x0, y1 - y0),))


def centre_as_corner(raw: Raw) -> Raw:
    """Return the sample with the centre of its box read as the upper left corner."""
    x0, y0, x1, y1 = bounding_box(raw.mask)
    width, height = x1 - x0, y1 - y0
    return Raw(raw.image, None, ((x0 + width / 2, y0 + height / 2, x1 + width / 2, y1 + height / 2),))


def inverted_mask(raw: Raw) -> Raw:
    """Return the sample with the background as its ROI."""
    return dataclasses.replace(raw, mask=~raw.mask)


def half_scale(raw: Raw) -> Raw:
    """Return the sample with an ROI whose coordinates belong to an image of half the width and height."""
    mask = np.zeros_like(raw.mask)
    mask[: SIZE // 2, : SIZE // 2] = raw.mask[::2, ::2]
    return dataclasses.replace(raw, mask=mask)


def nearly_black(raw: Raw) -> Raw:
    """Return the sample with 12-bit values shown on a scale of 16 bits."""
    return dataclasses.replace(raw, image=raw.image // 16)


def inverted_image(raw: Raw) -> Raw:
    """Return the sample with black and white exchanged."""
    return dataclasses.replace(raw, image=255 - raw.image)


def large_and_upper_left(record: Record) -> bool:
    """Return whether x, y, width and height of the ROI can be read as two corners. `pack` refuses any other box."""
    x0, y0, x1, y1 = bounding_box(record.load().mask)
    return x0 < x1 - x0 and y0 < y1 - y0


def first_tile(source: Source, change: Callable[[Raw], Raw]) -> Image.Image:
    """Return the first tile of the contact sheet with its caption, after a change to each sample."""
    records = [dataclasses.replace(record, load=Changed(record, change)) for record in source.records]
    with tempfile.TemporaryDirectory() as folder:
        pack(dataclasses.replace(source, records=records), f"{folder}/shards", size=SIZE, progress=False)
        sheet = contact_sheet(ShardSet(f"{folder}/shards"), samples=1)
    return sheet.crop((0, 32, sheet.width, 32 + 224 + 32))


@dataclasses.dataclass(frozen=True)
class Changed:
    """The loader of a record whose sample is changed."""

    record: Record
    change: Callable[[Raw], Raw]

    def __call__(self) -> Raw:
        return self.change(self.record.load())


def side_by_side(name: str, source: Source, right: Callable[[Raw], Raw], wrong: Callable[[Raw], Raw]) -> None:
    """Write docs/data-NAME.png: the same sample read right and read wrong."""
    tiles = [first_tile(source, right), first_tile(source, wrong)]
    width, height = tiles[0].size
    picture = Image.new("RGB", (2 * width + GAP, TITLE + height), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(("right", "wrong")):
        left = column * (width + GAP)
        draw.text((left + 8, 2), title, "black", font_size=14)
        picture.paste(tiles[column], (left, TITLE))
    picture.quantize(palette=palette(), dither=Image.Dither.NONE).save(HERE / f"data-{name}.png", optimize=True)


def palette() -> Image.Image:
    """Return 32 greys and the yellow of the outline, which keep the files small."""
    greys = np.repeat(np.linspace(0, 255, 32).round().astype(int), 3).tolist()
    image = Image.new("P", (1, 1))
    image.putpalette([*greys, 255, 210, 0])
    return image


def main() -> None:
    """Write all pictures."""
    brain = phantom("brain", samples=60, size=SIZE, seed=4)
    chest = phantom("chest", samples=60, size=SIZE, seed=4)
    large = phantom("brain", samples=200, size=SIZE, roi_area=0.16, seed=4)
    large = dataclasses.replace(large, records=[record for record in large.records if large_and_upper_left(record)])
    side_by_side("swapped", chest, unchanged, swapped)
    side_by_side("sizes-as-corner", large, boxed, sizes_as_corner)
    side_by_side("centre-as-corner", brain, boxed, centre_as_corner)
    side_by_side("inverted-mask", brain, unchanged, inverted_mask)
    side_by_side("half-scale", chest, unchanged, half_scale)
    side_by_side("nearly-black", brain, unchanged, nearly_black)
    side_by_side("inverted-image", chest, unchanged, inverted_image)


if __name__ == "__main__":
    main()
