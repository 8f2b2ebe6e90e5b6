# mypy: allow-untyped-defs, allow-untyped-calls
"""How the threads of a Numba kernel share the batch: each takes the next sample until there is none left."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def take(typing, taken):
    """taken[0] += 1, atomically; returns what it was. taken: int64 [1]."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(taken), generate
