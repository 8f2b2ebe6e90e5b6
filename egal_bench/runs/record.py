"""The record of a run: the rows of its tables, the masks that it has looked at, and the time of each phase."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from egal_bench.dataset import Dataset
from egal_bench.runs.purchase import Purchase
from egal_bench.runs.task import RunTables
from egal_bench.scoring.scores import Scores
from egal_bench.statistics.metrics import evaluate

NAN = float("nan")


class Record:
    """Collects the rows of one run while it proceeds: begin, trained, evaluated, bought, for each round.

    Args:
        dataset: gives keys, labels and ROIs.
        config_hash: the identity of the run, which each row of `rounds` carries.
    """

    def __init__(self, dataset: Dataset, config_hash: str) -> None:
        self.dataset, self.config_hash = dataset, config_hash
        self.rounds: list[dict[str, Any]] = []
        self.selections: list[dict[str, Any]] = []
        self._looked_at = np.zeros(len(dataset.keys), dtype=bool)  # ROIs that the run has read, to query or to train
        self._lap = perf_counter()

    def initial_set(self, labelled: np.ndarray) -> None:
        """Record the initial set at positions `labelled`, which no score has chosen."""
        self.selections += [self._selection(0, rank, position) for rank, position in enumerate(labelled)]

    def begin_round(self, round_: int, labelled: np.ndarray) -> None:
        """Open the row of round `round_`, which trains on the samples at `labelled`, and start the clock."""
        self.rounds.append({
            "round": round_, "labels": len(labelled), "pool_size": len(self.dataset.pool) - len(labelled),
            "score_s": 0.0, "config_hash": self.config_hash,
        })  # fmt: skip
        self._lap = perf_counter()

    def trained(self, rois: np.ndarray) -> None:
        """Record that training has ended and that it used the ROIs of the samples at positions `rois`."""
        self._looked_at[rois] = True
        self.rounds[-1]["train_s"] = self._seconds()

    def evaluated(self, scores: Scores) -> None:
        """Record the metrics of the test set, whose Scores include the overlap."""
        assert scores.overlap is not None
        dataset = self.dataset
        dice = scores.overlap.dice[dataset.has_roi[dataset.test]]
        self.rounds[-1] |= {
            **evaluate(scores.logits, dataset.labels[dataset.test]),
            "test_dice": float(dice.mean()) if len(dice) else NAN,
            "test_size": len(dataset.test),
            "masks": int((self._looked_at & dataset.has_roi).sum()),
        }
        self.rounds[-1]["eval_s"] = self._seconds()

    def bought(self, purchase: Purchase) -> None:
        """Record a purchase and the ROIs that the strategy looked at to make it."""
        overlap, round_ = purchase.overlap, self.rounds[-1]["round"] + 1
        for rank, position in enumerate(purchase.positions):
            self.selections.append(self._selection(round_, rank, position) | {
                "score": float(purchase.scores[rank]), "entropy": float(purchase.entropy[rank]),
                "misalignment": 1.0 - float(overlap.dice[rank]), "intersection": int(overlap.intersection[rank]),
                "cam_area": int(overlap.cam_area[rank]), "roi_area": int(overlap.roi_area[rank]),
            })  # fmt: skip
        self._looked_at[purchase.rois] = True
        self.rounds[-1]["score_s"] = self._seconds()

    def tables(self) -> RunTables:
        """Return the rows of each table."""
        return {"rounds": self.rounds, "selections": self.selections}

    def _seconds(self) -> float:
        """Return the seconds since the last phase ended."""
        last, self._lap = self._lap, perf_counter()
        return self._lap - last

    def _selection(self, round_: int, rank: int, position: int) -> dict[str, Any]:
        """Return a row of `selections` before any score is known."""
        return {
            "round": round_, "rank": rank, "key": str(self.dataset.keys[position]),
            "label": int(self.dataset.labels[position]), "score": NAN, "entropy": NAN, "misalignment": NAN,
            "intersection": -1, "cam_area": -1, "roi_area": -1,
        }  # fmt: skip
