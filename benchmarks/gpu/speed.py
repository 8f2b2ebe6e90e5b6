"""Times on the device: copies, `acquire` in every variant, the loss, and what a call costs the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.cases import CASES, Case, triton_acquire, variants
from benchmarks.gpu.steps import Row
from egal_kernels import acquire, cam_loss

LIMIT = 1 << 29  # bytes of features and ROIs in a batch: more than a cache holds
PASS_BATCH = 256  # images in a batch of a pool pass on a GPU


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of 20 runs by the clock of the device, after 3 runs to warm up."""
    times = []
    for _ in range(23):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times[3:])


def roof() -> float:
    """Return the bytes per second that a copy on the device reads and writes."""
    source = torch.empty(LIMIT, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * LIMIT / milliseconds(lambda: target.copy_(source)) * 1e3


def variant_times(left: float) -> Iterator[Row]:
    """Yield the time per image of every variant on every case, and its share of the roof.

    A large batch does not fit into a cache. The batch of a pool pass does not fill the device, or fits into its cache.
    `acquire` reads features and ROI once and writes a few numbers per sample, so its roof is a copy of as many bytes.
    """
    rate = roof()
    yield Row("variants", "copy on the device", rate / 1e9, "GB/s")
    for case in CASES:
        for batch in sorted({min(PASS_BATCH, LIMIT // case.bytes()), LIMIT // case.bytes()}):
            inputs = case.inputs(batch, "cuda")
            for name, tuned in variants(case).items():
                label = f"{case}, B={batch}, {name}"
                try:
                    time = milliseconds(lambda: triton_acquire(inputs, tuned))  # noqa: B023
                except OutOfResources as error:
                    yield Row("variants", label, "skipped", note=str(error))
                    continue
                share = batch * case.bytes() / time * 1e3 / rate
                yield Row("variants", label, time / batch * 1e3, "µs per image", f"{share:.0%} of the roof")


def loss_times(left: float) -> Iterator[Row]:
    """Yield the time per image of `cam_loss`, forward and backward, for the Triton backend and the reference."""
    for case, batch in ((Case(1024, 7, 224), 64), (Case(512, 14, 224), 64), (Case(512, 32, 1024), 8)):
        features, weight, _, roi = case.inputs(batch, "cuda")
        features, weight = features.requires_grad_(), weight.requires_grad_()
        labels = torch.arange(batch, device="cuda") % case.classes
        for name in ("triton", "reference"):

            def run(name: str = name) -> object:
                loss = cam_loss(features, weight, roi, labels, backend=name)  # noqa: B023
                return torch.autograd.grad(loss.sum(), (features, weight))  # noqa: B023

            yield Row("loss", f"{case}, B={batch}, {name}", milliseconds(run) / batch * 1e3, "µs per image")


def host_cost(left: float, device: str = "cuda", name: str = "triton", calls: int = 1000) -> Iterator[Row]:
    """Yield the time for which a call of `acquire` or `cam_loss` occupies the host.

    The device is idle again before each call. The loss is that of a training step, so it also gets its gradients.
    """
    case = Case(512, 7, 224)
    for batch in (1, 32, 256):
        features, weight, bias, roi = case.inputs(batch, device)

        @torch.inference_mode()
        def score() -> object:
            return acquire(features, weight, bias, roi, backend=name)  # noqa: B023

        yield Row("host", f"acquire, {case}, B={batch}", _host_microseconds(score, device, calls), "µs per call")
    features, weight, _, roi = case.inputs(32, device)
    features, weight = features.requires_grad_(), weight.requires_grad_()
    labels = torch.arange(32, device=device) % case.classes

    def train() -> object:
        loss = cam_loss(features, weight, roi, labels, backend=name)
        return torch.autograd.grad(loss.sum(), (features, weight))

    yield Row("host", f"cam_loss, {case}, B=32", _host_microseconds(train, device, calls), "µs per call")


def _host_microseconds(run: Callable[[], object], device: str, calls: int) -> float:
    """Return the median time of a call on the host; the first tenth of the calls warms up."""
    seconds = []
    for _ in range(calls):
        if device == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return median(seconds[calls // 10 :]) * 1e6
