"""The first directory of a TIFF file, read without decoding it."""

import struct
from dataclasses import dataclass
from typing import IO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 322, 323, 339
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_BIG_ENTRIES = 1 << 16


@dataclass(frozen=True)
class Directory:
    """What the first directory says of its picture."""

    bits: int  # bits of the first sample
    white_is_zero: bool
    is_signed: bool
    tile: tuple[int, int]  # width, height; (0, 0) of a picture in strips
    data_bytes: int  # what all entries say that their values take outside the directory
    has_more_frames: bool
    photometric: tuple[int, bytes]  # where the value of PhotometricInterpretation lies, and its bytes for BlackIsZero


def read_directory(file: IO[bytes], size: int) -> Directory | None:
    """Return the first directory of a file of `size` bytes; None where it is not a whole directory."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "<")
    is_big = len(head) == 16 and struct.unpack_from(order + "H", head, 2)[0] == 43
    word, count_word, entry_bytes, inline = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    try:
        [start] = struct.unpack_from(order + word, head, 8 if is_big else 4)
        file.seek(start)
        [count] = struct.unpack(order + count_word, file.read(struct.calcsize(count_word)))
        first_entry = start + struct.calcsize(count_word)
        block = file.read(min(count, _MAX_BIG_ENTRIES) * entry_bytes)
        [following] = struct.unpack(order + word, file.read(struct.calcsize(word)))
    except (struct.error, OverflowError):
        return None
    if len(block) != count * entry_bytes:
        return None
    values: dict[int, int] = {}
    photometric, data_bytes = (0, b""), 0
    for i in range(count):
        at = i * entry_bytes
        tag, kind, length = struct.unpack_from(order + "HH" + word, block, at)
        value_at, taken = at + entry_bytes - inline, _SIZES.get(kind, 0) * length
        if taken > inline:
            data_bytes += taken
            [value_at] = struct.unpack_from(order + word, block, value_at)
            values[tag] = _integer_at(file, value_at, order, kind)
        elif kind in _INTEGERS:
            values[tag] = struct.unpack_from(order + _INTEGERS[kind], block, value_at)[0]
            if tag == _PHOTOMETRIC:
                photometric = (first_entry + value_at, struct.pack(order + _INTEGERS[kind], 1))
    return Directory(
        bits=values.get(_BITS, 1),
        white_is_zero=values.get(_PHOTOMETRIC) == 0,
        is_signed=values.get(_SAMPLE_FORMAT) == 2,
        tile=(values.get(_TILE_WIDTH, 0), values.get(_TILE_LENGTH, 0)),
        data_bytes=data_bytes,
        has_more_frames=0 < following < size,
        photometric=photometric,
    )


def _integer_at(file: IO[bytes], at: int, order: str, kind: int) -> int:
    """Return the first integer of a value that lies outside the directory; 0 where there is none."""
    if kind not in _INTEGERS:
        return 0
    file.seek(at)
    data = file.read(struct.calcsize(_INTEGERS[kind]))
    return int.from_bytes(data, "little" if order == "<" else "big")
