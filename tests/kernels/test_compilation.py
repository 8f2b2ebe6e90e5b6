"""Compilation of the Numba kernels: the cache on disk, generic processors, and what happens without Numba."""

import os
import shutil
from pathlib import Path

import egal_kernels


def test_a_change_of_another_source_recompiles_a_kernel(tmp_path, run_script):
    package = shutil.copytree(Path(egal_kernels.__file__).parent, tmp_path / "egal_kernels",
                              ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    script = """
import torch
from egal_kernels import pack_roi
from egal_kernels.shared import roi_cpu
pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
print(roi_cpu.__file__, len(roi_cpu.pack.stats.cache_misses))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def misses():
        file, count = run_script(script, env=environment)[0].split()
        assert package in Path(file).parents
        return int(count)

    assert (misses(), misses()) == (1, 0)
    with (package / "acquisition" / "cpu_head.py").open("a") as source:
        source.write("# another line\n")
    assert misses() == 1


def test_kernels_run_on_a_generic_processor(run_script):
    """Numba compiles for any processor of the family: without conversions of halves and with few registers.

    The cache on disk keeps the kernels of each processor until a source changes.
    """
    script = """
import torch
from egal_kernels import acquire, pack_roi
features, roi = torch.arange(8.0).reshape(1, 2, 2, 2).half(), pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
print(acquire(features, torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None, roi, backend="cpu").logits.tolist())
wide = torch.arange(3 * 49.0).reshape(1, 3, 7, 7).half() % 11
weight, roi = torch.tensor([[1.0, -2, 1], [3, 1, -1], [-1, 1, 2]]), pack_roi(torch.ones(1, 61, 40, dtype=torch.bool))
print(*(int(acquire(wide, weight, None, roi, backend=name).cam_area) for name in ("cpu", "reference")))
"""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    logits, areas = run_script(script, env=os.environ | plain)
    assert logits == "[[1.5, 11.0]]"
    ours, reference = map(int, areas.split())
    assert ours == reference > 0


CALLS = {  # by op
    "acquire": "acquire(torch.ones(1, 1, 2, 2), torch.ones(2, 1), None, roi, {})",
    "cam_loss": "cam_loss(torch.ones(1, 1, 2, 2), torch.ones(2, 1), roi, torch.tensor([0]), {})",
}


def test_without_numba_one_warning_says_what_is_lost(run_script):
    """Each op is called in a fork of its own of one process, since the warning is shown once per process."""
    script = f"""
import os, sys, warnings, torch
sys.modules["numba"] = None
from egal_kernels import ArgumentError, acquire, cam_loss, pack_roi
roi = pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
for call in {list(CALLS.values())}:
    if os.fork() == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            eval(call.format(""))
            eval(call.format(""))
        print(*(w.message for w in caught))
        try:
            eval(call.format("backend='cpu'"))
        except ArgumentError as error:
            print(error)
        sys.exit()
    if os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit(call + " failed")
"""
    lines = run_script(script)
    assert len(lines) == 2 * len(CALLS)
    for warned, refused in zip(lines[::2], lines[1::2], strict=True):
        assert warned.count("Numba is not installed, so the CPU backend is off") == 1
        assert refused.startswith("backend: 'cpu' needs Numba")
