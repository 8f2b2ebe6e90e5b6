"""Networks as safetensors: the weights, and in the file's metadata how to build the network that they fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from egal_bench.config import Config
from egal_bench.dataset import Dataset

if TYPE_CHECKING:
    from egal_bench.models.network import Network

BUILD = ("backbone", "size", "precision", "threshold", "explain_convention", "overlap")  # fields of Config


def state_file(network: Network) -> bytes:
    """Return the state dict of `network` as safetensors."""
    return safetensors.torch.save(_contiguous(network))


def read_state(content: bytes) -> dict[str, Tensor]:
    """Return the state dict that `state_file` or `network_file` has written."""
    return safetensors.torch.load(content)


def network_file(network: Network, dataset: Dataset, config: Config) -> bytes:
    """Return `network` as safetensors whose metadata says how to build it again.

    The metadata's "egal_bench" is a JSON object: the fields BUILD of the settings, `classes` (names, in the order of
    the logits), `channels` and `image_size` of the images, and `data`, the digest of the manifest it was trained on.
    """
    image = dataset.shards.manifest.image
    description = config.model_dump(mode="json", include=set(BUILD)) | {
        "classes": list(dataset.shards.classes), "channels": image.channels, "image_size": image.size,
        "data": dataset.shards.manifest.sha256,
    }  # fmt: skip
    return safetensors.torch.save(_contiguous(network), {"egal_bench": json.dumps(description)})


def _contiguous(network: Network) -> dict[str, Tensor]:
    state = network.state_dict()
    return {
        name: value.detach().cpu().contiguous(memory_format=torch.contiguous_format) for name, value in state.items()
    }
