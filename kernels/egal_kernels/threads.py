# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""The threads of a Numba kernel are PyTorch's own: its OpenMP team, entered from compiled code.

After an operation of PyTorch that team spins for a while: it begins within microseconds, where other threads would wait
for a core. Numba's own threading layers abort when a process forks (OpenMP) or calls from two threads (workqueue), and
their thread count is global state.
"""

import ctypes
import os
from functools import cache

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LOADED_IN = os.getpid()


def team(samples: int) -> tuple[int, int]:
    """What `each_thread` takes: the entry of PyTorch's OpenMP, and how many of its threads should share the samples.

    torch.get_num_threads() at most. One where PyTorch's OpenMP has no such entry (Windows), and in a forked child,
    which has none of its parent's threads.
    """
    entry = _entry() if os.getpid() == LOADED_IN else 0
    return entry, max(1, min(torch.get_num_threads(), samples)) if entry else 1


@cache
def _entry() -> int:
    """Address of GOMP_parallel in the OpenMP that PyTorch runs with, be it GNU's, LLVM's or Intel's; 0 without one."""
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


@intrinsic
def each_thread(typing, team, body, args):
    """body(*args), which must not raise, in each thread of a `team`; returns when all have."""
    signature = types.void(team, body, args)
    callee = body.get_call_type(typing, args.types, {})

    def generate(context, builder, signature, values):
        team, _, packed = values
        entry, threads = cgutils.unpack_tuple(builder, team)
        kept = cgutils.alloca_once_value(builder, packed)
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        part = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), f"{builder.function.name}.part")
        part.linkage = "internal"
        inner = ir.IRBuilder(part.append_basic_block())
        found = inner.load(inner.bitcast(part.args[0], kept.type))
        compiled = body.dispatcher.get_compile_result(callee)
        context.active_code_library.add_linking_library(compiled.library)
        context.call_internal_no_propagate(inner, compiled.fndesc, callee, cgutils.unpack_tuple(inner, found))
        inner.ret_void()
        data = builder.bitcast(kept, byte)
        with builder.if_else(builder.icmp_unsigned("==", threads, threads.type(1))) as (alone, together):
            with alone:
                builder.call(part, [data])
            with together:
                kind = ir.FunctionType(ir.VoidType(), [part.type, byte, word, word])
                start = builder.inttoptr(entry, kind.as_pointer())
                builder.call(start, [part, data, builder.trunc(threads, word), word(0)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def take(typing, taken):
    """taken[0] += 1, atomically; returns what it was. taken: int64 [1]."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(taken), generate
