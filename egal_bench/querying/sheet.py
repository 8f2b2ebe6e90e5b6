"""The contact sheet of a query: its best samples with their ROI and the Grad-CAM of the predicted class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from egal_bench.files import replacing
from egal_bench.models.process import reproducible
from egal_bench.querying.choosing import Chooser, Chosen
from egal_bench.querying.score_files import told_of_full_disk
from egal_bench.querying.score_shard import images_of
from egal_bench.scoring.class_maps import class_maps
from egal_shards.errors import printable
from egal_shards.inspecting import label_font, outlined, pixels_of, shortened
from egal_shards.reader import Sample

SAMPLES = 100
COLUMNS = 10
TILE, CAPTION, GAP = 160, 44, 8  # pixels
LEGEND = 24  # pixels above the samples
# Of Okabe and Ito's colours, which colour-blind eyes tell apart, those that are rare in stained tissue, skin and fundi.
ROI_COLOUR, CAM_COLOUR = (86, 180, 233), (0, 158, 115)
OPACITY = 0.7  # of the Grad-CAM where it is highest


def write_sheet(chosen: Chosen, chooser: Chooser, path: Path) -> None:
    """Write the contact sheet of the first hundred samples as PNG, whole or not at all.

    Raises ShardError where the shard of a sample cannot be read.
    """
    number = min(SAMPLES, len(chosen.scores))
    tiles, font = _tiles(chosen, chooser, number), label_font(10)
    width = GAP + min(COLUMNS, max(number, 2)) * (TILE + GAP)  # the legend needs the width of two samples
    height = LEGEND + GAP + -(-number // COLUMNS) * (TILE + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    _draw_legend(sheet, draw, font)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * (TILE + GAP), LEGEND + GAP + row * (TILE + CAPTION + GAP)
        sheet.paste(Image.fromarray(tile), (left, top))
        for line, text in enumerate(_caption(chosen, place, chooser.network.classes)):
            draw.text((left, top + TILE + 1 + 14 * line), shortened(text, draw, font, TILE), (0, 0, 0), font)
    with told_of_full_disk(path), replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _tiles(chosen: Chosen, chooser: Chooser, number: int) -> list[np.ndarray]:
    """Return the pictures of the first samples, uint8 [TILE, TILE, 3]."""
    tiles: dict[int, np.ndarray] = {}
    for pool in chooser.sets:
        rows = np.flatnonzero(chosen.pools[:number] == pool.name)
        if not len(rows):
            continue
        samples, config = pool.samples_at(chosen.part.positions[rows]), chooser.config
        network, order = chooser.network.network, np.arange(len(rows))
        with reproducible(config.threads, tf32=config.precision == "tf32"):
            maps = class_maps(network, images_of(samples), order, config, chooser.device).maps
        for i, row in enumerate(rows.tolist()):
            tiles[row] = tile_of(samples[i], maps[i])
    return [tiles[row] for row in range(number)]


def tile_of(sample: Sample, class_map: np.ndarray) -> np.ndarray:
    """Return the picture of a sample, uint8 [TILE, TILE, 3]: its Grad-CAM in green, the more opaque the higher.

    Args:
        sample: gives the image and the ROI, which is outlined in blue.
        class_map: float [h, w]; the Grad-CAM is its positive part.
    """
    positive = np.maximum(np.nan_to_num(class_map), 0.0).astype(np.float32)
    resized = np.asarray(Image.fromarray(positive).resize((TILE, TILE), Image.Resampling.BILINEAR))
    cam = resized / resized.max() if resized.max() > 0 else resized
    blended = _blended(pixels_of(sample, TILE), cam)
    return outlined(blended, sample.roi, ROI_COLOUR) if sample.has_roi else blended


def _blended(pixels: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Return the pixels, uint8 [H, W, 3], under a Grad-CAM, float [H, W] in 0..1."""
    opacity = OPACITY * cam[..., None]
    return (pixels * (1 - opacity) + np.array(CAM_COLOUR) * opacity).round().astype(np.uint8)


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
    """Draw at the top what outline and colour mean, on the grey of a typical image."""
    ground, roi = np.full((16, 16, 3), 128, np.uint8), np.zeros((16, 16), dtype=bool)
    roi[3:13, 3:13] = True
    ramp = _blended(np.full((16, 64, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 64), (16, 1)))
    left = GAP
    for swatch, text in ((outlined(ground, roi, ROI_COLOUR), "ROI"), (ramp, "Grad-CAM, 0 to its maximum")):
        sheet.paste(Image.fromarray(swatch), (left, GAP))
        left += swatch.shape[1] + 4
        draw.text((left, GAP + 2), text, (0, 0, 0), font)
        left += int(draw.textlength(text, font)) + 16


def _caption(chosen: Chosen, place: int, classes: tuple[str, ...]) -> tuple[str, str, str]:
    """Return the three lines below a sample."""
    part, score = chosen.part, float(chosen.scores[place])
    misalignment = float(part.overlap.misalignment[place])
    numbers = [f"H {part.entropy[place]:.3f}"]
    numbers += [] if np.isnan(misalignment) else [f"D {misalignment:.3f}"]
    numbers += [] if np.isnan(score) else [f"score {score:.3f}"]
    predicted = classes[int(part.logits[place].argmax())]
    return f"{place + 1}. {part.keys[place]}", printable(predicted), " ".join(numbers)
