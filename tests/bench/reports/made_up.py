"""Results folders from made-up numbers: no network is trained, so that a folder takes milliseconds."""

from pathlib import Path

import numpy as np

from egal_bench.tables.folder import ResultsFolder, RunName

CLASSES = 3


def write_results(
    path: Path, *, datasets=("cheng",), strategies=("random", "egal", "entropy"), seeds=range(5), rounds=3, gains=None,
    test_size=30, roi=True, predictions=True, constant=False, settings=None, missing=(), keys="sample {}", noise=0.01,
    shards=None, pool=True,
) -> Path:  # fmt: skip
    """Write a results folder whose accuracies are 0.6 + 0.02 · round + the gain of the strategy + noise; return it.

    Args:
        gains: {strategy: gain in accuracy after the initial set}.
        settings: overrides of the settings in the record of every run.
        missing: (dataset, strategy, seed) of runs to leave out.
        keys: template of the samples' keys.
        pool: whether the runs have kept this table.
        shards: a ShardSet, whose samples get explanations in the last rounds.
    """
    folder = ResultsFolder(path)
    for dataset in datasets:
        for seed in seeds:
            for strategy in strategies:
                run = RunName(dataset, strategy, seed)
                if tuple(run) in missing:
                    continue
                made = _Run(run, rounds, (gains or {}).get(strategy, 0.0), test_size, roi, keys, noise)
                tables = {"rounds": made.rounds(constant), "selections": made.selections()}
                if predictions:
                    tables["predictions"] = made.predictions()
                if pool:
                    tables["pool"] = made.pool(tables["selections"])
                record = _record(dataset, strategy, rounds, settings or {})
                if shards is not None:
                    record["shards"], record["settings"]["data"] = str(shards.path), shards.manifest.sha256
                    tables["explanations"] = made.explanations(shards, tables["selections"])
                folder.write(run, tables, record)
    return path


def _record(dataset, strategy, rounds, settings):
    shared = {
        "init": 20, "budget": 10, "backbone": "small-cnn", "precision": "float32", "device": "cpu", "threads": 1,
        "explain_loss": 0.0, "data": f"digest of {dataset}", "numbers": 2, "strategy": strategy, "source": "",
    }  # fmt: skip
    return {
        "config_hash": f"{strategy} {sorted(settings.items())}", "settings": shared | settings, "last_round": rounds,
        "shards": f"shards/{dataset}", "hardware": {"device": "a CPU, 2 cores", "versions": {"torch": "2.9"}},
    }  # fmt: skip


class _Run:
    def __init__(self, run, rounds, gain, test_size, roi, keys, noise):
        self.run, self.last, self.gain, self.size, self.roi, self.keys = run, rounds, gain, test_size, roi, keys
        self.rng = np.random.default_rng([run.seed, *map(ord, run.strategy[:40])])
        self.shared = np.random.default_rng(run.seed)  # what all strategies of a seed have in common
        self.noise = noise

    def rounds(self, constant):
        reads_rois = self.roi and self.run.strategy.partition("(")[0] in ("egal", "misalignment")
        rows, start = [], 0.6 + 0.02 * self.shared.normal()
        for r in range(self.last + 1):
            accuracy = 0.5 if constant else start + 0.02 * r + (r > 0) * (self.gain + self.noise * self.rng.normal())
            metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_auc", "macro_f1"), float(accuracy))
            rows.append(
                {"round": r, "labels": 20 + 10 * r, "masks": 40 * r * reads_rois}
                | metrics
                | {
                    "nll": 1.5 - float(accuracy), "ece": 0.1, "test_dice": 0.3 if self.roi else float("nan"),
                    "test_size": self.size, "train_loss": 0.02, "train_accuracy": 1.0, "steps": 100,
                    "train_s": 2.0, "score_s": 1.0 * (r < self.last), "eval_s": 0.5,
                    "pool_size": 500 - 10 * r, "config_hash": "x",
                }
            )  # fmt: skip
        return rows

    def selections(self):
        rows = []
        for r in range(self.last + 1):
            rng = self.shared if r == 0 else self.rng
            chosen = np.random.default_rng(self.run.seed).permutation(500)[:20] if r == 0 else rng.permutation(500)[:10]
            for rank, i in enumerate(chosen):
                scored = r > 0
                area = int(5 + i % 40) if self.roi and scored else (0 if scored else -1)
                hit = int(i % 3)
                rows.append({
                    "round": r, "rank": rank, "key": self.keys.format(i + 1000 * r), "label": int(i % CLASSES),
                    "score": 0.5 if scored else float("nan"), "entropy": 0.5 if scored else float("nan"),
                    "misalignment": 1 - 2 * hit / (area + 10) if scored else float("nan"),
                    "intersection": hit if scored else -1, "cam_area": 10 if scored else -1, "roi_area": area,
                    "tied": bool(scored and self.run.strategy == "misalignment"),
                })  # fmt: skip
        return rows

    def pool(self, selections):
        """Return 60 samples per query 1, 2, 4, …, those that `selections` names as bought among them."""
        rows = []
        for r in (r for r in range(1, self.last + 1) if r & (r - 1) == 0):
            bought = [row["key"] for row in selections if row["round"] == r]
            for i, key in enumerate([*bought, *(self.keys.format(f"other {i}") for i in range(50))]):
                hit, area = i % 4, 5 + i if self.roi and i % 5 else 0
                d = 1 - hit / (area + 1) if area else float("nan")
                guess = d + 0.1 * self.rng.normal() if self.run.strategy == "egal-predicted" else float("nan")
                rows.append({
                    "round": r, "key": key, "bought": i < len(bought), "entropy": self.rng.random(), "misalignment": d,
                    "predicted_misalignment": guess, "roi_area": area, "distance": 2.0 + (i < len(bought)),
                })  # fmt: skip
        return rows

    def predictions(self):
        labels = np.arange(self.size) % CLASSES
        return [
            {
                "round": r, "key": self.keys.format(f"test {i:03}"), "group": f"patient {i // 2}",
                "label": int(labels[i]),
                "logits": (self.rng.normal(size=CLASSES) + 1.5 * np.eye(CLASSES)[labels[i]]).astype(np.float32),
            }
            for r in range(self.last + 1)
            for i in range(self.size)
        ]  # fmt: skip

    def explanations(self, shards, selections):
        """Return maps of the last purchases, which are renamed to samples of the shards, and of test samples."""
        index, rows = shards.index(), []
        pool, test = (index.key[index.split == split].tolist() for split in ("pool", "test"))
        last = [row for row in selections if row["round"] == self.last]
        for row, key in zip(last, pool, strict=False):
            row["key"] = key
        for split, keys, round_ in (
            ("pool", [row["key"] for row in last[:8]], self.last - 1),
            ("test", test[:8], self.last),
        ):
            rows += [
                {
                    "round": round_, "key": key, "split": split, "predicted": 0, "height": 4, "width": 4,
                    "map": self.rng.random(16).astype(np.float32),
                }
                for key in keys
            ]  # fmt: skip
        return rows
