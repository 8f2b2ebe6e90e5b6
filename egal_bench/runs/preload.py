"""Imported by the process from which workers are forked: what each worker would otherwise load in its first run."""

import numba

import egal_bench.runs.local_engine  # noqa: F401
import egal_kernels.acquisition.cpu  # noqa: F401

numba.njit("void()")(lambda: None)  # compiling any function loads the compiler's tables, which takes 0.3 s
