"""Networks as safetensors: the weights, and in the file's metadata how to build the network that they fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError, brief
from egal_bench.models.backbones import is_factory
from egal_shards.layout import MAX_SIZE
from egal_shards.urls import shown

if TYPE_CHECKING:
    from egal_bench.models.network import Network
    from egal_shards import ShardSet

BUILD = (  # fields of Config
    "backbone", "head", "explain_layer", "size", "precision", "threshold", "explain_convention", "overlap",
)  # fmt: skip


MAX_CLASSES = 10_000
Pixels = Annotated[int, Field(ge=1, le=MAX_SIZE)]


class _Described(BaseModel):
    """What the metadata of a network file says beyond the fields BUILD of the settings."""

    model_config = ConfigDict(strict=True, frozen=True)

    classes: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    channels: Literal[1, 3]
    image_size: Pixels
    data: str


@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """A network that `compare --save-network` has kept.

    Attributes:
        network: in evaluation mode, on the CPU.
        config: the fields BUILD of the settings with which it was trained; the other fields have their defaults.
        classes: names of the classes, in the order of the logits.
        channels: channels of the images, 1 or 3.
        image_size: pixels per side of the packed images.
        digest: SHA-256 of the file, in hex.
    """

    network: Network
    config: Config
    classes: tuple[str, ...]
    channels: int
    image_size: int
    digest: str

    def check_fits(self, shards: ShardSet) -> None:
        """Raise BenchError unless the network can score the images of `shards`; the message says how to fix it."""
        image, where = shards.manifest.image, shown(shards.where)
        if image.channels != self.channels:
            raise BenchError(
                f"{where}: its images have {_channels(image.channels)}, and the network was trained on "
                f"{_channels(self.channels)}: pack them with --channels {self.channels}"
            )
        if self.config.size is None and image.size != self.image_size:
            raise BenchError(
                f"{where}: its images have {image.size} pixels per side, and the network was trained on "
                f"{self.image_size}: pack them with --size {self.image_size}"
            )
        if shards.classes and shards.classes != self.classes:
            raise BenchError(
                f"{where}: its classes are {_listed(shards.classes)}, and the network was trained on "
                f"{_listed(self.classes)}: name a network of these classes, or pack the set without labels"
            )


def _channels(number: int) -> str:
    return "1 channel" if number == 1 else f"{number} channels"


def _listed(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return ", ".join(repr(name) for name in classes[:5]) + more


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


def load_network(path: Path, backbone: str | None = None) -> SavedNetwork:
    """Return the network that `network_file` has written to `path`. Nothing is unpickled.

    Args:
        path: a safetensors file.
        backbone: `module:factory`, where the network has such a trunk: a file alone must not make the program import
            a module.

    Raises:
        BenchError: the file cannot be read or holds no such network, or its trunk is the user's own and not named.
    """
    config, described = _description(path)
    if is_factory(config.backbone) and backbone != config.backbone:
        raise BenchError(
            f"{path}: its trunk is your own code, {config.backbone!r}; give --backbone {config.backbone} to run it"
        )
    from egal_bench.models.network import build

    network = build(
        config.backbone, len(described.classes), head=config.head, explain_layer=config.explain_layer,
        image_channels=described.channels, image_size=described.image_size, size=config.size, seed=0,
    )  # fmt: skip
    try:
        content = path.read_bytes()
        state = read_state(content)
        reason = _misfit(state, network.state_dict())
        if not reason:
            network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = brief(error)
    if reason:
        raise BenchError(
            f"{path}: its tensors are not those of {config.backbone} for {_channels(described.channels)} and "
            f"{len(described.classes)} class{'es' * (len(described.classes) != 1)} ({reason}); train the network again"
        )
    digest = hashlib.sha256(content).hexdigest()
    return SavedNetwork(
        network.eval(), config, tuple(described.classes), described.channels, described.image_size, digest
    )


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return how the tensors of a file differ from those of the network that it describes, "" where they fit."""
    for name in [*expected, *(name for name in state if name not in expected)]:
        if name not in state:
            return f"{name} is missing"
        if name not in expected:
            return f"{name[:90]!r} is not one of them"
        shape, needed = tuple(state[name].shape), tuple(expected[name].shape)
        if shape != needed:
            return f"{name} has the shape {shape}, not {needed}"
    return ""


def _description(path: Path) -> tuple[Config, _Described]:
    """Return what the metadata of a network file say, checked."""
    foreign = f"{path}: is no network that `compare --save-network` has written"
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("egal_bench", "")
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{foreign} ({brief(error)})") from None
    try:
        fields = json.loads(text)
        described = _Described.model_validate(fields)
        config = Config.model_validate({name: fields[name] for name in BUILD if name in fields})
    except (ValueError, TypeError, RecursionError, ValidationError):
        raise BenchError(f"{foreign}: its metadata do not describe one") from None
    if config.size is not None and config.size > MAX_SIZE:
        raise BenchError(f"{foreign}: an input of {config.size} pixels per side is larger than {MAX_SIZE}")
    return config, described


def _contiguous(network: Network) -> dict[str, Tensor]:
    state = network.state_dict()
    return {
        name: value.detach().cpu().contiguous(memory_format=torch.contiguous_format) for name, value in state.items()
    }
