# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""Numba functions that make class maps Σ_c weight_c·A_c of the features of a sample.

Sums are in binary64, in which a product of two stored features or weights is exact, and are rounded to float32 once.
LLVM may choose their order, but that hardly ever shows: the class map is the reference's.
"""

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

# Any order of a sum is allowed, but NaN and infinity must survive: neither nnan nor ninf
FAST = {"reassoc", "contract", "nsz"}
jit = njit(nogil=True, fastmath=FAST, error_model="numpy")


def _cpu_has(feature):
    """Return whether Numba compiles for an x86 CPU that has these instructions."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return get_host_cpu_features().get(feature, False)


WIDE = 49 if _cpu_has("avx512f") else 16  # positions for which the sums of three maps fit into the registers; 49 = 7×7
CACHED = 1 << 10  # features in a block of channels: it stays in the L1 cache while the sums of every class are taken
AHEAD = 2 * CACHED  # features are prefetched this many elements early, since a CPU does not foresee strided reads


def widen(x):
    """Return a stored feature as float32: itself, or from the bits of a bfloat16 (uint16) or a float16 (int16)."""


@overload(widen)
def _widen(x):
    return lambda x: _to_float(x)


@intrinsic
def _to_float(typing, x):
    def generate(context, builder, signature, args):
        return _floats(builder, args[0], x)

    return types.float32(x), generate


def _floats(builder, x, stored, lanes=None):
    """Emit LLVM instructions for `widen`, for a scalar or for a vector of `lanes`.

    A CPU without instructions for float16 widens it by arithmetic: LLVM would call a library that is not linked.
    """
    if stored == types.float32:
        return x
    shape = (lambda scalar: ir.VectorType(scalar, lanes)) if lanes else (lambda scalar: scalar)
    ints, floats = shape(ir.IntType(32)), shape(ir.FloatType())
    repeat = (lambda value, type_: ir.Constant(type_, [value] * lanes)) if lanes else lambda value, type_: type_(value)
    wide = builder.zext(x, ints)
    if stored == types.uint16:  # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(wide, repeat(16, ints)), floats)
    if _cpu_has("f16c"):
        return builder.fpext(builder.bitcast(x, shape(ir.HalfType())), floats)
    magnitude = builder.shl(builder.and_(wide, repeat(0x7FFF, ints)), repeat(13, ints))
    sign = builder.shl(builder.and_(wide, repeat(0x8000, ints)), repeat(16, ints))
    # the exponents differ by 112, for subnormals too; an exponent of all ones (infinity or NaN) stays all ones
    scaled = builder.fmul(builder.bitcast(magnitude, floats), repeat(2.0**112, floats))
    special = builder.icmp_unsigned(">=", magnitude, repeat(0x0F800000, ints))
    ones = builder.or_(magnitude, repeat(0x7F800000, ints))
    bits = builder.select(special, ones, builder.bitcast(scaled, ints))
    return builder.bitcast(builder.or_(bits, sign), floats)


@intrinsic(prefer_literal=True)
def _add_tile(typing, a, first, stop, p, weight, k, maps, lanes, classes):
    """Add Σ_c weight[k…, c]·a[c, p : p + lanes] over channels [first, stop) to maps[k : k + classes, p : p + lanes].

    `weight` and `maps` are float64; `lanes` and `classes` are constants. The sums stay in vector registers. Numba has
    no syntax for that, and loops over 49 positions would spend more time on their ends than on the sums.
    """
    n, count, stored = lanes.literal_value, classes.literal_value, a.dtype

    def generate(context, builder, signature, args):
        arrays = [context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 4, 6)]
        (a, w, m), (_, first, stop, p, _, k, *_) = arrays, args
        width, channels, positions = (cgutils.unpack_tuple(builder, x.shape)[-1] for x in arrays)
        parts = [(i, ir.VectorType(ir.DoubleType(), min(16, n - i))) for i in range(0, n, 16)]
        class_rows = [builder.add(k, k.type(i)) for i in range(count)]
        weights = [builder.gep(w.data, [builder.mul(row, channels)]) for row in class_rows]
        starts = [builder.gep(m.data, [builder.add(builder.mul(row, positions), p)]) for row in class_rows]
        sums = [[cgutils.alloca_once(builder, vector) for _ in class_rows] for _, vector in parts]
        places = [[_at(builder, start, offset, vector) for start in starts] for offset, vector in parts]
        sum_places = [pair for part in zip(sums, places, strict=True) for pair in zip(*part, strict=True)]
        for total, place in sum_places:
            builder.store(builder.load(place, align=8), total)
        with cgutils.for_range_slice(builder, first, stop, first.type(1)) as (c, _):
            row = builder.gep(a.data, [builder.add(builder.mul(c, width), p)])
            factors = [builder.load(builder.gep(weight, [c])) for weight in weights]
            for (offset, vector), totals in zip(parts, sums, strict=True):
                _prefetch(builder, builder.gep(row, [p.type(offset + AHEAD)]))
                x = _at(builder, row, offset, ir.VectorType(a.data.type.pointee, vector.count))
                x = _floats(builder, builder.load(x, align=stored.bitwidth // 8), stored, vector.count)
                x = builder.fpext(x, vector)
                for total, factor in zip(totals, factors, strict=True):
                    product = builder.fmul(_everywhere(builder, factor, vector), x, flags=["contract"])
                    builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)
        for total, place in sum_places:
            builder.store(builder.load(total), place, align=8)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, weight, index, maps, lanes, classes), generate


def _at(builder, start, offset, vector):
    """Return a pointer to the vector that begins `offset` elements after `start`."""
    return builder.bitcast(builder.gep(start, [ir.IntType(64)(offset)]), vector.as_pointer())


def _everywhere(builder, x, vector):
    """Return a vector with x in every lane."""
    lane0 = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(lane0, lane0, zeros)


def _prefetch(builder, place):
    """Ask for the cache line at `place`, which may be past the end of its array, to be read ahead."""
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(prefetch, [builder.bitcast(place, byte), word(0), word(3), word(1)])  # read, all caches, data


def _adder(classes):
    """Return a function that adds to `classes` maps at once."""

    @jit
    def add(a, first, stop, weight, k, maps):
        """Add the sums over channels [first, stop) to maps[k : k + classes]."""
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
    """Write positions p and q, whose features are a and b [C], of three class maps.

    Each weight is loaded once for both positions.
    """
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
def class_maps(a, channels_last, weight, maps):
    """Write the class maps Σ_c weight[k, c]·A_c of a sample, whose features are read from memory once.

    Args:
        a: the features of the sample as stored, [C, P], or [P, C] if channels_last.
        channels_last: the layout of `a`.
        weight: float64 [K, C].
        maps: float64 [K, P], written.
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
    # If one tile of three maps covers everything, a feature is used only once. Otherwise each block of channels is read
    # several times, from the cache.
    block = a.shape[0] if a.shape[1] <= WIDE and classes <= 3 else max(CACHED // a.shape[1], 4)
    for first in range(0, a.shape[0], block):
        stop = min(first + block, a.shape[0])
        for k in range(0, threes, 3):
            _add3(a, first, stop, weight, k, maps)
        for k in range(threes, classes):
            _add1(a, first, stop, weight, k, maps)


@jit
def _dot(a, weight):
    """Return Σ_c weight[c]·a[c] in float64."""
    total = 0.0
    for c in range(a.size):
        total += weight[c] * np.float64(widen(a[c]))
    return total


@jit
def project(a, channels_last, alpha, class_map):
    """Write the class map Σ_c alpha_c·A_c, float32 [P], of a sample `a` as in `class_maps`; alpha is float64 [C]."""
    sums = np.empty((1, class_map.size))
    class_maps(a, channels_last, alpha.reshape(1, alpha.size), sums)
    for p in range(class_map.size):
        class_map[p] = sums[0, p]
