"""A summary of a shard set in numbers, and a picture in which a flipped axis or a wrong scale is obvious."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from egal_shards.errors import ShardError
from egal_shards.reader import Sample, ShardSet

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_TILE = 224  # pixels per side of a sample in the picture
_CAPTION = 32  # pixels below a sample
_GAP = 8
_OUTLINE, _RIM = (255, 210, 0), (0, 0, 0)  # colours of the outermost pixels of an ROI, and of those just outside
_INK, _PAPER = (0, 0, 0), (255, 255, 255)
_MAX_TILES = 400


@dataclass(frozen=True)
class ClassSummary:
    """The numbers of samples, groups and ROIs in one class or in the set."""

    samples: int
    splits: dict[str, int]
    groups: int
    with_roi: int
    roi_area: tuple[float, ...] | None  # % of the image, at QUANTILES over the samples with ROI; None without any


def summarise(shards: ShardSet) -> dict[str, ClassSummary]:
    """Return a summary of each class, in order, and of the set under the name "". Reads the index alone."""
    rows, size = shards.rows, shards.manifest.image.size
    group = rows.table["group"].combine_chunks().dictionary_encode().indices.to_numpy()
    split = rows.table["split"].to_numpy()
    share = 100 * rows.roi_area / size**2

    def summary(chosen: np.ndarray) -> ClassSummary:
        with_roi = share[chosen & (rows.roi_area > 0)]
        return ClassSummary(
            samples=int(chosen.sum()),
            splits={name: int((split[chosen] == name).sum()) for name in shards.manifest.counts.splits},
            groups=len(np.unique(group[chosen])),
            with_roi=len(with_roi),
            roi_area=tuple(np.quantile(with_roi, QUANTILES).tolist()) if len(with_roi) else None,
        )

    classes = {name: summary(rows.label == label) for label, name in enumerate(shards.classes)}
    return classes | {"": summary(np.ones(len(shards), bool))}


def contact_sheet(shards: ShardSet, samples: int = 6, seed: int = 0) -> Image.Image:
    """Return a picture with one row of random samples per class, their ROIs outlined, key and ROI area below.

    Samples with ROI come first, so that there is something to check. The picture has at most 400 tiles and leaves
    further classes out. A set without labels has a single row.

    Args:
        shards: Set to show.
        samples: Samples per class, 1 to 400.
        seed: Seed of the draw.
    """
    if not 1 <= samples <= _MAX_TILES:
        raise ShardError(f"samples {samples} is not between 1 and {_MAX_TILES}; 6 is usual")
    labels = (range(len(shards.classes)) or [-1])[: _MAX_TILES // samples]
    font = label_font()
    height = _CAPTION + len(labels) * (_TILE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (_GAP + samples * (_TILE + _GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    spec = shards.manifest.image
    count = f"{len(shards)} sample{'s' * (len(shards) != 1)}"
    title = f"{shards.name}: {count}, {spec.channels}×{spec.size}×{spec.size} {spec.dtype}, ROI outlined"
    draw.text((_GAP, 8), title, _INK, font)
    streams = np.random.default_rng(seed).spawn(len(labels))
    for row, (label, rng) in enumerate(zip(labels, streams, strict=True)):
        top = _CAPTION + row * (_TILE + _CAPTION + _GAP)
        for column, i in enumerate(_drawn(shards, label, samples, rng)):
            left, sample = _GAP + column * (_TILE + _GAP), shards[i]
            sheet.paste(Image.fromarray(outlined(pixels_of(sample, _TILE), sample.roi)), (left, top))
            for line, text in enumerate(_caption(sample, shards)):
                draw.text((left, top + _TILE + 1 + 14 * line), shortened(text, draw, font, _TILE), _INK, font)
    return sheet


def label_font(size: int = 12) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans: names of classes can need more alphabets than the font of Pillow has."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _drawn(shards: ShardSet, label: int, samples: int, rng: np.random.Generator) -> list[int]:
    """Return the rows of random samples of a class, those with ROI first."""
    rows = rng.permutation(np.flatnonzero(shards.rows.label == label))
    order = np.argsort(shards.rows.roi_area[rows] == 0, kind="stable")
    return [int(i) for i in rows[order[:samples]]]


def pixels_of(sample: Sample, side: int) -> np.ndarray:
    """Return the picture of a sample, uint8 [side, side, 3]."""
    pixels = sample.image.transpose(1, 2, 0)
    if pixels.dtype != np.uint8:  # show its darkest pixel as black and its brightest as white
        low, high = int(pixels.min()), int(pixels.max())
        pixels = ((pixels.astype(np.float64) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR))


def outlined(tile: np.ndarray, roi: np.ndarray, colour: tuple[int, int, int] = _OUTLINE) -> np.ndarray:
    """Return a copy of a picture, uint8 [side, side, 3], with the outline of the ROI, bool [H, W] of any size."""
    tile, at = tile.copy(), (np.arange(len(tile)) * len(roi)) // len(tile)
    roi = roi[np.ix_(at, at)]
    tile[_border(roi, beyond=False)] = colour
    tile[_border(~roi, beyond=True)] = _RIM  # a second colour, since no single one is visible on every image
    return tile


def _border(area: np.ndarray, beyond: bool) -> np.ndarray:
    """Return bool [H,W]: the pixels of the area that have a neighbour outside it.

    `beyond` says whether pixels beyond the image count as inside the area.
    """
    around = np.pad(area, 1, constant_values=beyond)
    return area & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def _caption(sample: Sample, shards: ShardSet) -> tuple[str, str]:
    """Return the two lines below a sample."""
    area = f"ROI {100 * sample.roi.mean():.2g} %" if sample.has_roi else "no ROI"
    return sample.key, f"{shards.classes[sample.label]}, {area}" if shards.classes else area


def shortened(text: str, draw: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    """Return the text, or only its end where it is wider than `width` pixels, since keys differ at their ends."""
    if draw.textlength(text, font) <= width:
        return text
    return next(
        short for start in range(1, len(text) + 1)
        if draw.textlength(short := f"…{text[start:]}", font) <= width
    )  # fmt: skip


def save_contact_sheet(shards: ShardSet, path: Path, samples: int, seed: int) -> None:
    """Write the picture as PNG, completely or not at all.

    Raises ShardError where it cannot be written, or where it would lie in the set, which allows no other files.
    """
    if path.resolve().parent == shards.path.resolve():
        raise ShardError(f"{path}: lies in the shard set, which holds only its own files; choose another file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        contact_sheet(shards, samples, seed).save(partial, "PNG")
        partial.replace(path)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror or error}; choose another file") from None
    finally:
        partial.unlink(missing_ok=True)
