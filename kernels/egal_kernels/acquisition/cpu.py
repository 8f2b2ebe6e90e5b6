"""The CPU backend: it turns tensors into what the Numba kernel takes, and the kernel's results into tensors."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels.acquisition import cpu_head, cpu_kernel
from egal_kernels.acquisition.heads import ExplainedLogits, Head, LinearHead
from egal_kernels.acquisition.types import Acquisition
from egal_kernels.shared.cpu_arrays import flat_samples, to_array
from egal_kernels.shared.cpu_resampling import axis_of, pieces_of
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.roi import PackedRoi
from egal_kernels.shared.threads import team

# So many float32 weights of a head fit into a core's cache beside a sample. A larger head is one matrix product over
# the whole batch, for which the features are read a second time.
CACHED_WEIGHTS = 1 << 16

NO_WEIGHT, NO_BIAS, NO_CLASSES, NO_ALPHA = np.empty((0, 0)), np.empty(0), np.empty(0, np.int64), np.empty((0, 0))
OUT = (
    np.float32,
    np.int64,
    np.int32,
    np.int32,
    np.int32,
    np.float32,
    np.float32,
)  # an Acquisition after logits


def acquire(features: Tensor, head: Head, roi: PackedRoi, *, threshold: float, convention: str) -> Acquisition:
    """Do `egal_kernels.acquire` for checked arguments on the CPU; features are f32, bf16 or f16."""
    batch, height, width = roi.shape
    h, w = features.shape[2:]
    samples = flat_samples(features)
    if isinstance(head, LinearHead) and head.weight.numel() > CACHED_WEIGHTS:
        head = _explain(head, features, samples)
    arrays, logits = _head_arrays(head, batch)
    recipe = RECIPES[convention]
    steps = recipe.relu, *(np.float32(-1 if eps is None else eps) for eps in (recipe.low, recipe.full))
    geometry = (h, w), axis_of(w, width), axis_of(h, height), pieces_of(h, height)
    bits = to_array(roi.bits, torch.int32).view(np.uint32)
    out = tuple(np.empty(batch, kind) for kind in OUT)
    cpu_kernel.acquire(team(batch), *samples, *arrays, logits, bits, geometry, steps, np.float32(threshold), out)
    return Acquisition(*map(torch.from_numpy, (logits, *out)))


def _head_arrays(head: Head, batch: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return weight, bias, classes and alpha as the kernel takes them, empty where absent; and logits [B, K].

    The kernel fills the logits if there is a weight, else they are those of the head.
    """
    if isinstance(head, ExplainedLogits):
        alpha = to_array(head.alpha, torch.float64)
        return [NO_WEIGHT, NO_BIAS, NO_CLASSES, alpha], to_array(head.logits).copy()
    bias = np.zeros(head.count) if head.bias is None else to_array(head.bias, torch.float64)
    classes = NO_CLASSES if head.classes is None else to_array(head.classes, torch.int64)
    return [to_array(head.weight, torch.float64), bias, classes, NO_ALPHA], np.empty((batch, head.count), np.float32)


def _explain(head: LinearHead, features: Tensor, samples: tuple[np.ndarray, bool]) -> ExplainedLogits:
    """Compute the logits of a large head by one matrix product over the whole batch, and take the explained weights."""
    means = torch.empty(features.shape[:2], dtype=torch.float64)
    cpu_head.pool(team(len(means)), *samples, means.numpy())
    logits = F.linear(means.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    explained = logits.argmax(1) if head.classes is None else head.classes
    # α is divided in float64: rounded to float32 it would make class maps other than the reference's
    return ExplainedLogits(head.weight[explained].double() / features[0, 0].numel(), logits)
