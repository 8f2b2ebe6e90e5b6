"""The bytes of one sample: members, npy headers, ROI bits. docs/shards.md specifies them."""

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
BLOCK = 512  # bytes of a tar block
HEADER = 128  # bytes of an npy header
ROI_LAYOUT = "u32-along-y"
MAX_SAMPLE_JSON = 1 << 20  # bytes
MAX_SIZE = 4096  # pixels per side
MAX_TEXT = 1024  # bytes in the name of a group

ImageFormat = Literal["npy", "png", "jpg"]
ImageDtype = Literal["uint8", "uint16"]
DESCR = {"uint8": "|u1", "uint16": "<u2"}
_PILLOW = {"png": "PNG", "jpg": "JPEG"}
_MODES = {  # mode in Pillow by format, dtype and channels; Pillow has no mode for combinations that are missing
    ("png", "uint8", 1): "L",
    ("png", "uint8", 3): "RGB",
    ("png", "uint16", 1): "I;16",
    ("jpg", "uint8", 1): "L",
    ("jpg", "uint8", 3): "RGB",
}


class SampleJson(BaseModel):
    """The contents of `<key>.json`: facts about a sample for people and other tools."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    label: int
    class_: Annotated[str, Field(alias="class")]
    group: str
    split: Literal["pool", "test"]
    boxes: tuple[tuple[float, float, float, float], ...]  # x0, y0, x1, y1 in original pixels
    original_size: tuple[int, int]  # width, height
    file: str
    about: dict[str, JsonValue] = Field(default_factory=dict)  # other facts from the source; left out where empty

    def to_bytes(self) -> bytes:
        """Return the payload of `<key>.json`."""
        fields = self.model_dump(by_alias=True, exclude_defaults=True)
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def members(key: str, image_format: str, has_roi: bool) -> list[str]:
    """Return the names of the members of a sample, in their order in the shard."""
    return [f"{key}.image.{image_format}", *([f"{key}.roi.npy"] if has_roi else []), f"{key}.json"]


def padded(size: int) -> int:
    """Return `size` rounded up to full tar blocks."""
    return -(-size // BLOCK) * BLOCK


_OWNER = b"0000644\0" + 2 * b"0000000\0"  # mode, user, group
_TIME = b"\0" + b"00000000000\0"
_TYPE = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")  # type, link, magic, version
_FIXED_SUM = sum(_OWNER + _TIME + 8 * b" " + _TYPE)  # sum of all bytes but those of name and size


def member_header(name: str, size: int) -> bytes:
    """Return the 512-byte ustar header of a regular file with mode 644 and no owner or time."""
    name_field, size_field = name.encode("ascii"), b"%011o" % size
    checksum = sum(name_field) + sum(size_field) + _FIXED_SUM  # ustar sums all bytes, its own eight as blanks
    return b"".join((name_field.ljust(100, b"\0"), _OWNER, size_field, _TIME, b"%06o\0 " % checksum, _TYPE))


@lru_cache(maxsize=64)
def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return the 128-byte npy 1.0 header for a C-ordered array of this dtype and shape.

    Readers accept these bytes and no other header.
    """
    fields = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + fields.ljust(HEADER - 11).encode() + b"\n"


def roi_shape(size: int) -> tuple[int, int]:
    """Return the shape [W, ceil(H/32)] of ROI words: one row of words for each image column."""
    return size, -(-size // 32)


def pack_rows(mask: np.ndarray) -> np.ndarray:
    """Return the ROI words '<u4' [W, ceil(H/32)] of a mask bool [H,W].

    Bit y%32 of word y//32 of row x is pixel (y,x). Padding bits are 0.
    """
    height, width = mask.shape
    columns = np.zeros((width, -(-height // 32) * 32), bool)
    columns[:, :height] = mask.T
    return np.packbits(columns, axis=1, bitorder="little").view("<u4")


def unpack_rows(words: np.ndarray, height: int) -> np.ndarray:
    """Return the mask bool [H,W] of ROI words, ignoring the padding bits: the inverse of `pack_rows`."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(bits[:, :height].T).view(bool)


def storable(image_format: ImageFormat, dtype: ImageDtype, channels: int) -> bool:
    """Return whether this format can store images of this dtype and number of channels."""
    return image_format == "npy" or (image_format, dtype, channels) in _MODES


def encode_image(image: np.ndarray, image_format: ImageFormat) -> bytes:
    """Return the payload of `<key>.image.*` for an image uint8 or uint16 [H,W] or [H,W,3] that is `storable`.

    npy holds the image as [C,H,W].
    """
    if image_format == "npy":
        descr = image.dtype.newbyteorder("<").str  # a value of DESCR
        planes = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1), descr)
        return npy_header(descr, planes.shape) + planes.data.cast("B")
    stream = io.BytesIO()
    lossy = {"quality": 95, "subsampling": 0} if image_format == "jpg" else {}
    Image.fromarray(image).save(stream, _PILLOW[image_format], **lossy)
    return stream.getvalue()


def decode_image(
    payload: bytes, image_format: ImageFormat, dtype: ImageDtype, channels: int, size: int, where: str
) -> np.ndarray:
    """Return the image uint8 or uint16 [C,H,W] of a payload that `encode_image` wrote. It may be read-only.

    Raises ShardError, beginning with `where`, for any other payload.
    """
    shape = (channels, size, size)
    if image_format == "npy":
        return _npy(payload, DESCR[dtype], shape, where)
    try:
        with Image.open(io.BytesIO(payload), formats=(_PILLOW[image_format],)) as image:
            if image.size != (size, size) or image.mode != _MODES[image_format, dtype, channels]:
                raise ShardError(
                    f"{where}: its image is not the {dtype} {channels}×{size}×{size} that the manifest declares; "
                    "pack the set again"
                )
            pixels = np.asarray(image)
    except ShardError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ShardError(f"{where}: its image cannot be decoded ({error}); pack the set again") from None
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def encode_roi(mask: np.ndarray) -> bytes:
    """Return the payload of `<key>.roi.npy` for a mask bool [H,W]."""
    words = pack_rows(mask)
    return npy_header("<u4", words.shape) + words.tobytes()


def decode_roi(payload: bytes, size: int, where: str) -> np.ndarray:
    """Return the ROI words '<u4' [W, ceil(H/32)] of a payload that `encode_roi` wrote, or raise ShardError."""
    return _npy(payload, "<u4", roi_shape(size), where)


def _npy(payload: bytes, descr: str, shape: Sequence[int], where: str) -> np.ndarray:
    """Return the array of an npy payload, or raise ShardError unless it has this dtype and shape."""
    header = npy_header(descr, tuple(shape))
    dtype = np.dtype(descr)
    if payload[:HEADER] != header or len(payload) != HEADER + dtype.itemsize * math.prod(shape):
        raise ShardError(
            f"{where}: an array in it is not the {descr} {list(shape)} that the manifest declares; pack the set again"
        )
    return np.frombuffer(payload, dtype, offset=HEADER).reshape(shape)
