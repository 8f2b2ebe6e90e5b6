"""Where a resized map can have its extremes. Every backend uses these points, since tied extremes share a slope."""

import numpy as np
import torch

from egal_kernels.shared.resampling import taps


def corners(n: int, size: int) -> np.ndarray:
    """Return the outputs that can be extreme when n source points are resampled to `size`, int64 and increasing.

    They are the first and the last output of each interval between source points. Outputs after the last source point
    all equal it, so only the first of these is returned.
    """
    source = taps(n, size, torch.float64, torch.device("cpu"))[0].numpy()
    first = np.unique(source, return_index=True)[1]
    last = np.append(first[1:], size) - 1
    return np.unique([first, np.where(source[first] == n - 1, first, last)])
