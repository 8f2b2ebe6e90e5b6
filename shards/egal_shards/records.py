"""What a source hands to `pack`: records that load themselves, one at a time, in any thread or forked process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image; x1 and y1 are exclusive


@dataclass(frozen=True)
class Raw:
    """One decoded image with its ROI: a mask, or the union of boxes, or (neither) none."""

    image: (
        np.ndarray
    )  # [H,W] or [H,W,3]: uint8 or uint16 as stored, or float32, 0 (black) to 1 (white), through a window
    mask: np.ndarray | None  # bool [H,W]
    boxes: tuple[Box, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)  # what only the file tells, beside the `about` of its record


@dataclass(frozen=True)
class Record:
    """One sample before it is decoded."""

    key: str  # unique in the source; 1 to 80 of A-Z a-z 0-9 _ -
    label: str  # class name
    group: str  # samples of one group (a patient) never span pool and test
    file: str  # where the sample came from, for people: a path relative to the source
    load: Callable[[], Raw]
    duplicates: str = ""  # near-duplicate group; "" = none
    split: str = ""  # "pool" | "test" where the source fixes it, else ""
    about: dict[str, Any] = field(default_factory=dict)  # JSON-able: what else is known; goes into the sample's json


@dataclass(frozen=True)
class Source:
    """A named, ordered collection of records."""

    name: str
    classes: tuple[str, ...]  # label i is classes[i]
    records: Sequence[Record]
    made: dict  # JSON-able: how the source was configured; goes into the manifest
    channels: int | None = None  # set where they are no colours and must not be mixed: the one number to pack
