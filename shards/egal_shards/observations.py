"""What `pack` notices in a data set and says once: silences that would otherwise become wrong conclusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from egal_shards.errors import ShardError, printable
from egal_shards.polarity import LIGHT_BORDER, TWO_SIDED
from egal_shards.records import Raw, Source

FEWEST_GROUPS = 10
FEWEST_SAMPLES = 5  # fewest samples of a class on one side of the split
DARK = 0.02  # an image is nearly black if its 99th percentile lies below this share of the pixel range
COLOURFUL = 8  # an image is in colour if its channels differ by more than this many of 255 levels
LARGE_ROI = 0.8  # share of the image
MOST = 0.5  # a warning is worth it if more than this share of the ROIs is affected

_COLOUR, _CONSTANT, _DARK = "in colour", "constant", "nearly black"
_LARGE, _PIXEL = "large ROI", "one-pixel ROI"


def noticed(raw: Raw, channels: int, mask: np.ndarray) -> Iterator[str]:
    """Yield what is unusual about one sample.

    Args:
        raw: The decoded image.
        channels: Channels of the packed images.
        mask: Its ROI, bool, as it is packed.
    """
    image = raw.image
    if channels == 1 and image.ndim == 3 and int(np.ptp(image.astype(np.int32), axis=2).max()) > COLOURFUL:
        yield _COLOUR
    top = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    if image.min() == image.max():
        yield _CONSTANT
    elif image.dtype != np.uint16 and np.quantile(image[::4, ::4], 0.99) < DARK * top:
        yield _DARK
    area = int(np.count_nonzero(mask))
    if area > LARGE_ROI * mask.size:
        yield _LARGE
    elif area == 1:
        yield _PIXEL


def remarks(source: Source, splits: Sequence[str]) -> Iterator[str]:
    """Yield what is unusual about the groups and classes of a source, given the side of the split of each record."""
    if not source.classes:
        return  # without labels there is no split, so nothing to say about its sides
    groups = {record.group for record in source.records}
    if len(groups) < FEWEST_GROUPS:
        yield (
            f"{_counted(len(groups), 'group')} only: pool and test differ by few patients, so results say little about "
            "other patients"
        )
    counts = Counter((record.label, side) for record, side in zip(source.records, splits, strict=True))
    for side in ("pool", "test"):
        rare = [(name, counts[name, side]) for name in source.classes if counts[name, side] < FEWEST_SAMPLES]
        if rare:
            listed = ", ".join(f"{printable(name)!r} ({_counted(number, 'sample')})" for name, number in rare[:10])
            yield (
                f"fewer than {FEWEST_SAMPLES} {side} samples of class {listed}: metrics per class will be noisy; "
                "--drop-class NAME packs the set without a class"
            )


def check_masks(counts: Counter[str], name: str) -> None:
    """Raise ShardError if most masks look inverted, and the user has not said which of their sides is the ROI.

    Args:
        counts: Samples per kind or note.
        name: Name of the source.
    """
    if counts[LIGHT_BORDER] > MOST * counts[TWO_SIDED]:
        raise ShardError(
            f"{name}: {_light_masks(counts)}, as masks with inverted colours are; choose --mask-roi dark if the dark "
            "side is the ROI, --mask-roi light if the light side is"
        )


def summary(counts: Mapping[str, int], samples: int, with_roi: int) -> Iterator[str]:
    """Yield one line for each kind of `noticed` that is worth a warning, and for each note of a reader.

    Args:
        counts: Samples per kind or note.
        samples: Samples in the set.
        with_roi: Samples with an ROI.
    """
    for kind, number in sorted(counts.items()):
        some = f"{number} of {_counted(samples, 'sample')}"
        if kind == _COLOUR:
            yield f"{some} are in colour and packed as grey: --channels 3 keeps the colours"
        elif kind == _CONSTANT:
            yield f"{some} have one pixel value everywhere: look at the picture of `egal-bench inspect`"
        elif kind == _DARK:
            yield f"{some} are nearly black: if the files use a part of their range, give the window that shows it"
        elif kind in (_LARGE, _PIXEL):
            if number > MOST * with_roi:
                area = f"cover more than {LARGE_ROI:.0%} of the image" if kind == _LARGE else "are a single pixel"
                yield f"{number} of {with_roi} ROIs {area}: check the units of boxes, and masks with inverted colours"
        elif kind == LIGHT_BORDER:
            yield (
                f"{_light_masks(counts)}, unlike the others, and the light side is read as ROI: look at the picture "
                "of `egal-bench inspect`"
            )
        elif kind != TWO_SIDED:
            yield f"{printable(kind)} ({_counted(number, 'sample')})"


def _light_masks(counts: Mapping[str, int]) -> str:
    number, masks = counts[LIGHT_BORDER], _counted(counts[TWO_SIDED], "mask")
    return f"{number} of {masks} {'is' if number == 1 else 'are'} light along the border and dark inside"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
