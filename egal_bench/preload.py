"""Imported by the process that workers are forked from: what each of them would load again in its first run."""

import numba

import egal_bench.processes  # noqa: F401
import egal_kernels.acquisition.cpu  # noqa: F401

numba.njit("void()")(lambda: None)  # any function: compiling one loads the compiler's tables, 0.3 s
