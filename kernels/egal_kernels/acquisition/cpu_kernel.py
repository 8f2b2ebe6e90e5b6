# mypy: allow-untyped-defs, allow-untyped-calls
"""The Numba kernel of the CPU backend: one sample after another, so that all but its features stay in the cache."""

import numpy as np

from egal_kernels.acquisition.cpu_head import MAPPED, describe, linear_head, project
from egal_kernels.acquisition.cpu_overlap import jit, overlap, scratch
from egal_kernels.caching import kernel
from egal_kernels.threads import each_thread, take


@kernel
def acquire(team, *given):
    """`_acquire` in each thread of a team."""
    each_thread(team, _acquire, (np.zeros(1, np.int64), *given))


@jit
def _acquire(
    taken, features, channels_last, weight, bias, classes, alpha, logits, bits, geometry, recipe, threshold, out
):
    """Fills logits [B, K], where there is a weight [K, C], and `out` for the samples that this thread takes.

    Without a weight the logits are given, and the class map is that of alpha [B, C]. No classes: the predicted ones.
    geometry: (h, w), columns, rows and pieces as in `overlap`; recipe and threshold likewise.
    """
    (h, w), columns, axis, pieces = geometry
    entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area = out
    maps, class_map = np.empty((min(logits.shape[1], MAPPED), h * w)), np.empty(h * w, np.float32)
    space = scratch(h, w, bits.shape[1], bits.shape[2])
    b = take(taken)
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
        b = take(taken)
