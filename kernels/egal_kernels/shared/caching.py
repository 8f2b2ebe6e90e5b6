# mypy: allow-untyped-defs, allow-untyped-calls
"""Compilation of the Numba functions that Python calls, cached on disk until a source file of this package changes.

Numba's own cache looks only at the file of the function itself. It would keep using an old version of the functions
that it calls.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache


def kernel(function):
    """Compile `function` on first use: without bounds checks, with NumPy's division, and without holding the GIL."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    compiled._cache = _Cache(function)  # numba does the same for njit(cache=True)
    return compiled


class _Cache(FunctionCache):
    """Numba's cache on disk, whose key also covers the source of the whole package."""

    def _index_key(self, sig, codegen):
        return *super()._index_key(sig, codegen), _digest()


@cache
def _digest() -> str:
    """Return a digest of every source file of the package."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
