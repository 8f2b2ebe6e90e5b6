"""The precision of a network's trunk: bfloat16 where the hardware gains from it, found by timing both."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.model import of_config

GAIN = 1.25  # times faster, or it is not worth the digits
ROUNDS = 4  # timings of each, at least; the first warms up
SECONDS = 0.3  # in all, at least: what else the machine does must not decide for a small network
IMAGES = {"cpu": 2, "cuda": 64}  # to time it on


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which a trunk runs in `precision` on `device`: weights and inputs stay float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def native(device: str) -> bool:
    """Whether `device` may compute in bfloat16; False where that is known to be emulated, tens of times slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.backends.cpu.get_cpu_capability() not in ("NO AVX", "AVX2")


def chosen(config: Config, dataset: Dataset, device: str) -> str:
    """The trunk's precision: the configured one; for "auto" the faster one, found on a network as configured."""
    if config.precision != "auto":
        return config.precision
    if not native(device):
        return "float32"
    network, image = of_config(config, dataset, seed=0).eval().to(device), dataset.shards.manifest.image
    shape = (IMAGES[device], image.channels, image.size, image.size)
    return faster(network.features, torch.zeros(shape, dtype=torch.uint8, device=device))


@torch.inference_mode()
def faster(trunk: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """The precision for `trunk(images)`: bfloat16 if GAIN times as fast as float32, by the least of timings in turn."""
    least = {"float32": math.inf, "bfloat16": math.inf}
    round_, spent = 0, 0.0
    while round_ < ROUNDS or spent < SECONDS:
        for precision in least:
            start = perf_counter()
            with autocast(images.device.type, precision):
                trunk(images).sum().item()  # waits for the device
            took = perf_counter() - start
            spent += took
            if round_:
                least[precision] = min(least[precision], took)
        round_ += 1
    return "bfloat16" if least["float32"] > GAIN * least["bfloat16"] else "float32"
