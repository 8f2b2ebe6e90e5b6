"""Which side of a mask is its ROI: the light one, or in masks with inverted colours the dark one.

One file alone does not tell: a light frame around a dark region can be a ring. If most masks of a set look like that,
`observations.check_masks` refuses the set until the user chooses a side.
"""

from typing import Literal, get_args

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.notes import note

MaskRoi = Literal["light", "dark"]

# The kinds that are counted, as `note` writes them.
TWO_SIDED = "a mask with pixels inside and outside"
LIGHT_BORDER = "a mask that is light along its border and dark somewhere inside"

_BORDER = 0.9  # a mask looks inverted if at least this share of its border is light


def check_mask_roi(choice: str | None) -> None:
    """Raise ShardError for a choice that is no side of a mask."""
    if choice not in (None, *get_args(MaskRoi)):
        raise ShardError(f"mask_roi {choice!r} is neither light nor dark")


def roi_side(light: np.ndarray, choice: MaskRoi | None) -> np.ndarray:
    """Return the ROI of one mask file, bool [H,W].

    Without a choice the ROI is the light side. A note tells whether the mask looks inverted, also after a choice.

    Args:
        light: The pixels above 0 (`masks.roi_of`), bool [H,W].
        choice: The side that the user chose.
    """
    if choice is not None:
        roi = ~light if choice == "dark" else light
        if _fills_border(roi):
            note(f"with --mask-roi {choice} a mask whose ROI fills the border: look at the picture of `inspect`")
        return roi
    if light.any() and not light.all():
        note(TWO_SIDED)
        if _fills_border(light):
            note(LIGHT_BORDER)
    return light


def _fills_border(side: np.ndarray) -> bool:
    """Return whether a side of a mask, bool [H,W], covers nearly all of the border."""
    return bool(np.concatenate([side[0], side[-1], side[1:-1, 0], side[1:-1, -1]]).mean() >= _BORDER)
