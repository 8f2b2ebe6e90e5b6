"""The frozen regime with a prototypical head: it learns, repeats itself, and explains as its formulas say."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from egal_bench.config import Config, resolve
from egal_bench.errors import BenchError
from egal_bench.learners.frozen_episodes import FrozenEpisodesLearner
from egal_bench.models import network as networks
from egal_bench.models.heads import EMBEDDING
from egal_bench.scoring.features import extract, open_features
from egal_kernels import PackedRoi
from egal_kernels.shared.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {"regime": "frozen", "head": "prototypical", "epochs": 2, "episodes": 15, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    return phantom_dataset(150)


@pytest.fixture(scope="module")
def features(dataset, tmp_path_factory):
    network = networks.of_config(Config(backbone="small-cnn"), dataset, 0)
    folder = tmp_path_factory.mktemp("features") / "small"
    extract(dataset, network, folder, "cpu")
    return open_features(folder)


def learner(dataset, features, seed=0, **options):
    streams = dict(zip(("model", "loader"), np.random.SeedSequence(seed).spawn(2), strict=True))
    return FrozenEpisodesLearner(dataset, features, Config(**RECIPE | options), streams)


def test_it_fits_the_labelled_set_better_than_chance(dataset, features):
    fit = learner(dataset, features, epochs=4, episodes=30).fit(dataset.pool[:45], 0)
    assert fit.accuracy > 0.6
    assert (fit.steps, len(fit.rois)) == (120, 0)


def test_round_depends_on_seed_labels_and_number_only(dataset, features):
    fresh, used, other = (learner(dataset, features, seed) for seed in (0, 0, 1))
    used.fit(dataset.pool[20:60], 0)
    logits = []
    for either in (fresh, used, other):
        fit = either.fit(dataset.pool[:30], 1)
        logits.append(either.score(dataset.test, set()).logits)
        scores = either.score(dataset.pool[:30], set()).logits
        assert fit.accuracy == pytest.approx((scores.argmax(1) == dataset.labels[dataset.pool[:30]]).mean())
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


def test_scores_are_distances_to_class_means_of_all_labelled(dataset, features):
    fitted, labelled = learner(dataset, features), dataset.pool[:30]
    fitted.fit(labelled, 0)
    scores = fitted.score(dataset.test, {"roi"})
    projection = fitted.head.projection
    with torch.no_grad():
        z = F.normalize(projection(torch.from_numpy(np.array(features.pooled))), dim=1).double()
        means = torch.stack([z[labelled][dataset.labels[labelled] == k].mean(0) for k in range(dataset.classes)])
        expected = -torch.stack([(z[dataset.test] - mean).norm(dim=1) for mean in means], 1)
        np.testing.assert_allclose(scores.logits, expected, atol=2e-3)  # the maps are float16
        np.testing.assert_allclose(fitted.score(dataset.test, set()).logits, expected, atol=1e-5)
        maps = torch.from_numpy(np.array(features.maps[dataset.test])).float()
        alpha = fitted.head.alpha(maps.mean((2, 3)), torch.from_numpy(scores.logits).argmax(1))
        low = torch.einsum("bc,bchw->bhw", alpha / maps[0, 0].numel(), maps)
        cams = RECIPES["grad-cam"](low, (32, 32))
        masks = PackedRoi(torch.from_numpy(np.array(features.roi[dataset.test])), 32).unpack()
    covered = ((cams >= 0.5) & masks).sum((1, 2)).numpy()
    assert (np.abs(covered - scores.overlap.intersection) <= 1).all()
    class_maps = fitted.class_maps(dataset.test)
    np.testing.assert_allclose(class_maps.maps, low, rtol=1e-3, atol=1e-4)
    assert z.shape[1] == EMBEDDING


def test_draws_are_prototypes_of_bootstrap_resamples(dataset, features):
    fitted, labelled = learner(dataset, features), dataset.pool[:30]
    fitted.fit(labelled, 0)
    pooled = features.pooled[dataset.test]
    draws = fitted.draws(pooled, np.random.default_rng(3))
    rows = np.random.default_rng(3).integers(0, 30, 30)
    with torch.no_grad():
        z = fitted.head.embed(torch.from_numpy(np.array(features.pooled)))
        resample = labelled[rows]
        for k in np.unique(dataset.labels[resample]):
            mean = z[resample[dataset.labels[resample] == k]].mean(0)
            np.testing.assert_allclose(draws[:, 0, k], -(z[dataset.test] - mean).norm(dim=1), atol=1e-5)
    assert draws.std(axis=1).max() > 0


def test_saved_network_scores_like_the_learner(dataset, features, tmp_path):
    from egal_bench.models.saving import load_network

    fitted = learner(dataset, features, backbone="small-cnn")
    fitted.fit(dataset.pool[:30], 0)
    file = tmp_path / "network.safetensors"
    file.write_bytes(fitted.network_file()["network.safetensors"])
    (batch,) = dataset.shards.batches(dataset.test[:8], 8, "cpu")
    with torch.no_grad():
        logits = load_network(file).network(batch.images)
    np.testing.assert_allclose(logits, fitted.score(dataset.test[:8], set()).logits, atol=5e-3)


def test_divergence_is_reported_with_its_remedy(dataset, features):
    diverging = learner(dataset, features)
    diverging.scale = diverging.scale * 0
    with np.errstate(all="ignore"), pytest.raises(BenchError, match="diverged in round 2: lower --learning-rate"):
        diverging.fit(dataset.pool[:30], 2)


def test_explained_layer_and_loss_belong_to_finetune():
    for name, value in {"explain_layer": "denseblock4.denselayer16.conv2", "explain_loss": 0.1}.items():
        with pytest.raises(BenchError, match="belongs to --regime finetune"):
            resolve(RECIPE | {name: value})
