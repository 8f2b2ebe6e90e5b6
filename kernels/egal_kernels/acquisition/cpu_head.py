# mypy: allow-untyped-defs, allow-untyped-calls
"""Numba functions of the CPU backend, features → logits and class maps.

Sums are in binary64, where a product of two stored features or weights is exact, and are rounded to float32 once. Their
order, which is free here, is then all but invisible: the class map is the reference's.
"""

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

from egal_kernels.caching import kernel
from egal_kernels.threads import each_thread, take

# Any order of a sum will do, NaN and infinity must survive: neither nnan nor ninf
FAST = {"reassoc", "contract", "nsz"}
jit = njit(nogil=True, fastmath=FAST, error_model="numpy")


def _cpu_has(feature):
    """Whether Numba compiles for an x86 CPU with these instructions."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return get_host_cpu_features().get(feature, False)


WIDE = 49 if _cpu_has("avx512f") else 16  # positions of three maps whose sums fit the registers; 49 are those of 7×7
MAPPED = 4  # classes whose maps are made at once
CACHED = 1 << 10  # features of a block of channels, which stays in the L1 cache while every class takes its part of it
AHEAD = 2 * CACHED  # how many features ahead of their use they are asked for: strided reads are not foreseen by a CPU


def widen(x):
    """A stored feature as float32: itself, or from the bits of a bfloat16 (uint16) or a float16 (int16)."""


@overload(widen)
def _widen(x):
    return lambda x: _to_float(x)


@intrinsic
def _to_float(typing, x):
    def generate(context, builder, signature, args):
        return _floats(builder, args[0], x)

    return types.float32(x), generate


def _floats(builder, x, stored, lanes=None):
    """LLVM instructions for `widen`, of a scalar or of a vector of `lanes`.

    Halves are widened by arithmetic on a CPU without instructions for it: LLVM would call a library that is not there.
    """
    if stored == types.float32:
        return x
    shape = (lambda scalar: ir.VectorType(scalar, lanes)) if lanes else (lambda scalar: scalar)
    ints, floats = shape(ir.IntType(32)), shape(ir.FloatType())
    every = (lambda value, type_: ir.Constant(type_, [value] * lanes)) if lanes else lambda value, type_: type_(value)
    wide = builder.zext(x, ints)
    if stored == types.uint16:  # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(wide, every(16, ints)), floats)
    if _cpu_has("f16c"):
        return builder.fpext(builder.bitcast(x, shape(ir.HalfType())), floats)
    magnitude = builder.shl(builder.and_(wide, every(0x7FFF, ints)), every(13, ints))
    sign = builder.shl(builder.and_(wide, every(0x8000, ints)), every(16, ints))
    # exponents differ by 112, subnormals included; one of all ones, infinity or NaN, stays all ones
    scaled = builder.fmul(builder.bitcast(magnitude, floats), every(2.0**112, floats))
    special = builder.icmp_unsigned(">=", magnitude, every(0x0F800000, ints))
    ones = builder.or_(magnitude, every(0x7F800000, ints))
    bits = builder.select(special, ones, builder.bitcast(scaled, ints))
    return builder.bitcast(builder.or_(bits, sign), floats)


@intrinsic(prefer_literal=True)
def _add_tile(typing, a, first, stop, p, weight, k, maps, lanes, classes):
    """maps[k : k + classes, p : p + lanes] += Σ_c weight[k…, c]·a[c, p : p + lanes] over channels [first, stop).

    weight and maps are float64. The sums stay in vector registers, which Numba has no syntax for: loops over 49
    positions would spend more on their ends than on the sums. `lanes` and `classes` are constants.
    """
    n, count, stored = lanes.literal_value, classes.literal_value, a.dtype

    def generate(context, builder, signature, args):
        arrays = [context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 4, 6)]
        (a, w, m), (_, first, stop, p, _, k, *_) = arrays, args
        width, channels, positions = (cgutils.unpack_tuple(builder, x.shape)[-1] for x in arrays)
        parts = [(i, ir.VectorType(ir.DoubleType(), min(16, n - i))) for i in range(0, n, 16)]
        rows = [builder.add(k, k.type(i)) for i in range(count)]
        weights = [builder.gep(w.data, [builder.mul(row, channels)]) for row in rows]
        starts = [builder.gep(m.data, [builder.add(builder.mul(row, positions), p)]) for row in rows]
        sums = [[cgutils.alloca_once(builder, kept) for _ in rows] for _, kept in parts]
        places = [[_at(builder, start, offset, kept) for start in starts] for offset, kept in parts]
        kept_at = [pair for part in zip(sums, places, strict=True) for pair in zip(*part, strict=True)]
        for total, place in kept_at:
            builder.store(builder.load(place, align=8), total)
        with cgutils.for_range_slice(builder, first, stop, first.type(1)) as (c, _):
            row = builder.gep(a.data, [builder.add(builder.mul(c, width), p)])
            factors = [builder.load(builder.gep(weight, [c])) for weight in weights]
            for (offset, kept), totals in zip(parts, sums, strict=True):
                _prefetch(builder, builder.gep(row, [p.type(offset + AHEAD)]))
                x = _at(builder, row, offset, ir.VectorType(a.data.type.pointee, kept.count))
                x = _floats(builder, builder.load(x, align=stored.bitwidth // 8), stored, kept.count)
                x = builder.fpext(x, kept)
                for total, factor in zip(totals, factors, strict=True):
                    product = builder.fmul(_everywhere(builder, factor, kept), x, flags=["contract"])
                    builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)
        for total, place in kept_at:
            builder.store(builder.load(total), place, align=8)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, weight, index, maps, lanes, classes), generate


def _at(builder, start, offset, vector):
    """A pointer to the vector that begins `offset` elements after `start`."""
    return builder.bitcast(builder.gep(start, [ir.IntType(64)(offset)]), vector.as_pointer())


def _everywhere(builder, x, vector):
    """A vector with x in every lane."""
    lane0 = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(lane0, lane0, zeros)


def _prefetch(builder, place):
    """Ask for the cache line at `place`, which may lie past the end of its array, to be read."""
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(prefetch, [builder.bitcast(place, byte), word(0), word(3), word(1)])  # to read, all caches, data


def _adder(classes):
    @jit
    def add(a, first, stop, weight, k, maps):
        """maps[k : k + classes] += their sums over channels [first, stop)."""
        p, positions = 0, a.shape[1]
        while positions - p >= WIDE:
            _add_tile(a, first, stop, p, weight, k, maps, WIDE, classes)
            p += WIDE
        while positions - p >= 16:
            _add_tile(a, first, stop, p, weight, k, maps, 16, classes)
            p += 16
        while positions - p >= 4:
            _add_tile(a, first, stop, p, weight, k, maps, 4, classes)
            p += 4
        while p < positions:
            _add_tile(a, first, stop, p, weight, k, maps, 1, classes)
            p += 1

    return add


_add3, _add1 = _adder(3), _adder(1)


@jit
def _dot3(a, b, weight, k, maps, p, q):
    """Positions p and q, with features a and b [C], of three class maps at once: each weight is loaded once for two."""
    w0, w1, w2 = weight[k], weight[k + 1], weight[k + 2]
    s0 = s1 = s2 = t0 = t1 = t2 = 0.0
    for c in range(a.size):
        x, y = np.float64(widen(a[c])), np.float64(widen(b[c]))
        s0 += w0[c] * x
        s1 += w1[c] * x
        s2 += w2[c] * x
        t0 += w0[c] * y
        t1 += w1[c] * y
        t2 += w2[c] * y
    maps[k, p], maps[k + 1, p], maps[k + 2, p] = s0, s1, s2
    maps[k, q], maps[k + 1, q], maps[k + 2, q] = t0, t1, t2


@jit
def _class_maps(a, channels_last, weight, maps):
    """Class maps [K, P], Σ_c weight[k, c]·A_c, of a sample a, [C, P] or, channels_last, [P, C]; one read of it.

    weight [K, C] and maps are float64.
    """
    classes = weight.shape[0]
    threes = classes - classes % 3
    if channels_last:
        last = a.shape[0] - 1
        for p in range(0, last + 1, 2):
            q = min(p + 1, last)
            for k in range(0, threes, 3):
                _dot3(a[p], a[q], weight, k, maps, p, q)
            for k in range(threes, classes):
                maps[k, p], maps[k, q] = _dot(a[p], weight[k]), _dot(a[q], weight[k])
        return
    maps[:] = 0
    # one tile of three maps is done with a feature at once; else a block is read again, from the cache
    block = a.shape[0] if a.shape[1] <= WIDE and classes <= 3 else max(CACHED // a.shape[1], 4)
    for first in range(0, a.shape[0], block):
        stop = min(first + block, a.shape[0])
        for k in range(0, threes, 3):
            _add3(a, first, stop, weight, k, maps)
        for k in range(threes, classes):
            _add1(a, first, stop, weight, k, maps)


@jit
def _dot(a, weight):
    total = 0.0
    for c in range(a.size):
        total += weight[c] * np.float64(widen(a[c]))
    return total


@jit
def _pool(a, channels_last, means):
    """Means [C], float64, over positions of a sample as in `_class_maps`."""
    if channels_last:
        means[:] = 0
        for p in range(a.shape[0]):
            for c in range(a.shape[1]):
                means[c] += widen(a[p, c])
        means /= a.shape[0]
        return
    channels, positions = a.shape
    for c in range(0, channels - 3, 4):  # four at a time: their sums do not wait for each other
        a0, a1, a2, a3 = a[c], a[c + 1], a[c + 2], a[c + 3]
        t0 = t1 = t2 = t3 = 0.0
        for p in range(a.shape[1]):
            t0 += widen(a0[p])
            t1 += widen(a1[p])
            t2 += widen(a2[p])
            t3 += widen(a3[p])
        means[c], means[c + 1], means[c + 2], means[c + 3] = t0, t1, t2, t3
    for c in range(channels - channels % 4, channels):
        means[c] = 0
        for p in range(a.shape[1]):
            means[c] += widen(a[c, p])
    means /= positions


@kernel
def pool(team, features, channels_last, means):
    """Means [B, C] of all samples."""
    each_thread(team, _pool_some, (np.zeros(1, np.int64), features, channels_last, means))


@jit
def _pool_some(taken, features, channels_last, means):
    b = take(taken)
    while b < features.shape[0]:
        _pool(features[b], channels_last, means[b])
        b = take(taken)


@jit
def project(a, channels_last, alpha, class_map):
    """Class map [P], float32, Σ_c alpha_c·A_c (float64), of a sample a, [C, P] or, channels_last, [P, C]."""
    sums = np.empty((1, class_map.size))
    _class_maps(a, channels_last, alpha.reshape(1, alpha.size), sums)
    class_map[:] = sums[0]


@jit
def linear_head(a, channels_last, weight, bias, explain, logits, maps, class_map):
    """Logits [K] and the map [P] of class `explain`, or if that is negative of the predicted one; a is read once.

    Up to MAPPED classes, all their maps are made at once, in `maps`, and the logits are their means. More maps cost
    more than a second look at a sample that is in the cache by then: pooled means → logits → the map of one class.
    weight, bias and maps are float64.
    """
    positions = class_map.size
    if logits.size <= MAPPED:
        _class_maps(a, channels_last, weight, maps)
        for k in range(logits.size):
            logits[k] = maps[k].sum() / positions + bias[k]
        class_map[:] = maps[explain if explain >= 0 else np.argmax(logits)] / positions
        return
    means = np.empty(weight.shape[1])
    _pool(a, channels_last, means)
    for k in range(logits.size):
        logits[k] = (weight[k] * means).sum() + bias[k]
    project(a, channels_last, weight[explain if explain >= 0 else np.argmax(logits)] / positions, class_map)


@jit
def describe(logits):
    """Entropy in nats, the lowest of the most probable classes, and whether every logit is finite."""
    top = np.argmax(logits)
    total, moment, finite = 0.0, 0.0, True
    for k in range(logits.size):
        finite &= np.isfinite(logits[k])
        z = np.float64(logits[k]) - np.float64(logits[top])
        p = np.exp(z)
        total += p
        moment += p * z
    return np.log(total) - moment / total, top, finite  # −Σ p·log p of p = exp(z)/total
