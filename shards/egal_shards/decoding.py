"""The bytes of one sample: checked against the index and the manifest, and decoded."""

import hashlib
import tarfile
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from egal_shards import layout
from egal_shards.errors import ShardError
from egal_shards.index import Index
from egal_shards.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Decoded:
    """The arrays of one sample."""

    image: np.ndarray  # uint8 or uint16 [C,H,W]
    words: np.ndarray  # '<u4' [W,ceil(H/32)]; all 0 without an ROI


def decode_span(span: bytes, i: int, index: Index, manifest: Manifest) -> Decoded:
    """Return row i of the index, decoded from the bytes of `index.span(i)`.

    Checks what `decode_sample` checks, and the tar header of the image. Raises ShardError like it.
    """
    sample = decode_sample(index.payloads(i, span), i, index, manifest)
    key = index.text("key", i)
    [name, *_] = layout.members(key, manifest.image.format, False)
    where = f"{manifest.shards[index.shard[i]].file}: sample {key}"
    check_header(span[: layout.BLOCK], name, int(index.offsets[i, 1]), where)
    return sample


def decode_sample(payloads: tuple[bytes, bytes, bytes], i: int, index: Index, manifest: Manifest) -> Decoded:
    """Return row i of the index, decoded from its image, roi and json.

    Raises ShardError, with the names of shard and sample, where the bytes do not match their digest, are not what the
    manifest declares, or contradict the index.

    Args:
        payloads: Bytes of image, roi (empty where the sample has no ROI) and json.
        i: Row of the index.
        index: Index of the set.
        manifest: Manifest of the set.
    """
    where = f"{manifest.shards[index.shard[i]].file}: sample {index.text('key', i)}"
    digest = hashlib.sha256()
    for payload in payloads:
        digest.update(payload)
    if digest.digest() != index.text("sha256", i):
        raise ShardError(f"{where}: its bytes do not match their digest in the index; copy or pack the set again")
    image, roi, text = payloads
    spec = manifest.image
    words = layout.decode_roi(roi, spec.size, where) if roi else np.zeros(layout.roi_shape(spec.size), "<u4")
    _check_roi(words, spec.size, int(index.roi_area[i]), where)
    _check_json(text, i, index, manifest, where)
    return Decoded(layout.decode_image(image, spec.format, spec.dtype, spec.channels, spec.size, where), words)


def _check_roi(words: np.ndarray, size: int, area: int, where: str) -> None:
    if size % 32 and (words[:, -1] >> np.uint32(size % 32)).any():
        raise ShardError(f"{where}: its ROI has padding bits set; pack the set again")
    if (pixels := np.bitwise_count(words).sum()) != area:
        raise ShardError(f"{where}: its ROI has {pixels} pixels, the index says {area}; pack the set again")


def _check_json(text: bytes, i: int, index: Index, manifest: Manifest, where: str) -> None:
    """Raise ShardError unless the json of row i follows the format and agrees with the index."""
    try:
        contents = layout.SampleJson.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ShardError(
            f"{where}: its json does not follow the format ({first['loc']}: {first['msg']}); pack the set again"
        ) from None
    label = int(index.label[i])
    name = manifest.classes[label] if manifest.classes else ""
    expected = (label, name, index.text("group", i), index.text("split", i))
    if (contents.label, contents.class_, contents.group, contents.split) != expected:
        raise ShardError(f"{where}: label, class, group or split in its json differ from the index; pack the set again")


def check_header(block: bytes, name: str, size: int, where: str) -> None:
    """Raise ShardError unless the block is the tar header of a regular file `name` of `size` bytes."""
    if block == layout.member_header(name, size):  # `pack` writes it so: the usual case, which is quick to check
        return
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ShardError(
            f"{where}: the tar header of {name} is damaged ({error}); copy or pack the set again"
        ) from None
    if member.name != name or member.size != size or member.type != tarfile.REGTYPE:
        raise ShardError(
            f"{where}: member {member.name!r} of {member.size} bytes is not the regular file {name!r} of {size} bytes "
            "that the index lists; copy or pack the set again"
        )
