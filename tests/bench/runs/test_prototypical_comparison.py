"""Comparisons with the prototypical head, from flags to the summary."""

import pytest

from bench.tiny import tiny_config
from egal_bench.runs.comparison import compare


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("regime", ["finetune", "frozen"])
def test_author_s_leaks_run_and_are_flagged_in_the_summary(phantom_dataset, tmp_path, regime):
    config = tiny_config(
        phantom_dataset(150).shards.where, strategies=("random", "egal-convex(per-class=true)"), regime=regime,
        head="prototypical",
        prototypes="last-episode", epochs=1, episodes=2, rounds=1, out=tmp_path / "out",
    )  # fmt: skip
    rounds = compare(config).rounds
    assert sorted(rounds.strategy.unique()) == ["egal-convex(per-class=true)", "random"]
    assert rounds[["accuracy", "nll", "macro_auc"]].notna().all(axis=None)
    summary = (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")
    assert "oracle: egal-convex(per-class=true) reads labels of the pool" in summary
    assert "Flagged like an oracle: with --prototypes last-episode" in " ".join(summary.split())
