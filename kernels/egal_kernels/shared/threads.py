# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
"""Numba kernels run on PyTorch's own threads: its OpenMP team, entered from compiled code.

After an operation of PyTorch these threads spin for a while, so they start within microseconds, where other threads
would wait for a core. Numba's own threading layers abort when a process forks (OpenMP) or when two threads call them
(workqueue), and their thread count is global state.
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
    """Return what `each_thread` takes: the entry point of PyTorch's OpenMP, and how many threads share the samples.

    At most torch.get_num_threads(). The number is 1 if PyTorch's OpenMP has no such entry point (Windows), and in a
    forked child, which has none of its parent's threads.
    """
    entry = _entry() if os.getpid() == LOADED_IN else 0
    return entry, max(1, min(torch.get_num_threads(), samples)) if entry else 1


@cache
def _entry() -> int:
    """Return the address of GOMP_parallel in PyTorch's OpenMP, whether GNU's, LLVM's or Intel's; 0 if it has none."""
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


@intrinsic
def each_thread(typing, team, body, args):
    """Call body(*args), which must not raise, in each thread of a `team`; return when all have returned."""
    signature = types.void(team, body, args)
    callee = body.get_call_type(typing, args.types, {})

    def generate(context, builder, signature, values):
        team, _, packed = values
        entry, threads = cgutils.unpack_tuple(builder, team)
        stored = cgutils.alloca_once_value(builder, packed)
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        part = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), f"{builder.function.name}.part")
        part.linkage = "internal"
        inner = ir.IRBuilder(part.append_basic_block())
        arguments = inner.load(inner.bitcast(part.args[0], stored.type))
        compiled = body.dispatcher.get_compile_result(callee)
        context.active_code_library.add_linking_library(compiled.library)
        context.call_internal_no_propagate(inner, compiled.fndesc, callee, cgutils.unpack_tuple(inner, arguments))
        inner.ret_void()
        data = builder.bitcast(stored, byte)
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
def take(typing, counter):
    """Add 1 to counter[0], int64 [1], atomically; return its old value: the next sample that no thread has taken."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate
