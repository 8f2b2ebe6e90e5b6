"""Whether the training of a comparison has converged: whether each round's network fits its own labelled set.

Networks that have not learned the labels they were given differ by how far training came, not by which samples were
bought. So a comparison of strategies begins to mean something once all of them are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

FITTED = 0.95  # training accuracy from which on a round counts as fitted
MOST_UNFITTED = 0.1  # share of a strategy's rounds that may be unfitted


def unfitted(rounds: pd.DataFrame) -> float:
    """Return the share of `rounds` whose training accuracy is below FITTED, 0 to 1.

    Rounds without optimiser steps (the frozen regime) count as fitted: their head is the exact minimum of a convex
    loss, and a strong penalty may keep it from fitting every label.
    """
    return float(((rounds["train_accuracy"] < FITTED) & (rounds["steps"] > 0)).mean())


def convergence_warning(shares: Mapping[str, float]) -> str | None:
    """Return a sentence where some strategy has more unfitted rounds than MOST_UNFITTED allows, else None.

    Args:
        shares: `unfitted` of each strategy by its name.
    """
    high = {name: share for name, share in shares.items() if share > MOST_UNFITTED}
    if not high:
        return None
    worst = max(high, key=lambda name: high[name])
    others = f" (and in more than {100 * MOST_UNFITTED:.0f} % of the rounds of {len(high) - 1} more)" * (len(high) > 1)
    return (
        f"in {100 * high[worst]:.0f} % of the rounds of {worst}{others} the network has fitted less than "
        f"{100 * FITTED:.0f} % of the labels that it was trained on, so training may decide more than the strategies "
        "do: train longer (--steps auto, or more --epochs with --head prototypical)"
    )
