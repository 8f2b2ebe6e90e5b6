"""Modality and VOI lookup tables (PS3.3 C.11.1 and C.11.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from egal_shards.dicom.header import words

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class LookupTable:
    """A table that maps integers from `first` on; inputs outside get the nearest entry."""

    first: int
    entries: np.ndarray  # i64 [N]

    @property
    def top(self) -> int:
        """The largest value of as many bits as the entries really use, whatever width the file declares."""
        return (1 << int(self.entries.max()).bit_length()) - 1

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the entries for these values."""
        at = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(at, 0, len(self.entries) - 1, out=at)]


def lookup_table(item: "Dataset", low: float, high: float) -> LookupTable:
    """Return the table of an item of a sequence.

    Args:
        item: with LUTDescriptor and LUTData.
        low: the smallest input that is possible.
        high: the largest one.

    ValueError where the data are not as long as the descriptor says.
    """
    descriptor, vr = words(item, "LUTDescriptor")
    if len(descriptor) != 3:
        raise ValueError(f"a lookup table whose descriptor has {len(descriptor)} values, not 3")
    size, bits = int(descriptor[0]) or 1 << 16, int(descriptor[2])
    entries, _ = words(item, "LUTData")
    if bits <= 8 and len(entries) == (size + 1) // 2 < size:  # two entries in a word
        entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < size or not 8 <= bits <= 16:
        raise ValueError(f"a lookup table of {len(entries)} entries of {bits} bits is not the {size} that it declares")
    return LookupTable(_first_input(int(descriptor[1]), vr, low, high), entries[:size].astype(np.int64))


def _first_input(word: int, vr: str | None, low: float, high: float) -> int:
    """Return the first input that a table maps, from the 16-bit word in its descriptor.

    The word is signed where the inputs are, but files in implicit VR do not say so, and some say US of signed inputs.
    What lies among the possible inputs decides, and the VR only where both readings do.
    """
    signed = word - (1 << 16)
    if word < 1 << 15:
        return word
    signed_fits, unsigned_fits = low <= signed <= high, low <= word <= high
    if signed_fits != unsigned_fits:
        return signed if signed_fits else word
    if signed_fits:
        return word if vr == "US" else signed
    return signed if vr == "SS" or low < 0 else word
