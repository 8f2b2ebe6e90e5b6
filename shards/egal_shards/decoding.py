"""The bytes of one sample, checked and decoded."""

import hashlib
from dataclasses import dataclass

import numpy as np

from egal_shards import layout
from egal_shards.errors import ShardError
from egal_shards.index import Index
from egal_shards.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Decoded:
    """One sample's arrays, and its json as it lies in the shard."""

    image: np.ndarray  # u8 [C,H,W]
    words: np.ndarray  # '<u4' [W,ceil(H/32)]; all 0 where there is no ROI
    text: bytes


def decode_sample(payloads: tuple[bytes, bytes, bytes], i: int, index: Index, manifest: Manifest) -> Decoded:
    """Row i of the index, from its image, roi (empty where there is none) and json.

    ShardError names shard and sample where the bytes do not match their digest or are not what the manifest declares.
    """
    where = f"{manifest.shards[index.shard[i]].file}: sample {index.text('key', i)}"
    image, roi, text = payloads
    if hashlib.sha256(image + roi + text).digest() != index.text("sha256", i):
        raise ShardError(f"{where}: its bytes do not match their digest in the index; copy or pack the set again")
    spec = manifest.image
    words = layout.decode_roi(roi, spec.size, where) if roi else np.zeros(layout.roi_shape(spec.size), "<u4")
    return Decoded(layout.decode_image(image, spec.format, spec.channels, spec.size, where), words, text)
