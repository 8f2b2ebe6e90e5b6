"""The shapes at which the Triton backend of `acquire` is checked, compiled and timed, and the tunings that compete."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from egal_kernels import Acquisition, PackedRoi, pack_roi
from egal_kernels.acquisition import triton as backend
from egal_kernels.acquisition.heads import LinearHead
from egal_kernels.shared.triton_launch import Launch, Tuning, tuning

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
Inputs = tuple[Tensor, Tensor | None, Tensor | None, PackedRoi]  # features, weight, bias, ROI


@dataclass(frozen=True)
class Case:
    """The shapes of a batch, whatever the number of its samples.

    Attributes:
        channels: C of the features [B, C, side, side].
        side: height and width of the features.
        size: height and width of the ROI.
        dtype: dtype of the features.
        classes: K of the linear head.
        channels_last: memory format of the features.
    """

    channels: int
    side: int
    size: int
    dtype: torch.dtype = torch.float32
    classes: int = 3
    channels_last: bool = False

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return f"{self.channels}×{self.side}²→{self.size}² {TYPES[self.dtype]}, K={self.classes}{layout}"

    def bytes(self) -> int:
        """Return the bytes that must be read per image: its features and its ROI, each once."""
        return self.channels * self.side**2 * self.dtype.itemsize + self.size * -(-self.size // 32) * 4

    def inputs(self, batch: int, device: str) -> Inputs:
        """Return features, weight, bias and ROI of `batch` samples; seeded, except on "meta", which has no values."""
        seeded = {} if device == "meta" else {"generator": torch.Generator(device).manual_seed(self.channels)}
        features = torch.rand(batch, self.channels, self.side, self.side, device=device, **seeded).to(self.dtype)
        features = features.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        weight = torch.randn(self.classes, self.channels, device=device, **seeded)
        bias = torch.randn(self.classes, device=device, **seeded)
        if device == "meta":
            words = torch.empty(batch, self.size, -(-self.size // 32), dtype=torch.int32, device=device)
            return features, weight, bias, PackedRoi(words, self.size)
        return features, weight, bias, pack_roi(torch.rand(batch, self.size, self.size, device=device, **seeded) < 0.1)


SIDES_AND_SIZES = [(7, 224), (14, 224), (32, 1024)]
CASES = [
    *(
        Case(channels, side, size, dtype)
        for (side, size), channels, dtype in itertools.product(
            SIDES_AND_SIZES, [512, 1024, 2048], [torch.float32, torch.bfloat16]
        )
    ),
    Case(1024, 7, 224, torch.bfloat16, channels_last=True),
    Case(1024, 14, 224, torch.float32, channels_last=True),
    Case(2048, 7, 224, torch.float32, classes=8),
    Case(2048, 7, 224, torch.float32, classes=15),
]


def variants(case: Case) -> dict[str, Tuning]:
    """Return the tunings that compete on a case, by name; the first is the default."""
    maps = case.classes if case.classes <= backend.ONE_PASS_CLASSES else 1
    default = tuning(case.channels, case.side**2, case.channels_last, maps, case.size)
    competing = {
        "one kernel": default,
        "two kernels, 1 warp": two_kernels(default, 1),
        "two kernels, 4 warps": two_kernels(default, 4),
    }
    if streams(case):
        competing["8 samples per program"] = replace(default, samples=8)
    return competing


def streams(case: Case) -> bool:
    """Return whether a program of several samples gains anything on a case, and compiles without spills for CUDA.

    Heads that are pooled first have one sample per program. Only loads of 4 bytes or more can be copied ahead. With the
    1024 positions of a map of 32×32, ptxas spills.
    """
    aligned = 16 if case.channels_last else (case.side**2 & -(case.side**2)) * case.dtype.itemsize
    return case.classes <= backend.ONE_PASS_CLASSES and aligned >= 4 and case.side < 32 and not torch.version.hip


def two_kernels(tuned: Tuning, warps: int) -> Tuning:
    """Return `tuned` with a second kernel of `warps` per sample, whose threads have at most 2 columns each."""
    return replace(tuned, epilogue=warps, columns=min(tuned.columns, 64 * warps))


def prepared(inputs: Inputs, tuned: Tuning | None = None) -> tuple[dict[str, Tensor | None], tuple[Launch, ...]]:
    """Return the tensors and the launches of `acquire` on these inputs; None: the default tuning."""
    features, weight, bias, roi = inputs
    return backend.prepared(features, LinearHead(weight, bias, None), roi, 0.5, "grad-cam", tuned)[1:]


def triton_acquire(inputs: Inputs, tuned: Tuning | None = None) -> Acquisition:
    """Run `acquire` on the Triton backend; None: the default tuning."""
    features, weight, bias, roi = inputs
    head = LinearHead(weight, bias, None)
    return backend.acquire(features, head, roi, threshold=0.5, convention="grad-cam", tuned=tuned)
