"""The measurements of `egal-bench profile`: stages of a pool pass, roofs, and other libraries."""
