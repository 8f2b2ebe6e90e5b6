"""Tensors on the CPU as the NumPy arrays that Numba kernels take."""

import numpy as np
import torch
from torch import Tensor

# NumPy has no bfloat16 and Numba cannot compute with float16, so the kernels take the bits of both
BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def flat_samples(features: Tensor) -> tuple[np.ndarray, bool]:
    """Return features [B, C, h, w] as a contiguous array, and whether that is channels_last.

    The array is [B, C, h·w], or [B, h·w, C] if channels_last. Features that are neither are copied.
    """
    channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    a = features.detach().permute(0, 2, 3, 1) if channels_last else features.detach().contiguous()
    return a.view(BITS[features.dtype]).flatten(2 - channels_last, 3 - channels_last).numpy(), channels_last


def to_array(x: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return `x` as a contiguous array of `dtype`; without a copy if it already is one."""
    x = x.detach()
    return (x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()).numpy()
