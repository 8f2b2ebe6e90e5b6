"""The example of a strategy in a package of its own: its entry point, its formula, and a comparison with it."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from egal_bench.config import Config
from egal_bench.strategies import Pool, available, find

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "strategy_package"


@pytest.fixture
def installed(tmp_path, monkeypatch) -> list[str]:
    """The folders of the installed example: its module, and the metadata that pip writes from its pyproject.toml."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    groups = project["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("".join(lines))
    folders = [str(metadata.parent), str(PACKAGE)]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    yield folders
    sys.modules.pop("egal_bench_density", None)


def pool_of(features: np.ndarray, logits: np.ndarray, entropy: np.ndarray) -> Pool:
    size = len(features)
    return Pool(
        keys=np.array([f"k{i}" for i in range(size)]), logits=logits, entropy=entropy, labelled_keys=np.array(["a"]),
        labelled_labels=np.array([0]), labelled_groups=np.array(["g"]), groups=np.array([""] * size),
        classes=("x", "y", "z"), round=1, budget=5,
        rng=np.random.default_rng(0), tie_order=np.arange(size), config=Config(), needs=frozenset({"features"}),
        name="density", private={"features": features},
    )  # fmt: skip


def test_the_entry_point_gives_the_strategy_its_name(installed):
    strategy = available()["density"]
    assert strategy.needs == {"features"}
    assert strategy.source == str(PACKAGE / "egal_bench_density.py")
    assert strategy.summary
    assert find("density(beta=3)").name == "density(beta=3)"
    assert find("density(beta=1)").name == "density"


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_it_ranks_by_entropy_times_mean_cosine(installed, beta):
    rng = np.random.default_rng(1)
    features, logits = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
    features[3] = 0.0  # no direction: its cosine with every sample counts as 0
    entropy = rng.random(12)
    expected = []
    for i, sample in enumerate(features):
        cosines = [
            0.0 if i == 3 or j == 3 else sample @ other / (np.linalg.norm(sample) * np.linalg.norm(other))
            for j, other in enumerate(features)
        ]
        expected.append(entropy[i] * ((1 + np.mean(cosines)) / 2) ** beta)
    query = find(f"density(beta={beta})")(pool_of(features, logits, entropy))
    assert query.indices.tolist() == np.argsort(-np.array(expected))[:5].tolist()
    np.testing.assert_allclose(query.scores, np.sort(expected)[::-1][:5], rtol=1e-12)


def test_a_comparison_in_worker_processes_finds_it(installed, egal_bench_here):
    process = egal_bench_here(
        "compare", "phantom(brain,samples=150,size=32)", "--strategies=random,density(beta=3)", "--seeds=1",
        "--backbone=small-cnn", "--init=15", "--budget=10", "--rounds=1", "--steps=2", "--workers=2", "--out=out",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "density(beta=3)" in process.stdout
