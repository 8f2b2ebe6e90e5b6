"""The bytes of one sample, checked and decoded."""

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
    """One sample's arrays."""

    image: np.ndarray  # u8 or u16 [C,H,W]
    words: np.ndarray  # '<u4' [W,ceil(H/32)]; all 0 where there is no ROI


def decode_span(span: bytes, i: int, index: Index, manifest: Manifest) -> Decoded:
    """Row i of the index, from the bytes of `index.span(i)`, checked as `decode_sample` does, and for its name."""
    sample = decode_sample(index.payloads(i, span), i, index, manifest)
    key = index.text("key", i)
    [name, *_] = layout.members(key, manifest.image.format, False)
    where = f"{manifest.shards[index.shard[i]].file}: sample {key}"
    check_header(span[: layout.BLOCK], name, int(index.offsets[i, 1]), where)
    return sample


def decode_sample(payloads: tuple[bytes, bytes, bytes], i: int, index: Index, manifest: Manifest) -> Decoded:
    """Row i of the index, from its image, roi (empty where there is none) and json.

    ShardError names shard and sample where the bytes do not match their digest, are not what the manifest declares, or
    contradict the index.
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
        raise ShardError(f"{where}: its ROI has {pixels} pixels, the index says {area}; pack again")


def _check_json(text: bytes, i: int, index: Index, manifest: Manifest, where: str) -> None:
    try:
        about = layout.SampleJson.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ShardError(
            f"{where}: its json is not that of the format ({first['loc']}: {first['msg']}); pack again"
        ) from None
    label = int(index.label[i])
    expected = (label, manifest.classes[label], index.text("group", i), index.text("split", i))
    if (about.label, about.class_, about.group, about.split) != expected:
        raise ShardError(f"{where}: label, class, group or split in its json differ from the index; pack the set again")


def check_header(block: bytes, name: str, size: int, where: str) -> None:
    """ShardError unless this is the tar header of the regular file `name` of `size` bytes."""
    if block == layout.member_header(name, size):  # as we write it
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
