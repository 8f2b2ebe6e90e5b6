"""DICOM files as a reader of the image would see them: decoded, rescaled, windowed, upright in brightness.

Nothing that a file declares is believed before it is bounded: its length, what it inflates to, rows and columns, the
size inside its compressed stream. pydicom parses, pylibjpeg decodes.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from egal_shards.dicom.colour import shown_colour
from egal_shards.dicom.grey import shown_grey
from egal_shards.dicom.header import GREY, check_header
from egal_shards.dicom.parsing import parse
from egal_shards.dicom.streams import conform_stream
from egal_shards.errors import ShardError
from egal_shards.intensity import Window
from egal_shards.quiet import library_warnings_hidden
from egal_shards.rasters import in_one_line

# What pydicom and its decoders raise on damaged bytes; anything else is a bug and stays loud.
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


def read_dicom(path: Path, window: Window | None = None) -> np.ndarray:
    """Return a grey image as f32 [H,W], 0 (black) to 1 (white); one in colour as u8 or f32 [H,W,3].

    Grey values pass the modality transform (lookup table, or slope and intercept) and are shown through a window. They
    are inverted if the file says MONOCHROME1 or its presentation LUT shape is INVERSE. Pixel padding is black. Images
    in colour are f32 where they have more than 8 bits.

    Args:
        path: the file.
        window: (LOW, HIGH) in rescaled units. Without one, the file's first VOI lookup table or window applies (LINEAR,
            LINEAR_EXACT or SIGMOID; PS3.3 C.11.2), and in a file without either the values span their own minimum to
            maximum, padding left out.

    ShardError names a file that holds no image, several frames, or is damaged.
    """
    try:
        import pydicom.pixels.utils  # noqa: F401
    except ImportError:
        raise ShardError(f"{path}: DICOM files need an extra: pip install 'egal-bench[dicom]'") from None
    with library_warnings_hidden():
        try:
            dataset = parse(path)
            check_header(dataset, path)
            conform_stream(dataset, path)
            if str(dataset.PhotometricInterpretation) in GREY:
                return shown_grey(dataset, window, path)
            return shown_colour(dataset, window, path)
        except ShardError:
            raise
        except _DAMAGE as error:
            raise ShardError(
                f"{path}: cannot be decoded, it is cut short or damaged ({in_one_line(error)}); replace it"
            ) from None
