"""Scoring on a Ray cluster: the files of one machine's, also when workers are lost."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]


def files(folder: Path) -> dict[Path, bytes]:
    """Return the content of the files of scores and of the query, by path."""
    paths = [*folder.glob("scores/**/*.parquet"), folder / "query.parquet"]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_scores_are_those_of_one_machine_though_a_worker_is_killed(
    ray_cluster, fresh_query, scored, monkeypatch, tmp_path, capfd
):
    from egal_bench.querying import ray_workers

    class Dying(ray_workers.Scorer):
        def score(self, task, rows):
            if task.number == 1 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os._exit(9)
            return super().score(task, rows)

    monkeypatch.setattr(ray_workers, "Scorer", Dying)
    result = fresh_query(settings={"engine": "ray", "workers": None})
    assert files(result.out) == files(scored)
    assert "its worker was lost" in capfd.readouterr().err
    assert (tmp_path / "killed").exists()


def test_folder_that_a_node_does_not_see_is_refused(tmp_path, scored):
    from types import SimpleNamespace

    from egal_bench.errors import BenchError
    from egal_bench.querying.ray_workers import Scorer
    from egal_bench.querying.workers import read_answer

    scorer = object.__new__(Scorer)
    with pytest.raises(BenchError, match="nowhere: a node of the cluster does not see this folder"):
        read_answer(scorer.score(SimpleNamespace(out=tmp_path / "nowhere"), None))
