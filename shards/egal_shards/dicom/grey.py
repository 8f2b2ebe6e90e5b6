"""From stored grey values to what is shown: modality transform, window, inversion, padding."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from egal_shards.dicom.decoding import Stored, stored_values
from egal_shards.dicom.header import number
from egal_shards.dicom.luts import lookup_table
from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed
from egal_shards.notes import note

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_BLOCK = 1 << 20  # pixels that are computed at a time in 64 bits

Step = Callable[[np.ndarray], np.ndarray]


def shown_grey(dataset: "Dataset", window: Window | None, path: Path) -> np.ndarray:
    """Return f32 [H,W], 0 (black) to 1 (white), as `read_dicom` describes."""
    inverted = _is_inverted(dataset)
    stored = stored_values(dataset)
    modality, low, high = _modality(dataset, stored)
    if window:
        show: Step = lambda values: windowed(values, window)  # noqa: E731
    else:
        show = _voi(dataset, low, high, path) or _own_range(stored, modality)
    shown = np.empty(stored.values.shape, np.float32)
    for rows in _row_blocks(stored.values):
        shown[rows] = show(modality(stored.values[rows]))
    if inverted:
        np.subtract(1, shown, out=shown)
    if stored.padding is not None:
        shown[stored.padding] = 0
    return shown


def _is_inverted(dataset: "Dataset") -> bool:
    """Return whether low values are bright. MONOCHROME1 together with the shape INVERSE is one inversion."""
    is_inverse = str(dataset.get("PresentationLUTShape") or "").strip().upper() == "INVERSE"
    if str(dataset.PhotometricInterpretation) == "MONOCHROME1":
        return True
    if is_inverse:
        note("DICOM files of MONOCHROME2 with the presentation LUT shape INVERSE: they are shown inverted")
    return is_inverse


def _row_blocks(values: np.ndarray) -> Iterator[slice]:
    step = max(1, _BLOCK // values.shape[1])
    for row in range(0, values.shape[0], step):
        yield slice(row, row + step)


def _modality(dataset: "Dataset", stored: Stored) -> tuple[Step, float, float]:
    """Return (the transform to the manufacturer's units, the smallest and the largest result that is possible)."""
    if tables := dataset.get("ModalityLUTSequence"):
        table = lookup_table(tables[0], stored.low, stored.high)
        return table, 0, table.top
    slope, intercept = number(dataset, "RescaleSlope", 1.0), number(dataset, "RescaleIntercept", 0.0)
    if (slope, intercept) == (1, 0):
        return lambda values: values, stored.low, stored.high
    low, high = sorted((stored.low * slope + intercept, stored.high * slope + intercept))
    return lambda values: values * slope + intercept, low, high


def _own_range(stored: Stored, modality: Step) -> Step:
    """Return the window from the smallest to the largest value that is no padding; all black where they are equal."""
    low, high = np.inf, -np.inf
    for rows in _row_blocks(stored.values):
        values = stored.values[rows]
        if stored.padding is not None:
            values = values[~stored.padding[rows]]
        if values.size:
            values = modality(values)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low < high:
        return lambda values: windowed(values, (low, high))
    return lambda values: np.zeros(values.shape, np.float32)


def _voi(dataset: "Dataset", low: float, high: float, path: Path) -> Step | None:
    """Return the file's first VOI lookup table, else its first window; None where it has neither."""
    if tables := dataset.get("VOILUTSequence"):
        table = lookup_table(tables[0], low, high)
        return lambda values: windowed(table(values), (0, table.top or 1))
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    return _window(str(dataset.get("VOILUTFunction") or "LINEAR").upper(), centre, width, path)


def _window(function: str, centre: float, width: float, path: Path) -> Step:
    """Return a window by its VOI LUT function (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0:
        raise ShardError(f"{path}: VOI function {function} of width {width:g} is not defined; give a window LOW,HIGH")
    if function == "SIGMOID":
        return lambda values: _sigmoid(values, centre, width)
    if function == "LINEAR":  # a window of w integers has w-1 steps between its first and its last
        centre, width = centre - 0.5, width - 1
    if width == 0:  # LINEAR of width 1 is a threshold
        return lambda values: (values > centre).astype(np.float32)
    return lambda values: windowed(values, (centre - width / 2, centre + width / 2))


def _sigmoid(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))).astype(np.float32)
