# mypy: allow-untyped-defs, allow-untyped-calls
"""`kernel`: Numba's njit for what Python calls, cached on disk until a source of this package changes.

Numba's own cache looks at the file of the kernel alone, and would go on with old code of what it calls.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache


def kernel(function):
    """`function` compiled on first use, without bounds checks, divisions as NumPy's; it holds no GIL."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    compiled._cache = _Cache(function)  # as njit(cache=True) does
    return compiled


class _Cache(FunctionCache):
    def _index_key(self, sig, codegen):
        return *super()._index_key(sig, codegen), _sources()


@cache
def _sources() -> str:
    """Digest of every source of the package."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
