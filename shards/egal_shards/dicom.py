"""DICOM files to what a reader of the image would see: decoded, rescaled, windowed, upright in brightness.

Nothing that a file declares is believed before it is bounded: its length, what it inflates to, rows and columns, the
size inside its compressed stream. pydicom parses, pylibjpeg decodes.
"""

import math
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

MAX_PIXELS = 100_000_000  # samples of one image, checked before decoding
MAX_ELEMENTS = 10_000  # at the top of a data set
MAX_BYTES = 1 << 29  # of a file, and of what a deflated one inflates to

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED)
_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{i}" for i in (50, 51, 57, 70, 80, 81))  # baseline to lossless, JPEG-LS
_JPEG2000 = tuple(f"1.2.840.10008.1.2.4.{i}" for i in (90, 91, 201, 202, 203))  # and high throughput
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG that give a size
# What pydicom and its decoders raise on damaged bytes; anything else is a bug and stays loud.
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


def read_dicom(path: Path, window: Window | None = None) -> np.ndarray:
    """f32 [H,W], 0 (black) to 1 (white), of a grey image; u8 or f32 [H,W,3] of one in colour.

    Grey values pass the modality transform (lookup table, or slope and intercept), then `window` (LOW, HIGH in those
    units); without one, the file's first VOI lookup table or window (LINEAR, LINEAR_EXACT or SIGMOID; PS3.3 C.11.2),
    and in a file without either their own minimum to maximum. MONOCHROME1 is inverted. Of colour images f32 are those
    of more than 8 bits. ShardError names a file that holds no image, several frames, or is damaged.
    """
    try:
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise ShardError(f"{path}: DICOM files need an extra: pip install 'egal-bench[dicom]'") from None
    try:
        dataset = _parsed(path)
        _check_header(dataset, path)
        # one decoder for all compressed files, so that one file gives one image wherever Pillow or GDCM are, too
        plugin = "" if dataset.file_meta.TransferSyntaxUID in _NATIVE else "pylibjpeg"
        return _shown(pixel_array(dataset, decoding_plugin=plugin), dataset, window, path)
    except ShardError:
        raise
    except _DAMAGE as error:
        raise ShardError(
            f"{path}: cannot be decoded, it is cut short or damaged ({_line(error)}); replace it"
        ) from None


def _parsed(path: Path) -> "Dataset":
    """The data set of a file, whose bytes and inflated bytes are bounded."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ShardError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; export the image alone")
        raw = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the path") from None
    if raw[128:132] != b"DICM":
        raise ShardError(f"{path}: is not a DICOM file; replace it, or name it by what it is")
    stream = BytesIO(raw)  # whose reads are of what is there, whatever length is declared
    stream.seek(132)
    meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2))
    syntax = meta.TransferSyntaxUID
    if syntax == _DEFLATED:
        stream = BytesIO(_inflated(stream.read(), path))
    dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=_counted())
    dataset.file_meta = meta
    return dataset


def _counted() -> Callable[["BaseTag", str | None, int], bool]:
    """Stops no reading, but ends one of more elements than an image has."""
    counter = count()

    def stop(tag: "BaseTag", vr: str | None, length: int) -> bool:
        if next(counter) == MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements")
        return False

    return stop


def _inflated(data: bytes, path: Path) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, MAX_BYTES)
    if not inflater.eof:
        what = f"inflates to more than {MAX_BYTES >> 20} MiB" if len(plain) == MAX_BYTES else "is cut short"
        raise ShardError(f"{path}: its deflated data set {what}; replace it")
    return plain


def _check_header(dataset: "Dataset", path: Path) -> None:
    """ShardError unless there is one frame of a kind that is read, of a bounded size, within its stream as without."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*_NATIVE, _RLE, *_JPEG, *_JPEG2000):
        raise ShardError(
            f"{path}: its transfer syntax {syntax.name} is not read; convert it to Explicit VR Little Endian"
        )
    if "PixelData" not in dataset or not dataset.PixelData:
        raise ShardError(f"{path}: has no pixel data; replace it, or remove its line")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ShardError(f"{path}: holds {frames} frames; save the one you want as its own file")
    rows, columns, planes = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    interpretation = str(dataset.PhotometricInterpretation)
    wanted = 3 if interpretation in _COLOUR else 1
    if interpretation not in (*_GREY, *_COLOUR, "PALETTE COLOR") or planes != wanted:
        raise ShardError(f"{path}: {interpretation} of {planes} samples a pixel is not read; convert it to MONOCHROME2")
    if dataset.BitsAllocated not in (8, 16, 32) or not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise ShardError(
            f"{path}: {dataset.BitsStored} bits stored in {dataset.BitsAllocated} are not read; "
            "convert it to 8 or 16 bits allocated"
        )
    if not 0 < rows * columns * planes <= MAX_PIXELS:
        raise ShardError(
            f"{path}: declares {columns}×{rows} (w×h) pixels; 1 to {MAX_PIXELS // 1_000_000} million are read"
        )
    if syntax not in _NATIVE:
        _check_stream(dataset, (columns, rows, planes), path)


def _check_stream(dataset: "Dataset", declared: tuple[int, int, int], path: Path) -> None:
    """ShardError unless the compressed frame is of the declared size, so that its decoder allocates no more."""
    from pydicom.encaps import generate_frames

    [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _RLE:
        most = 2 * math.prod(declared) * dataset.BitsAllocated // 8 + 64
        if len(frame) > most:
            raise ShardError(
                f"{path}: its RLE frame of {len(frame)} bytes is longer than its pixels can need; replace it"
            )
        return
    found = _jpeg_size(frame) if syntax in _JPEG else _jpeg2000_size(frame)
    if found != declared:
        raise ShardError(
            f"{path}: its compressed image is {'×'.join(map(str, found))} (w×h×samples), "
            f"its header says {'×'.join(map(str, declared))}; replace it"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """(width, height, components) of a JPEG or JPEG-LS stream. ValueError unless it has one frame header."""
    sizes = []
    at = 2
    while frame[at + 1] != 0xDA:  # up to the first scan
        if frame[at] != 0xFF or frame[:2] != b"\xff\xd8":
            raise ValueError("no JPEG stream")
        if frame[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if frame[at + 1] in _FRAME_HEADERS:
            height, width, components = struct.unpack_from(">HHB", frame, at + 5)
            sizes.append((width, height, components))
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    if len(sizes) != 1:
        raise ValueError(f"{len(sizes)} frame headers in one JPEG stream")
    return sizes[0]


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """(width, height, components) of a JPEG 2000 codestream, by its SIZ segment."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    return right - left, bottom - top, struct.unpack_from(">H", frame, 40)[0]


def _shown(values: np.ndarray, dataset: "Dataset", window: Window | None, path: Path) -> np.ndarray:
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation not in _GREY:
        return _coloured(values, dataset, window, path)
    values = _modality(values, dataset)
    shown = windowed(values, window) if window else _voi(values, dataset, path)
    return np.subtract(1, shown, out=shown) if interpretation == "MONOCHROME1" else shown


def _coloured(values: np.ndarray, dataset: "Dataset", window: Window | None, path: Path) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    if window:
        raise ShardError(f"{path}: is in colour, and a window is for grey values; leave the window or the file out")
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        bits = 8 * values.dtype.itemsize
    return values if bits == 8 and values.dtype == np.uint8 else windowed(values, (0, 2**bits - 1))


def _modality(values: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Manufacturer's units: by lookup table, or slope and intercept, or as they are."""
    if tables := dataset.get("ModalityLUTSequence"):
        return _looked_up(values, tables[0], dataset)[0]
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    return values if (slope, intercept) == (1, 0) else values * slope + intercept


def _voi(values: np.ndarray, dataset: "Dataset", path: Path) -> np.ndarray:
    """f32 0…1: by the file's first VOI lookup table, or its first window, or from minimum to maximum."""
    if tables := dataset.get("VOILUTSequence"):
        entries, top = _looked_up(values, tables[0], dataset)
        return windowed(entries, (0, top))
    if not dataset.get("WindowWidth"):
        low, high = float(values.min()), float(values.max())
        return windowed(values, (low, high)) if low < high else np.zeros(values.shape, np.float32)
    centre, width = _number(dataset, "WindowCenter", None), _number(dataset, "WindowWidth", None)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0:
        raise ShardError(f"{path}: VOI function {function} of width {width:g} is not defined; give a window LOW,HIGH")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))).astype(np.float32)
    if function == "LINEAR":  # for integers: w-1 steps between the first and the last
        centre, width = centre - 0.5, width - 1
    if width == 0:  # LINEAR of width 1 is a threshold
        return (values > centre).astype(np.float32)
    return windowed(values, (centre - width / 2, centre + width / 2))


def _looked_up(values: np.ndarray, table: "Dataset", dataset: "Dataset") -> tuple[np.ndarray, int]:
    """(entries of a modality or VOI lookup table, its largest possible entry)."""
    size, first, bits = (int(number) for number in table.LUTDescriptor)
    data: Any = table.LUTData
    if isinstance(data, bytes):
        order = ">" if dataset.file_meta.TransferSyntaxUID.is_little_endian is False else "<"
        data = np.frombuffer(data, f"{order}u2")
    entries = np.asarray(data, np.int64).reshape(-1)[: size or 1 << 16]
    if len(entries) != (size or 1 << 16) or not 8 <= bits <= 16:
        raise ValueError(f"a lookup table of {len(entries)} entries of {bits} bits is not the {size} that it declares")
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)], 2**bits - 1


def _number(dataset: "Dataset", name: str, default: float | None) -> float:
    """The first value of an element. ValueError where it is no finite number."""
    value = dataset.get(name)
    if value is None or value == "":
        value = default
    number = float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "insert") else value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
