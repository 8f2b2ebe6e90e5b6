"""The contract between a source and `pack`: records, each of which loads its own image and ROI.

`pack` calls `Record.load` in any thread or forked process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from egal_shards.errors import ShardError, did_you_mean

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image; x1 and y1 are exclusive


@dataclass(frozen=True)
class Raw:
    """One decoded image with its ROI: a mask, or the union of the boxes. Without both there is no ROI."""

    # [H,W] or [H,W,3]: uint8 or uint16 as the file stores it, or float32 from 0 (black) to 1 (white) after a window
    image: np.ndarray
    mask: np.ndarray | None  # bool [H,W]
    boxes: tuple[Box, ...] = ()
    # known only once the file is read; added to the `about` of the record
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One sample before it is decoded."""

    key: str  # unique in the source; 1 to 80 characters of A-Z a-z 0-9 _ -
    label: str  # class name; "" in a source without labels
    group: str  # the samples of one group (a patient) all go to one side of the split
    file: str  # path relative to the source, shown to people in errors
    load: Callable[[], Raw]
    duplicates: str = ""  # near-duplicate group; "" = none
    split: str = ""  # "pool" or "test" where the source fixes the split, else ""
    # other facts, as plain JSON values; they go into the sample's json
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A named, ordered collection of records."""

    name: str
    classes: tuple[str, ...]  # label i is classes[i]; none: the source has no labels
    records: Sequence[Record]
    made: dict  # the settings of the source, as plain JSON values; they go into the manifest
    channels: int | None = None  # number of modalities, and `pack` accepts no other; None: channels are colours

    def of_classes(self, only: Sequence[str] = (), drop: Sequence[str] = ()) -> "Source":
        """Return the source with the classes `only`, or without the classes `drop`; labels keep their order.

        Raises ShardError for a class that the source does not have, or where no two classes are left.
        """
        for name in (*only, *drop):
            if name not in self.classes:
                hint = did_you_mean(name, self.classes)
                raise ShardError(f"{self.name}: has no class {name!r}; {hint}it has {', '.join(self.classes[:10])}")
        kept = tuple(name for name in self.classes if name not in drop and (not only or name in only))
        if kept == self.classes:
            return self
        if len(kept) < 2:
            raise ShardError(f"{self.name}: a comparison needs two classes, and {len(kept)} would be left; keep more")
        records = [record for record in self.records if record.label in kept]
        return replace(self, classes=kept, records=records, made=self.made | {"classes": list(kept)})
