"""Where a resized map takes its extremes, told once for every backend, since tied ones share a slope."""

import numpy as np
import torch

from egal_kernels.acquisition.conventions import taps


def corners(n: int, size: int) -> np.ndarray:
    """The outputs of an axis resampled from n points to `size` that can be extreme: first and last of each interval.

    Int64, increasing. Of those past the last source point, which all equal it, the first.
    """
    source = taps(n, size, torch.float64, torch.device("cpu"))[0].numpy()
    first = np.unique(source, return_index=True)[1]
    last = np.append(first[1:], size) - 1
    return np.unique([first, np.where(source[first] == n - 1, first, last)])
