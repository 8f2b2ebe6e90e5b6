"""The contact sheet of a query: its best samples with their ROI and the Grad-CAM of the predicted class."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

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
OPACITY = 0.6  # of the Grad-CAM where it is highest


def write_sheet(chosen: Chosen, chooser: Chooser, path: Path) -> None:
    """Write the contact sheet of the first hundred samples as PNG, whole or not at all.

    Raises ShardError where the shard of a sample cannot be read.
    """
    number = min(SAMPLES, len(chosen.scores))
    tiles, font = _tiles(chosen, chooser, number), label_font(10)
    width = GAP + min(COLUMNS, number) * (TILE + GAP)
    sheet = Image.new("RGB", (width, GAP + -(-number // COLUMNS) * (TILE + CAPTION + GAP)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION + GAP)
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
    """Return the picture of a sample, uint8 [TILE, TILE, 3]: its Grad-CAM in colours, the more opaque the higher.

    Args:
        sample: gives the image and the ROI, which is outlined.
        class_map: float [h, w]; the Grad-CAM is its positive part.
    """
    positive = np.maximum(np.nan_to_num(class_map), 0.0).astype(np.float32)
    resized = np.asarray(Image.fromarray(positive).resize((TILE, TILE), Image.Resampling.BILINEAR))
    cam = resized / resized.max() if resized.max() > 0 else resized
    colours, opacity = 255 * matplotlib.colormaps["inferno"](cam)[..., :3], OPACITY * cam[..., None]
    blended = (pixels_of(sample, TILE) * (1 - opacity) + colours * opacity).round().astype(np.uint8)
    return outlined(blended, sample.roi) if sample.has_roi else blended


def _caption(chosen: Chosen, place: int, classes: tuple[str, ...]) -> tuple[str, str, str]:
    """Return the three lines below a sample."""
    part, score = chosen.part, float(chosen.scores[place])
    misalignment = float(part.overlap.misalignment[place])
    numbers = [f"H {part.entropy[place]:.3f}"]
    numbers += [] if np.isnan(misalignment) else [f"D {misalignment:.3f}"]
    numbers += [] if np.isnan(score) else [f"score {score:.3f}"]
    predicted = classes[int(part.logits[place].argmax())]
    return f"{place + 1}. {part.keys[place]}", printable(predicted), " ".join(numbers)
