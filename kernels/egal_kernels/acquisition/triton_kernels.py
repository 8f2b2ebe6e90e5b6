# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="assignment"
"""The Triton kernels of `acquire`: one that does everything, one that streams, and two that share the work."""

import triton
import triton.language as tl

from egal_kernels.acquisition import triton_head, triton_overlap
from egal_kernels.shared.triton_class_maps import channels_at, load_tile, positions_at, project


@triton.jit
def kernel(
    features, stride, weight, bias, classes, alpha, known_logits, bits,  # inputs, None if absent
    columns, column_t, row_t, segments, moments, S, W, words, slope, threshold,
    maps, means,  # scratch that stays in the cache, [B, MAPS, P] and [B, C]
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    C: tl.constexpr, P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, FULL: tl.constexpr, STEPS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Process sample b of the batch. The threads of its program exchange data through memory, at barriers."""
    b = tl.program_id(0).to(tl.int64)
    make_maps(
        b, features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
        C, P, K, MAPS, CHANNELS_LAST, BC, BP, PL,
    )  # fmt: skip
    tl.debug_barrier()
    make_counts(
        b, weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
        logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
        P, w, K, MAPS, RELU, LOW, FULL, STEPS, BP * PL, COLUMNS,
    )  # fmt: skip


@triton.jit
def maps_kernel(
    features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Read the features of sample b; write its class maps and logits. The first of two kernels."""
    make_maps(
        tl.program_id(0).to(tl.int64), features, stride, weight, bias, classes, alpha, known_logits, maps, means,
        logits, C, P, K, MAPS, CHANNELS_LAST, BC, BP, PL,
    )  # fmt: skip


@triton.jit
def counts_kernel(
    weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr,
    FULL: tl.constexpr, STEPS: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Read class maps, logits and ROI of sample b; write everything else. The second of two kernels."""
    make_counts(
        tl.program_id(0).to(tl.int64), weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words,
        slope, threshold, maps, logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection,
        soft_area, P, w, K, MAPS, RELU, LOW, FULL, STEPS, BP * PL, COLUMNS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch"])
def stream_kernel(
    batch, features, stride, weight, bias, classes, alpha, known_logits, bits,
    columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    C: tl.constexpr, P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr, FULL: tl.constexpr, STEPS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr, COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr, TILES_AHEAD: tl.constexpr,
):  # fmt: skip
    """Process SAMPLES samples, one after another, in one loop over the tiles of their features.

    On CUDA the next TILES_AHEAD tiles are copied into shared memory in the meantime, also while the counts of a sample
    are made. The features are not pooled first. Sums have the order of `project`.
    """
    BLOCK: tl.constexpr = BP * PL
    DEPTH: tl.constexpr = (C + BC - 1) // BC  # tiles that are summed up for a block of positions
    TILES: tl.constexpr = DEPTH * ((P + BLOCK - 1) // BLOCK)  # tiles of a sample
    first = tl.program_id(0).to(tl.int64) * SAMPLES
    tiles = tl.minimum(batch - first, SAMPLES).to(tl.int32) * TILES
    sums = _zeros(MAPS, BP, BC, PL)
    for tile in tl.range(0, tiles, num_stages=TILES_AHEAD + 1):
        b = first + tile // TILES
        p = positions_at(tile % TILES // DEPTH * BLOCK, BP, PL)
        c = channels_at((DEPTH - 1 - tile % DEPTH) * BC, BC)
        a = load_tile(features + b * stride, c, p, C, P, CHANNELS_LAST)
        rows = alpha + b * C if weight is None else weight
        more = ()
        for k in tl.static_range(MAPS):
            x = tl.load(rows + k * C + c, mask=c < C, other=0).to(tl.float32)
            more = more + (tl.fma(a, x, sums[k]),)  # noqa: RUF005
        sums = more
        if tile % DEPTH == DEPTH - 1:
            class_map, cells = maps + b * (MAPS * P), tl.reshape(p, [BP, PL])
            for k in tl.static_range(MAPS):
                tl.store(class_map + k * P + cells, tl.sum(sums[k], 1), mask=cells < P)
            sums = _zeros(MAPS, BP, BC, PL)
            if tile % TILES == TILES - 1:
                finish(
                    b, weight, bias, classes, known_logits, bits, columns, column_t, row_t, segments, moments, S, W,
                    words, slope, threshold, maps, logits, entropy, predicted, intersection, cam_area, roi_area,
                    soft_intersection, soft_area, P, w, K, MAPS, RELU, LOW, FULL, STEPS, BLOCK, COLUMNS,
                )  # fmt: skip


@triton.jit
def _zeros(N: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PL: tl.constexpr):
    """Return N tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(N):
        tiles = tiles + (tl.zeros([BP, BC, PL], tl.float32),)  # noqa: RUF005
    return tiles


@triton.jit(noinline=True)  # Triton copies no tiles ahead in a loop that contains a barrier, but a call may contain one
def finish(
    b, weight, bias, classes, known_logits, bits, columns, column_t, row_t, segments, moments, S, W, words, slope,
    threshold, maps, logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr,
    FULL: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what follows from the class maps of sample b, which the threads of the program have just written."""
    tl.debug_barrier()
    make_logits(b, weight, bias, known_logits, maps, logits, P, K, MAPS, BLOCK)
    tl.debug_barrier()
    make_counts(
        b, weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
        logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
        P, w, K, MAPS, RELU, LOW, FULL, STEPS, BLOCK, COLUMNS,
    )  # fmt: skip


@triton.jit
def make_maps(
    b, features, stride, weight, bias, classes, alpha, known_logits, maps, means, logits,
    C: tl.constexpr, P: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, PL: tl.constexpr,
):  # fmt: skip
    """Write logits and class maps of sample b: the maps of all classes, or that of the explained one if pooled."""
    features += b * stride
    class_map = maps + b * (MAPS * P)
    if means is None:
        project(features, alpha + b * C if weight is None else weight, class_map, C, P, MAPS, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
        make_logits(b, weight, bias, known_logits, maps, logits, P, K, MAPS, BP * PL)
    else:
        triton_head.pool(features, means + b * C, C, P, CHANNELS_LAST, BC, BP, PL)
        tl.debug_barrier()
        triton_head.linear(means + b * C, weight, bias, logits + b * K, C, K, 16, 64)
        tl.debug_barrier()
        explained = triton_head.describe(logits + b * K, K, min(triton.next_power_of_2(K), 1024))[0]
        if classes is not None:
            explained = tl.load(classes + b).to(tl.int32)
        project(features, weight + explained * C, class_map, C, P, 1, CHANNELS_LAST, BC, BP, PL)


@triton.jit
def make_logits(
    b, weight, bias, known_logits, maps, logits,
    P: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the logits of sample b: the means of its maps, or those that are known."""
    LOGITS: tl.constexpr = min(triton.next_power_of_2(K), 1024)
    if weight is None:
        triton_head.widen(known_logits + b * K, logits + b * K, K, LOGITS)
    else:
        triton_head.average(maps + b * (MAPS * P), bias, logits + b * K, P, K, LOGITS, BLOCK)


@triton.jit
def make_counts(
    b, weight, classes, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, threshold, maps,
    logits, entropy, predicted, intersection, cam_area, roi_area, soft_intersection, soft_area,
    P: tl.constexpr, w: tl.constexpr, K: tl.constexpr, MAPS: tl.constexpr, RELU: tl.constexpr, LOW: tl.constexpr,
    FULL: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what follows from the class maps and logits of sample b. The class map is normalised in place."""
    class_map = maps + b * (MAPS * P)
    bits += b * W * words
    divisor = 1.0 if weight is None else P * 1.0
    top, h, finite = triton_head.describe(logits + b * K, K, min(triton.next_power_of_2(K), 1024))
    if MAPS > 1:
        explained = top
        if classes is not None:
            explained = tl.load(classes + b).to(tl.int32)
        class_map += explained * P
    finite = finite & triton_overlap.normalise(class_map, divisor, P, RELU, LOW, BLOCK)
    least, scale, critical, small = 0.0, 1.0, threshold, False
    if FULL >= 0:
        least, most = triton_overlap.extremes(class_map, columns, column_t, row_t, segments, S, W, w, COLUMNS)
        scale = (most - least) + FULL
        scale = tl.where(scale == 0, 1, scale)
        # rounding changes the sums, or the inverse of the scale overflows
        small = (most - least < tl.maximum(tl.abs(least), tl.abs(most)) / 64) | (scale < 1e-37)
        critical = triton_overlap.critical(least, most, scale, threshold)
    hits, area, roi, inside, total = triton_overlap.count(
        class_map, bits, columns, column_t, row_t, segments, moments, S, W, words, slope, critical, least,
        tl.div_rn(1.0, scale), w, STEPS, COLUMNS,
    )  # fmt: skip
    if small:
        inside, total = triton_overlap.soft_by_pixel(
            class_map, bits, columns, column_t, row_t, segments, S, W, words, least, scale, w, COLUMNS
        )
    nan = float("nan")
    tl.store(entropy + b, tl.where(finite, h, nan))
    tl.store(predicted + b, tl.where(finite, top, -1))
    tl.store(intersection + b, tl.where(finite, hits, -1))
    tl.store(cam_area + b, tl.where(finite, area, -1))
    tl.store(roi_area + b, tl.where(finite, roi, -1))
    tl.store(soft_intersection + b, tl.where(finite, inside, nan))
    tl.store(soft_area + b, tl.where(finite, total + roi, nan))
