"""`acquire` and `cam_loss` on the device against the reference, on the CPU and on the device, over a grid of shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import CASES, Case, Inputs, triton_acquire, two_kernels, variants
from benchmarks.gpu.steps import Row
from egal_kernels import acquire, cam_loss, pack_roi
from egal_kernels.acquisition import triton as backend
from egal_kernels.acquisition.heads import head_of
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.shared.triton_launch import Tuning, tuning

DEVICE = "cuda"
Job = Callable[[], object]


def agreement(left: float) -> Iterator[Row]:
    """Yield a row per grid. Raises AssertionError at the first difference.

    Given class maps, every count must be the same to the bit. From whole heads, logits agree to 1e-4 and at most 1
    pixel in 10⁴ differs. Every job compiles its kernels, so jobs run in parallel processes.
    """
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        for name, jobs in (("class maps", map_jobs()), ("heads", head_jobs()), ("loss", loss_jobs())):
            count = sum(1 for _ in processes.map(_run, jobs))
            yield Row("agreement", name, "equal", note=f"{count} jobs")
        timed = [partial(_compile, case, tuned) for case in CASES for tuned in variants(case).values()]
        list(processes.map(_run, timed))


def _run(job: Job) -> None:
    job()


def _compile(case: Case, tuned: Tuning) -> None:
    """Compile what the timings will launch; Triton's cache on disk keeps it."""
    triton_acquire(case.inputs(2, DEVICE), tuned)


def map_jobs() -> Iterable[Job]:
    """Return the jobs that compare counts from given class maps."""
    sides, sizes = [(1, 1), (3, 5), (7, 7), (14, 9), (33, 40)], [(1, 1), (61, 50), (224, 224), (1000, 513)]
    return [partial(check_maps, *job) for job in itertools.product(sides, sizes, sorted(CONVENTIONS))]


def check_maps(sides: tuple[int, int], size: tuple[int, int], convention: str, device: str = DEVICE) -> None:
    """Compare the counts of four class maps at four thresholds."""
    (h, w), generator = sides, torch.Generator().manual_seed(sides[0] * size[0])
    maps = torch.randn(4, 1, h, w, generator=generator)
    mask = torch.rand(4, *size, generator=generator) < 0.3
    maps[1], maps[2], mask[3] = maps[1].round(), 1.0, True  # plateaus, a constant, a full ROI
    head = {"alpha": torch.ones(4, 1), "logits": torch.randn(4, 5, generator=generator)}
    tunings: list[Tuning | None] = [None]
    if convention == "grad-cam":
        tunings.append(two_kernels(tuning(1, h * w, False, 1, size[1]), 1))
    for threshold in (0.0, 0.3, 0.5, 1.0):
        options = {"threshold": threshold, "convention": convention}
        compare((maps, None, None, pack_roi(mask)), tunings, 0, device, head, **options)


def head_jobs() -> Iterable[Job]:
    """Return the jobs that compare whole heads: one pass, pooled, and one matrix product."""
    grid = itertools.product(
        [(7, 224), (14, 224), (5, 61)], [5, 8, 15, 1000], [torch.float32, torch.bfloat16, torch.float16],
        [False, True],
    )  # fmt: skip
    return [partial(check_head, Case(512, side, size, dtype, classes, last))
            for (side, size), classes, dtype, last in grid]  # fmt: skip


def check_head(case: Case, device: str = DEVICE) -> None:
    """Compare 8 samples of a case, in every variant."""
    compare(case.inputs(8, "cpu"), list(variants(case).values()), 1e-4, device)


def compare(
    inputs: Inputs, tunings: Iterable[Tuning | None], share: float, device: str,
    head: dict[str, Tensor] | None = None, threshold: float = 0.5, convention: str = "grad-cam",
) -> None:  # fmt: skip
    """Raise AssertionError if the backend differs from the reference, which runs on the CPU and on the device.

    Args:
        inputs: on the CPU.
        tunings: how the backend cuts the work.
        share: share of the pixels by which counts may differ.
        device: where the backend runs.
        head: alpha and logits, if the inputs have no weight.
        threshold: see `acquire`.
        convention: see `acquire`.
    """
    features, weight, bias, roi = inputs
    options: dict[str, Any] = {"threshold": threshold, "convention": convention}
    moved = [None if tensor is None else tensor.to(device) for tensor in (features, weight, bias)]
    head_here = head or {}
    head_there = {name: tensor.to(device) for name, tensor in head_here.items()}
    roi_there = roi.to(device)
    references = [
        acquire(features, weight, bias, roi, **head_here, **options, backend="reference"),
        acquire(*moved, roi_there, **head_there, **options, backend="reference"),
    ]
    form = head_of(moved[1], moved[2], None, head_there.get("alpha"), head_there.get("logits"))
    for tuned, reference in itertools.product(tunings, references):
        out = backend.acquire(moved[0], form, roi_there, **options, tuned=tuned)
        case = f"{list(features.shape)} {features.dtype} → {roi.shape} {options} {tuned}"
        for name, expected in vars(reference).items():
            result, expected = getattr(out, name).cpu(), expected.cpu()
            if expected.dtype == torch.int32:
                allowed = share * roi.height * roi.bits.shape[1]
                assert (result - expected).abs().max() <= allowed, f"{name} of {case}: {result} is not {expected}"
            else:
                torch.testing.assert_close(
                    result, expected, rtol=1e-4, atol=1e-4 * roi.shape[1] * (share + 1e-2),
                    msg=lambda message, name=name, case=case: f"{name} of {case}: {message}",
                )  # fmt: skip


def loss_jobs() -> Iterable[Job]:
    """Return the jobs that compare the loss and its gradients."""
    grid = itertools.product([(7, 224), (14, 224), (32, 512)], sorted(CONVENTIONS), [False, True])
    return [partial(check_loss, Case(128, side, size, channels_last=last), convention)
            for (side, size), convention, last in grid]  # fmt: skip


def check_loss(case: Case, convention: str, device: str = DEVICE, name: str = "triton") -> None:
    """Compare the loss of 8 samples and its gradients with the reference, which runs on the CPU."""
    features, weight, _, roi = case.inputs(8, "cpu")
    labels = torch.arange(8) % case.classes
    results = []
    for where, chosen in ((device, name), ("cpu", "reference")):
        a, w = (tensor.detach().clone().to(where).requires_grad_() for tensor in (features, weight))
        loss = cam_loss(a, w, roi.to(where), labels.to(where), convention=convention, backend=chosen)
        gradients = torch.autograd.grad(loss.sum(), (a, w))
        results.append([tensor.detach().cpu() for tensor in (loss, *gradients)])
    for result, expected in zip(*results, strict=True):
        difference = float((result - expected).abs().max())
        assert difference <= 1e-3 * float(expected.abs().max()) + 1e-6, f"loss of {case}, {convention}: {difference}"
