# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""The Numba kernel of the CPU backend: one sample after another, so that all but the features stay in the cache."""

import numpy as np

from egal_kernels.acquisition.cpu_head import MAPPED, describe, linear_head
from egal_kernels.acquisition.cpu_overlap import jit, overlap, scratch
from egal_kernels.shared.caching import kernel
from egal_kernels.shared.cpu_class_maps import project
from egal_kernels.shared.threads import each_thread, take


@kernel
def acquire(team, *arguments):
    """Run `_acquire` in each thread of a team."""
    each_thread(team, _acquire, (np.zeros(1, np.int64), *arguments))


@jit
def _acquire(
    counter, features, channels_last, weight, bias, classes, alpha, logits, bits, geometry, recipe, threshold, out
):
    """Fill `out`, and `logits` if there is a weight, for the samples that this thread takes.

    Args:
        counter: int64 [1], the next sample that no thread has taken.
        features: as `flat_samples` returns them, with channels_last.
        weight: float64 [K, C]; empty if alpha and logits are given instead.
        bias: float64 [K].
        classes: int64 [B]; empty to explain the predicted classes.
        alpha: float64 [B, C], the channel weights of the class map, if there is no weight.
        logits: float32 [B, K].
        bits: uint32 [B, W, words], the packed ROIs.
        geometry: (h, w), and the columns, axis and pieces of `overlap`.
        recipe, threshold: as in `overlap`.
        out: the fields of an Acquisition after its logits.
    """
    (h, w), columns, axis, pieces = geometry
    entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area = out
    maps, class_map = np.empty((min(logits.shape[1], MAPPED), h * w)), np.empty(h * w, np.float32)
    space = scratch(h, w, bits.shape[1], bits.shape[2])
    b = take(counter)
    while b < bits.shape[0]:
        if weight.size:
            explain = classes[b] if classes.size else np.int64(-1)
            linear_head(features[b], channels_last, weight, bias, explain, logits[b], maps, class_map)
        else:
            project(features[b], channels_last, alpha[b], class_map)
        entropy[b], predicted[b], finite = describe(logits[b])
        roi_area[b] = -1
        if finite:
            intersection[b], cam_area[b], roi_area[b], soft_intersection[b], soft = overlap(
                class_map.reshape(h, w), bits[b], columns, axis, pieces, recipe, threshold, space
            )
            soft_area[b] = soft + roi_area[b]
        if roi_area[b] < 0:
            predicted[b] = intersection[b] = cam_area[b] = -1
            entropy[b] = soft_intersection[b] = soft_area[b] = np.nan
        b = take(counter)
