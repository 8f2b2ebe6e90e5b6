"""The finetune regime: it learns, repeats itself to the last bit, and looks at what its options say and no more."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch.nn import functional as F

from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.learners.finetune import FinetuneLearner
from egal_bench.learners.learner import DRAWS
from egal_shards import ShardSet

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"explain_loss": 0.5, "early_stop": 0.2, "warm_start": True, "class_balance": True}


@pytest.fixture(scope="module")
def dataset(phantom_dataset) -> Dataset:
    return phantom_dataset(150)


def learner(dataset: Dataset, steps: int = 30, **options) -> FinetuneLearner:
    settings = Config(**{"steps": steps, "learning_rate": 5e-3, "batch_size": 16} | options)
    return FinetuneLearner(dataset, small_cnn(), settings, np.random.SeedSequence(0).spawn(4)[3], "cpu")


def accuracy(learner: FinetuneLearner, positions: np.ndarray) -> float:
    predicted = learner.score(positions, set()).logits.argmax(1)
    return float((predicted == learner.dataset.labels[positions]).mean())


def test_it_fits_the_samples_it_was_shown(dataset):
    untrained, trained, labelled = learner(dataset), learner(dataset, steps=180), dataset.pool[:40]
    trained.fit(labelled, 0)
    assert accuracy(untrained, labelled) < 0.7
    assert accuracy(trained, labelled) > 0.85


def test_round_depends_on_its_labels_and_number_only(dataset):
    fresh, used = learner(dataset), learner(dataset)
    used.fit(dataset.pool[20:60], 0)
    for either in (fresh, used):
        either.fit(dataset.pool[:30], 1)
    scores = [either.score(dataset.test, {"roi"}) for either in (fresh, used)]
    np.testing.assert_array_equal(scores[0].logits, scores[1].logits)
    np.testing.assert_array_equal(scores[0].overlap.intersection, scores[1].overlap.intersection)
    used.fit(dataset.pool[:30], 2)
    assert not np.array_equal(used.score(dataset.test, set()).logits, scores[0].logits)


def test_scores_are_those_of_the_network_as_it_is_now(dataset):
    trained, images = learner(dataset, warm_start=True), torch.stack(
        [torch.from_numpy(dataset.shards[int(position)].image.copy()) for position in dataset.test]
    )  # fmt: skip

    def check() -> None:
        with torch.no_grad():
            expected = trained.network(images)
        np.testing.assert_allclose(trained.score(dataset.test, set()).logits, expected.numpy(), atol=1e-4)

    for round_ in (0, 1):
        trained.fit(dataset.pool[: 20 + 20 * round_], round_)
        check()
    other = learner(dataset, warm_start=True)
    other.fit(dataset.pool[40:60], 0)
    trained.restore(other.state())
    check()


def test_scores_with_and_without_roi_agree_in_any_order(dataset):
    fitted = learner(dataset)
    fitted.fit(dataset.pool[:30], 0)
    full, plain = fitted.score(dataset.test, {"roi"}), fitted.score(dataset.test[::-1], set())
    np.testing.assert_allclose(full.logits, plain.logits[::-1], atol=1e-4)
    np.testing.assert_allclose(full.entropy, plain.entropy[::-1], atol=1e-4)


def test_divergence_is_reported_with_its_remedy(dataset):
    diverging = learner(dataset)
    with torch.no_grad():
        diverging.initial["head.weight"].fill_(float("inf"))
    with pytest.raises(BenchError, match="diverged in round 3: lower --learning-rate"):
        diverging.fit(dataset.pool[:20], 3)


@pytest.mark.parametrize("options", [OPTIONS, *({name: OPTIONS[name]} for name in OPTIONS)], ids="+".join)
def test_options_change_the_weights_and_repeat_them_to_the_bit(dataset, options):
    weights = []
    for settings in (options, options, {}):
        fitted = learner(dataset, steps=10, **settings)
        for round_, count in enumerate((30, 40)):
            fitted.fit(dataset.pool[:count], round_)
        weights.append(torch.cat([value.float().flatten() for value in fitted.network.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_explanation_loss_moves_the_grad_cam_onto_the_rois(dataset):
    labelled, misaligned = dataset.pool[:40], {}
    for weight in (0.0, 1.0):
        fitted = learner(dataset, steps=60, explain_loss=weight)
        fitted.fit(labelled, 0)
        misaligned[weight] = misalignment(fitted, labelled)
    assert misaligned[0.0] > 0.4
    assert misaligned[1.0] < misaligned[0.0] - 0.1


@torch.no_grad()
def misalignment(fitted: FinetuneLearner, positions: np.ndarray) -> float:
    """Return the mean of 1 − soft Dice of the true class's Grad-CAM with the ROI, in plain float64."""
    samples = [fitted.dataset.shards[i] for i in positions]
    maps = fitted.network.features(torch.from_numpy(np.stack([sample.image for sample in samples]))).double()
    values = []
    for features, sample in zip(maps, samples, strict=True):
        cam = torch.tensordot(fitted.network.head.weight.double()[sample.label], features, 1).relu()
        cam = F.interpolate(cam[None, None] / cam.max().clamp(min=1e-12), sample.roi.shape, mode="bilinear")[0, 0]
        cam = ((cam - cam.min()) / (cam.max() - cam.min()).clamp(min=1e-12)).numpy()
        values.append(1 - 2 * (cam * sample.roi).sum() / (cam.sum() + sample.roi.sum()))
    return float(np.mean(values))


class Guarded(ShardSet):
    """A shard set that gives away only the samples at `allowed`, and notes in `requests` which were read."""

    allowed: np.ndarray
    requests: list[np.ndarray]

    def batches(self, indices, batch_size, device="cpu"):
        assert np.isin(indices, self.allowed).all(), "training read a sample outside the labelled set"
        self.requests.append(np.array(indices))
        return super().batches(indices, batch_size, device)


@pytest.mark.parametrize("options", [{"early_stop": 0.25}, OPTIONS], ids=["early_stop", "all"])
def test_held_out_samples_are_labelled_and_never_trained_on(dataset, options):
    labelled, shards = dataset.pool[5:45], Guarded(dataset.shards.path)
    shards.allowed, shards.requests = labelled, []
    guarded = learner(dataclasses.replace(dataset, shards=shards), steps=8, **options)
    guarded.fit(labelled[:30], 0)
    guarded.fit(labelled, 1)
    held, trained, held_later, trained_later = shards.requests
    assert np.intersect1d(np.concatenate([trained, trained_later]), np.concatenate([held, held_later])).size == 0
    np.testing.assert_array_equal(np.union1d(trained, held), np.sort(labelled[:30]))
    np.testing.assert_array_equal(np.union1d(trained_later, held_later), np.sort(labelled))
    assert np.isin(held, held_later).all()  # a warm start has never trained on a held-out sample


def test_early_stop_that_would_hold_out_nothing_is_refused(dataset):
    with pytest.raises(BenchError, match=r"--early-stop 0\.01 holds out none of 5 labels: raise"):
        learner(dataset, early_stop=0.01).fit(dataset.pool[:5], 0)


@pytest.mark.parametrize("warm", [False, True])
def test_only_a_warm_start_begins_with_the_last_rounds_weights(dataset, warm):
    fitted = learner(dataset, steps=3, warm_start=warm, learning_rate=1e-30)  # so small that no weight moves
    first = fitted.network.trunk[0].weight.detach().clone()
    with torch.no_grad():
        fitted.network.trunk[0].weight.mul_(-2)  # what an earlier run may have left
    fitted.fit(dataset.pool[:20], 0)
    assert torch.equal(fitted.network.trunk[0].weight, first)
    with torch.no_grad():
        fitted.network.trunk[0].weight.mul_(3)  # what round 0 may have learned
    fitted.fit(dataset.pool[:30], 1)
    assert torch.equal(fitted.network.trunk[0].weight, 3 * first if warm else first)


def test_fit_returns_the_samples_whose_rois_it_used(dataset):
    labelled = dataset.pool[:30]
    assert learner(dataset, steps=1).fit(labelled, 0).rois.tolist() == []
    assert learner(dataset, steps=1, explain_loss=0.1).fit(labelled, 0).rois.tolist() == labelled.tolist()
    partly = learner(dataset, steps=1, explain_loss=0.1, early_stop=0.2).fit(labelled, 0).rois
    assert 20 < len(partly) < 30
    assert np.isin(partly, labelled).all()


def test_fit_measures_plain_loss_and_accuracy_after_the_last_step(dataset):
    labelled, labels = dataset.pool[:70], dataset.labels[dataset.pool[:70]]
    trained = learner(dataset, steps=7, explain_loss=1.0, class_balance=True)
    fit = trained.fit(labelled, 0)
    logits = trained.score(labelled, set()).logits.astype(np.float64)
    assert fit.loss == pytest.approx(log_loss(labels, softmax(logits, axis=1)), rel=1e-4)
    assert fit.accuracy == np.mean(logits.argmax(1) == labels)
    assert fit.steps == 7


def test_maps_are_those_of_the_network_with_the_class_map_of_the_prediction(dataset):
    fitted, positions = learner(dataset), dataset.pool[::-1][:40]
    batches = list(fitted.maps(positions))
    assert [len(batch.maps) for batch in batches] == [32, 8]
    maps, class_maps = (np.concatenate([getattr(b, name) for b in batches]) for name in ("maps", "class_maps"))
    images = torch.from_numpy(np.stack([dataset.shards[int(i)].image for i in positions]))
    with torch.no_grad():
        want = fitted.network.features(images)
    np.testing.assert_allclose(maps, want.numpy(), atol=1e-5)
    np.testing.assert_allclose(class_maps, fitted.class_maps(positions).maps, rtol=1e-5, atol=1e-6)


def test_draws_are_the_head_behind_one_dropout_mask_each(dataset):
    fitted = learner(dataset, head_dropout=0.4)
    features = fitted.score(dataset.test, {"features"}).features
    draws = fitted.draws(features, np.random.default_rng(3))
    masks = (np.random.default_rng(3).random((DRAWS, features.shape[1]), np.float32) >= 0.4) / 0.6
    head = fitted.network.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    np.testing.assert_allclose(draws, np.einsum("nc,tc,kc->ntk", features, masks, weight) + bias, atol=1e-4)


def test_rois_are_those_of_the_shards(dataset):
    positions = np.r_[dataset.test[:5], dataset.pool[::-1][:70]]
    want = np.stack([dataset.shards[int(i)].roi for i in positions])
    np.testing.assert_array_equal(dataset.rois(positions), want)
