"""The learning rate of a round, and when the round ends: after a number of steps, or once the loss has settled."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from egal_bench.config import LONGEST_ROUND

WARMUP = 0.25  # share of the steps of one cycle
CHECKS = 20  # checks per cycle, evenly spaced; the last one follows the last step
WINDOW = 25  # steps between checks at least, where the loss must settle
PATIENCE = 3  # checks in a row without a fall after which the loss has settled
FALL = 0.05  # share by which a loss must undercut the lowest one before it to count as a fall
FITTED = 0.1  # nats: below this an objective counts as settled at once, since the decay lowers it further by itself
DECAY = 0.5  # steps of the decay, as a share of the steps before it


class Schedule(Protocol):
    """Says step by step at which learning rate a round goes on."""

    def rate(self, step: int) -> float | None:
        """Return the share of the peak learning rate for step `step`, counted from 0; None: the round has ended."""
        ...

    def record(self, loss: Tensor) -> None:
        """Take note of the objective of the step that has just been made, a scalar on any device."""
        ...

    def due(self, step: int) -> bool:
        """Return whether a check follows step `step`."""
        ...


class OneCycle:
    """A fixed number of steps: the rate rises linearly over WARMUP of them, then falls to 0 along a cosine."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def rate(self, step: int) -> float | None:
        """Return the share of the peak rate, or None after the last step."""
        if step >= self.steps:
            return None
        done = (step + 0.5) / self.steps
        return done / WARMUP if done < WARMUP else _cosine((done - WARMUP) / (1 - WARMUP))

    def record(self, loss: Tensor) -> None:
        """Do nothing: the number of steps is fixed."""

    def due(self, step: int) -> bool:
        """Return whether one of CHECKS even parts of the cycle ends with this step."""
        return (step + 1) * CHECKS // self.steps > step * CHECKS // self.steps


class UntilSettled:
    """A schedule of as many steps as the loss needs.

    The rate rises over WINDOW steps, stays at its peak, and falls at the end.

    The objective is averaged over windows of whole epochs, of WINDOW steps at least, and each window ends with a check.
    The loss has settled at the first check where the mean is below FITTED, or where the last PATIENCE means have not
    undercut the lowest mean before them by FALL. Then the rate falls to 0 along a cosine, over DECAY times as many
    steps as were made. The rule sees nothing but the training loss, and is the same for every strategy. A round takes
    at most LONGEST_ROUND steps: where the loss has not settled in time, the decay begins so that it ends there.

    Args:
        epoch: steps of an epoch.
    """

    def __init__(self, epoch: int) -> None:
        self.window = -(-WINDOW // epoch) * epoch
        self.decay_from = int(LONGEST_ROUND / (1 + DECAY))
        self.steps = LONGEST_ROUND
        self._sum: Tensor | None = None
        self._count, self._done = 0, 0
        self._lowest, self._without_fall = math.inf, 0

    def rate(self, step: int) -> float | None:
        """Return the share of the peak rate, or None once the decay has ended."""
        if step >= self.steps:
            return None
        if step < self.decay_from:
            return min((step + 0.5) / WINDOW, 1.0)
        return _cosine((step - self.decay_from + 0.5) / (self.steps - self.decay_from))

    def record(self, loss: Tensor) -> None:
        """Add `loss` to its window; at the window's end, begin the decay if the loss has settled."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._count, self._done = self._count + 1, self._done + 1
        if self._count < self.window:
            return
        mean = self._sum.item() / self._count  # the one place where the host waits for the device
        self._sum, self._count = None, 0
        self._without_fall = 0 if mean < (1 - FALL) * self._lowest else self._without_fall + 1
        self._lowest = min(self._lowest, mean)
        if self._done < self.decay_from and (mean < FITTED or self._without_fall >= PATIENCE):
            self.decay_from = self._done
            self.steps = self._done + math.ceil(DECAY * self._done)

    def due(self, step: int) -> bool:
        """Return whether a window ends with this step."""
        return (step + 1) % self.window == 0


def _cosine(done: float) -> float:
    """Return the share of the peak rate after a share `done`, 0 to 1, of a decay along a cosine."""
    return 0.5 + 0.5 * math.cos(math.pi * done)
