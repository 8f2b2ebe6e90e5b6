"""The record of a run: the rows of its tables, the masks that it has looked at, and the time of each phase."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from egal_bench.dataset import Dataset
from egal_bench.learners.learner import Fit, Learner
from egal_bench.runs.pool_rows import is_recorded, pool_rows
from egal_bench.runs.purchase import Purchase
from egal_bench.runs.task import History, Task
from egal_bench.scoring.scores import Scores
from egal_bench.statistics.metrics import evaluate
from egal_bench.tables.folder import RunTables
from egal_bench.tables.schemas import SCHEMAS

EXPLAINED = 8  # samples per round whose class map is kept: of the queried ones, and of the test set
NAN = float("nan")


class Record:
    """Collects the rows of one run while it proceeds, phase by phase, and measures the time of each phase.

    Args:
        dataset: gives keys, labels, groups and ROIs.
        task: gives the identity of the run, and which tables are kept.
        needs: what the strategy reads.
    """

    def __init__(self, dataset: Dataset, task: Task, needs: frozenset[str]) -> None:
        self.dataset, self.needs, self.keep = dataset, needs, task.config.keep
        self._config_hash = task.config_hash
        self._rows: RunTables = {table: [] for table in SCHEMAS}
        self._round: dict[str, Any] = {}
        self._queried = np.zeros(0, np.int64)  # the samples of the last purchase that a class map is kept of
        self._looked_at = np.zeros(len(dataset.keys), dtype=bool)  # ROIs that the run has read, to query or to train
        self._lap = perf_counter()

    def initial_set(self, labelled: np.ndarray) -> None:
        """Record the initial set at positions `labelled`, which no score has chosen."""
        self._rows["selections"] += [self._selection(0, rank, position) for rank, position in enumerate(labelled)]

    def resume(self, history: History) -> np.ndarray:
        """Take over the masks of the finished rounds; return the positions labelled so far, in their order."""
        position_of = {key: position for position, key in enumerate(self.dataset.keys)}
        rows = history.tables["selections"]
        labelled = np.array([position_of[row["key"]] for row in rows], dtype=np.int64)
        bought_in = np.array([row["round"] for row in rows])
        for round_ in range(1, bought_in.max() + 1):
            before = labelled[bought_in < round_]
            self._count_query(self.dataset.pool[~np.isin(self.dataset.pool, before)], before)
        return labelled

    def begin_round(self, round_: int, labelled: np.ndarray) -> None:
        """Open the row of round `round_`, which trains on the samples at `labelled`, and start the clock."""
        self._round = {
            "round": round_, "labels": len(labelled), "pool_size": len(self.dataset.pool) - len(labelled),
            "score_s": 0.0, "config_hash": self._config_hash,
        }  # fmt: skip
        self._queried = self._queried[:0]
        self._lap = perf_counter()

    def trained(self, fit: Fit) -> None:
        """Record what the training that has just ended has used and reached."""
        self._looked_at[fit.rois] = True
        self._round |= {"train_loss": fit.loss, "train_accuracy": fit.accuracy, "steps": fit.steps}
        self._round["train_s"] = self._seconds()

    def evaluated(self, scores: Scores) -> None:
        """Record metrics and predictions of the test set, whose Scores include the overlap."""
        assert scores.overlap is not None
        dataset, test = self.dataset, self.dataset.test
        dice = scores.overlap.dice[dataset.has_roi[test]]
        self._round |= {
            **evaluate(scores.logits, dataset.labels[test]),
            "test_dice": float(dice.mean()) if len(dice) else NAN,
            "test_size": len(test),
            "masks": int((self._looked_at & dataset.has_roi).sum()),
        }
        self._round["eval_s"] = self._seconds()
        if "predictions" in self.keep:
            self._rows["predictions"] += [
                {
                    "round": self._round["round"], "key": str(dataset.keys[position]),
                    "group": str(dataset.groups[position]), "label": int(dataset.labels[position]), "logits": logits,
                }
                for position, logits in zip(test, scores.logits.astype(np.float32), strict=True)
            ]  # fmt: skip

    def bought(self, purchase: Purchase, round_: int) -> None:
        """Record the purchase for round `round_`, and the ROIs that the strategy looked at to make it."""
        overlap = purchase.overlap
        for rank, position in enumerate(purchase.positions):
            self._rows["selections"].append(self._selection(round_, rank, position) | {
                "score": float(purchase.scores[rank]), "entropy": float(purchase.entropy[rank]),
                "misalignment": 1.0 - float(overlap.dice[rank]), "intersection": int(overlap.intersection[rank]),
                "cam_area": int(overlap.cam_area[rank]), "roi_area": int(overlap.roi_area[rank]),
                "tied": bool(purchase.tied[rank]),
            })  # fmt: skip
        self._count_query(purchase.unlabelled, purchase.labelled)
        self._queried = purchase.positions[:EXPLAINED]
        self._round["score_s"] = self._seconds()

    def pool(self, purchase: Purchase, round_: int, learner: Learner, tie_order: np.ndarray) -> None:
        """Record for the report what the query for round `round_` could have bought; see `pool_rows`.

        The time counts for no phase, since the next one begins with `begin_round`.
        """
        if "pool" in self.keep and is_recorded(round_):
            self._rows["pool"] += pool_rows(self.dataset, learner, purchase, round_, tie_order)

    def explained(self, learner: Learner, round_: int, *, test: bool = True) -> None:
        """Record the class maps of round `round_`: of the best samples just bought, and of fixed test samples."""
        if "explanations" not in self.keep:
            return
        samples = [(position, "pool") for position in self._queried]
        samples += [(position, "test") for position in self._fixed_test_samples()] if test else []
        class_maps = learner.class_maps(np.array([position for position, _ in samples], dtype=np.int64))
        for i, (position, split) in enumerate(samples):
            height, width = class_maps.maps[i].shape
            self._rows["explanations"].append({
                "round": round_, "key": str(self.dataset.keys[position]), "split": split,
                "predicted": int(class_maps.predicted[i]), "map": class_maps.maps[i].ravel(), "height": height,
                "width": width,
            })  # fmt: skip

    def take_rows(self) -> RunTables:
        """Return the rows that have come since the last call."""
        self._rows["rounds"] = [self._round]
        rows, self._rows = self._rows, {table: [] for table in SCHEMAS}
        return rows

    def _count_query(self, unlabelled: np.ndarray, labelled: np.ndarray) -> None:
        """Count the ROIs that a query has looked at, given the positions of pool and labelled set at that time."""
        if "roi" in self.needs:
            self._looked_at[unlabelled] = True
        if "labelled-roi" in self.needs:
            self._looked_at[labelled] = True

    def _fixed_test_samples(self) -> np.ndarray:
        """Return EXPLAINED test samples, evenly spread over the keys, with ROI if any sample has one."""
        test = self.dataset.test
        with_roi = test[self.dataset.has_roi[test]]
        candidates = with_roi if len(with_roi) else test
        return candidates[np.linspace(0, len(candidates) - 1, min(EXPLAINED, len(candidates))).astype(int)]

    def _seconds(self) -> float:
        """Return the seconds since the last phase ended."""
        last, self._lap = self._lap, perf_counter()
        return self._lap - last

    def _selection(self, round_: int, rank: int, position: int) -> dict[str, Any]:
        """Return a row of `selections` before any score is known."""
        return {
            "round": round_, "rank": rank, "key": str(self.dataset.keys[position]),
            "label": int(self.dataset.labels[position]), "score": NAN, "entropy": NAN, "misalignment": NAN,
            "intersection": -1, "cam_area": -1, "roi_area": -1, "tied": False,
        }  # fmt: skip
