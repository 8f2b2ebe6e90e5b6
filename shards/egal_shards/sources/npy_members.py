"""Arrays in npy files of a tar: parsed by one strict pattern, never unpickled."""

import math
import re

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.images import MAX_PIXELS
from egal_shards.polarity import MaskRoi, roi_side
from egal_shards.sources.tar_members import Member

# What numpy writes, in version 1.0 or 2.0. Nothing else is parsed.
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)\{'descr': '([|<][a-zA-Z]\d*)', 'fortran_order': (True|False), "
    rb"'shape': \((\d[\d, ]{0,80}|)\), \} *\n",
    re.DOTALL,
)
_MAX_BYTES = 6 * MAX_PIXELS + 4096


def read_array_image(member: Member) -> np.ndarray:
    """Return u8 or u16 [H,W] or [H,W,3] of an npy file that holds that, or [1,H,W] or [3,H,W]."""
    pixels = _read(member, ("|u1", "<u2"))
    shape = pixels.shape
    if pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] == 3 and shape[0] != 3):
        return pixels
    if pixels.ndim == 3 and shape[0] in (1, 3) and shape[2] != 3:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)) if shape[0] == 3 else pixels[0]
    raise ShardError(f"{member}: is an array of {list(shape)}; images are [H,W], [H,W,3], [1,H,W] or [3,H,W]")


def read_array_mask(member: Member, mask_roi: MaskRoi | None = None) -> np.ndarray:
    """Return the ROI, bool [H,W], of an npy file of bool, u8 or u16 [H,W]: values above 0, or 0 for "dark"."""
    mask = _read(member, ("|u1", "|b1", "<u2"))
    if mask.ndim != 2:
        raise ShardError(f"{member}: is an array of {list(mask.shape)}; a mask is [H,W]")
    return roi_side(mask > 0, mask_roi)


def _read(member: Member, dtypes: tuple[str, ...]) -> np.ndarray:
    """Return the array in an npy file. Raise ShardError where it has none of the dtypes, or not the bytes it claims."""
    payload = member.read(_MAX_BYTES)
    header = _HEADER.match(payload)
    if not header:
        raise ShardError(f"{member}: is no npy file, or none of plain numbers; save it by numpy.save")
    dtype = header[1].decode()
    shape = tuple(int(extent) for extent in header[3].replace(b" ", b"").split(b",") if extent)
    if dtype not in dtypes:
        raise ShardError(f"{member}: holds {dtype}; of npy only {', '.join(dtypes)} is read, convert it")
    if 0 in shape or len(payload) - header.end() != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ShardError(f"{member}: claims an array of {list(shape)}, which its bytes are not; replace it")
    return np.frombuffer(payload, dtype, offset=header.end()).reshape(shape, order="F" if header[2] == b"True" else "C")
