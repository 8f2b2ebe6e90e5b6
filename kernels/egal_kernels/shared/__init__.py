"""What several ops share.

| modules | content |
|---|---|
| `roi`, `roi_cpu` | packed regions of interest |
| `checks` | argument checks |
| `backends` | the registry of ops and the choice of a backend |
| `recipes`, `resampling` | from a class map to the map that is compared with the ROI, in PyTorch |
| `cpu_*`, `caching`, `threads` | for Numba kernels: arrays, class maps, resampling, ROI words, compilation, threads |
| `triton_*` | for Triton kernels: class maps, tables and device functions of resampling, ROI words, launches |
"""
