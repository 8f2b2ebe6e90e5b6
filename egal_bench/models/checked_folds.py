"""Folds that have been tried: a copy with random norms must compute what the trunk with these norms computes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from egal_bench.models.activated import activate, can_activate
from egal_bench.models.folding import folded
from egal_bench.models.folds import Folds, folds_of

TOLERANCE = 1e-3  # relative error of the map: rounding gives at most 1e-5, a wrong fold 0.05 and more


def checked_folds(trunk: nn.Module, channels: int, side: int) -> Folds:
    """Return `folds_of` the trunk if they stand the trial, else none: a module of a user's own may do anything.

    The norms of the trial have random statistics and weights. Those of a fresh network hardly change a map, and would
    hide a mistake.

    Args:
        trunk: a module from images float [B, channels, side, side] to a map; it is not changed.
        channels: input channels.
        side: pixels per side.
    """
    with torch.random.fork_rng(devices=[]):  # a module of a user's own may draw from PyTorch's generator
        folds = folds_of(trunk, channels, side)
        return (
            folds if not folds.change_sums or _agrees(trunk, folds, channels, side) else Folds(autocast=folds.autocast)
        )


def _agrees(trunk: nn.Module, folds: Folds, channels: int, side: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, side, side, generator=generator)
    with torch.inference_mode(False), torch.no_grad():
        try:
            example = copy.deepcopy(trunk).cpu().eval()
            disturb(example, generator)
            copied = folded(example, folds)
            if can_activate("cpu", "float32"):
                activate(copied, folds.activated)
            expected, maps = example(images), copied(images)
        except Exception:
            return False
    return bool((maps - expected).norm() <= TOLERANCE * expected.norm())  # false for NaN and infinity


def disturb(trunk: nn.Module, generator: torch.Generator) -> None:
    """Give every batch norm of `trunk` random statistics and weights; some slopes are negative, and some are 0."""
    for norm in trunk.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            if norm.affine:
                norm.weight.data.uniform_(-0.5, 1.5, generator=generator)
                norm.weight.data[:2] = 0
                norm.bias.data.normal_(0, 0.3, generator=generator)
