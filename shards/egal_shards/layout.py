"""The bytes of one sample: members, npy headers, ROI bits. README.md specifies them."""

import io
import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from egal_shards.errors import ShardError

SPLITS = ("pool", "test")
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)
BLOCK = 512  # tar block
HEADER = 128  # npy header
ROI_LAYOUT = "u32-along-y"
MAX_SAMPLE_JSON = 1 << 20
MAX_SIZE = 4096
MAX_TEXT = 1024  # bytes of a group

ImageFormat = Literal["npy", "png", "jpg"]
ImageDtype = Literal["uint8", "uint16"]
DESCR = {"uint8": "|u1", "uint16": "<u2"}
_PILLOW = {"png": "PNG", "jpg": "JPEG"}
_MODES = {  # of Pillow, by format, dtype and channels; what is missing it cannot write or read
    ("png", "uint8", 1): "L",
    ("png", "uint8", 3): "RGB",
    ("png", "uint16", 1): "I;16",
    ("jpg", "uint8", 1): "L",
    ("jpg", "uint8", 3): "RGB",
}


class SampleJson(BaseModel):
    """`<key>.json`: what people and other tools may want to know of a sample."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    label: int
    class_: Annotated[str, Field(alias="class")]
    group: str
    split: Literal["pool", "test"]
    boxes: tuple[tuple[float, float, float, float], ...]  # x0, y0, x1, y1 in original pixels
    original_size: tuple[int, int]  # width, height
    file: str
    about: dict[str, JsonValue] = Field(default_factory=dict)  # what else the source knows; left out where empty

    def to_bytes(self) -> bytes:
        fields = self.model_dump(by_alias=True, exclude_defaults=True)
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def members(key: str, image_format: str, has_roi: bool) -> list[str]:
    """Member names of a sample, in the order in which they lie in the shard."""
    return [f"{key}.image.{image_format}", *([f"{key}.roi.npy"] if has_roi else []), f"{key}.json"]


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


_OWNED = b"0000644\0" + 2 * b"0000000\0"  # mode, user, group
_TIMED = b"\0" + b"00000000000\0"
_TYPED = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")  # type, link, magic and version
_CHECKED = sum(_OWNED + _TIMED + 8 * b" " + _TYPED)


def member_header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a regular file with mode 644 and no owner or time."""
    named, sized = name.encode("ascii"), b"%011o" % size
    total = sum(named) + sum(sized) + _CHECKED  # of all bytes, those of the checksum as blanks
    return b"".join((named.ljust(100, b"\0"), _OWNED, sized, _TIMED, b"%06o\0 " % total, _TYPED))


@lru_cache(maxsize=64)
def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The one 128-byte npy 1.0 header that we write, and accept, for a C-ordered array of this dtype and shape."""
    fields = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + fields.ljust(HEADER - 11).encode() + b"\n"


def roi_shape(size: int) -> tuple[int, int]:
    """[W, ceil(H/32)]: one row of words for each image column."""
    return size, -(-size // 32)


def pack_rows(mask: np.ndarray) -> np.ndarray:
    """'<u4' [W, ceil(H/32)] of a bool [H,W]: bit y%32 of word y//32 of row x is pixel (y,x); padding bits are 0."""
    height, width = mask.shape
    columns = np.zeros((width, -(-height // 32) * 32), bool)
    columns[:, :height] = mask.T
    return np.packbits(columns, axis=1, bitorder="little").view("<u4")


def unpack_rows(words: np.ndarray, height: int) -> np.ndarray:
    """bool [H,W], the inverse of `pack_rows`; the padding bits are not looked at."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(bits[:, :height].T).view(bool)


def storable(image_format: ImageFormat, dtype: ImageDtype, channels: int) -> bool:
    """Whether images of this dtype and number of channels can be stored in this format."""
    return image_format == "npy" or (image_format, dtype, channels) in _MODES


def encode_image(image: np.ndarray, image_format: ImageFormat) -> bytes:
    """Payload of `<key>.image.*` for u8 or u16 [H,W] or [H,W,3], if `storable`; npy holds it as [C,H,W]."""
    if image_format == "npy":
        descr = image.dtype.newbyteorder("<").str  # one of DESCR
        planes = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1), descr)
        return npy_header(descr, planes.shape) + planes.data.cast("B")
    stream = io.BytesIO()
    lossy = {"quality": 95, "subsampling": 0} if image_format == "jpg" else {}
    Image.fromarray(image).save(stream, _PILLOW[image_format], **lossy)
    return stream.getvalue()


def decode_image(
    payload: bytes, image_format: ImageFormat, dtype: ImageDtype, channels: int, size: int, where: str
) -> np.ndarray:
    """u8 or u16 [C,H,W] of a payload that came from `encode_image`, else ShardError. The array may be read-only."""
    shape = (channels, size, size)
    if image_format == "npy":
        return _npy(payload, DESCR[dtype], shape, where)
    try:
        with Image.open(io.BytesIO(payload), formats=(_PILLOW[image_format],)) as image:
            if image.size != (size, size) or image.mode != _MODES[image_format, dtype, channels]:
                raise ShardError(
                    f"{where}: its image is not the {dtype} {channels}×{size}×{size} that the manifest declares"
                )
            pixels = np.asarray(image)
    except ShardError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ShardError(f"{where}: its image cannot be decoded ({error}); pack the set again") from None
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def encode_roi(mask: np.ndarray) -> bytes:
    """Payload of `<key>.roi.npy` for bool [H,W]."""
    words = pack_rows(mask)
    return npy_header("<u4", words.shape) + words.tobytes()


def decode_roi(payload: bytes, size: int, where: str) -> np.ndarray:
    """'<u4' [W, ceil(H/32)] of a payload that came from `encode_roi`, else ShardError."""
    return _npy(payload, "<u4", roi_shape(size), where)


def _npy(payload: bytes, descr: str, shape: Sequence[int], where: str) -> np.ndarray:
    header = npy_header(descr, tuple(shape))
    dtype = np.dtype(descr)
    if payload[:HEADER] != header or len(payload) != HEADER + dtype.itemsize * math.prod(shape):
        raise ShardError(
            f"{where}: an array in it is not the {descr} {list(shape)} that the manifest declares; pack again"
        )
    return np.frombuffer(payload, dtype, offset=HEADER).reshape(shape)
