"""Training in episodes: what is drawn, what is minimised, and what the prototypes of evaluation are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.densenet import DenseNet
from torch.nn import functional as F

from bench.learners.squares import squares
from egal_bench.config import Config, resolve
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.learners import episodes
from egal_bench.learners.augmentation import Samples
from egal_bench.learners.episodes import Episode, drawn, query_loss, train_in_episodes
from egal_bench.learners.finetune import FinetuneLearner
from egal_bench.models.heads import UNSEEN, PrototypicalHead
from egal_bench.models.last_norm import taken_from
from egal_bench.models.network import Network, build
from egal_kernels import PackedRoi, pack_roi
from egal_kernels.shared.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {"head": "prototypical", "epochs": 2, "episodes": 4, "learning_rate": 3e-3, "weight_decay": 1e-5}


def network(seed: int = 0) -> Network:
    return build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=seed, head="prototypical")


def samples(count: int, explained: bool = False) -> Samples:
    images, labels, masks = squares(count)
    return Samples(images, labels, pack_roi(masks) if explained else None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=30), shots=st.integers(1, 4),
    queries=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_episode_has_every_labelled_class_and_repeats_only_where_it_must(labels, shots, queries, seed):
    labels = np.array(labels)
    episode = drawn(labels, shots, queries, np.random.default_rng(seed))
    present = np.unique(labels)
    assert episode.shots.shape == (len(present), shots)
    assert episode.queries.shape == (len(present), queries)
    for row, label in enumerate(present):
        members = np.concatenate([episode.shots[row], episode.queries[row]])
        assert (labels[members] == label).all()
        if (labels == label).sum() >= shots + queries:
            assert len(np.unique(members)) == shots + queries


def test_query_loss_is_that_of_distances_to_the_means_of_the_shots():
    torch.manual_seed(0)
    head = PrototypicalHead(5, 4).double()
    episode = Episode(np.array([[0, 1, 2], [3, 4, 5]]), np.array([[6, 7], [8, 9]]))
    pooled = torch.randn(10, 5).double()
    loss, prototypes = query_loss(head, pooled, episode)
    z = F.normalize(pooled @ head.projection.weight.T + head.projection.bias, dim=1)
    means = torch.stack([z[:3].mean(0), z[3:6].mean(0)])
    log_p = -torch.stack([(z[6:] - mean).square().sum(1).sqrt() for mean in means], 1)
    expected = F.nll_loss(log_p.log_softmax(1), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(prototypes, means[[0, 0, 1, 1]])


def test_gradient_flows_through_the_prototypes():
    torch.manual_seed(0)
    head = PrototypicalHead(5, 2).double()
    pooled = torch.randn(4, 5).double().requires_grad_()
    loss, _ = query_loss(head, pooled, Episode(np.array([[0], [1]]), np.array([[2], [3]])))
    loss.backward()
    assert (pooled.grad.abs().sum(1) > 0).all()


def test_episodes_fit_the_labelled_set():
    trained, batch = network(), samples(60)
    outcome = train_in_episodes(trained, batch, Config(**RECIPE | {"epochs": 3, "episodes": 20}), rng())
    assert not trained.training
    with torch.no_grad():
        assert (trained(batch.images).argmax(1) == batch.labels).float().mean() > 0.9
    assert outcome.steps == 60


@pytest.mark.parametrize("explain_loss", [0.0, 0.5])
def test_step_follows_the_gradient_of_the_stated_loss(explain_loss):
    """One episode: Adam's first step moves every weight by the rate, against the sign of the loss's gradient."""
    config = Config(**RECIPE | {"epochs": 1, "episodes": 1, "weight_decay": 0, "explain_loss": explain_loss})
    batch, trained, reference = samples(30, explained=explain_loss > 0), network(), network()
    train_in_episodes(trained, batch, config, rng())
    episode = drawn(batch.labels.numpy(), config.shots, config.queries, rng())
    rows = np.concatenate([episode.shots.ravel(), episode.queries.ravel()])
    maps = reference.train().features(batch.images[rows])
    z = reference.head.embed(maps.mean((2, 3)))
    means = z[:9].reshape(3, 3, -1).mean(1)
    true = torch.arange(3).repeat_interleave(3)
    loss = F.cross_entropy(-torch.stack([(z[9:] - mean).norm(dim=1) for mean in means], 1), true)
    if explain_loss:
        alpha = reference.head.alpha_towards(maps[9:].mean((2, 3)), means[true])
        low = torch.einsum("bc,bchw->bhw", alpha, maps[9:]) / (maps.shape[2] * maps.shape[3])
        cams = RECIPES["grad-cam"](low, (32, 32))
        masks = batch.roi[torch.from_numpy(rows[9:])].unpack().float()
        dice = 2 * (cams * masks).sum((1, 2)) / (cams.sum((1, 2)) + masks.sum((1, 2)))
        loss = loss + explain_loss * (1 - dice)[masks.any(2).any(1)].mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 10.0)
    for (name, after), before in zip(trained.named_parameters(), network().parameters(), strict=True):
        gradient = dict(reference.named_parameters())[name].grad
        clear = gradient.abs() > 1e-5
        moved = (after - before).detach()
        torch.testing.assert_close(moved[clear], -config.learning_rate * gradient[clear].sign(), rtol=0.02, atol=1e-6)


def test_same_generator_gives_the_same_weights_and_another_other_ones():
    states = []
    for seed in (0, 0, 1):
        trained = network()
        train_in_episodes(trained, samples(30), Config(**RECIPE), rng(seed))
        states.append(torch.cat([value.double().flatten() for value in trained.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_prototypes_are_means_of_all_samples_or_of_the_last_shots():
    batch = samples(30)
    for choice in ("all", "last-episode"):
        trained = network()
        outcome = train_in_episodes(trained, batch, Config(**RECIPE, prototypes=choice), rng())
        rows = np.arange(30) if choice == "all" else outcome.last.shots.ravel()
        with torch.no_grad():
            z = trained.head.embed(trained.features(batch.images[rows]).mean((2, 3)))
        for label in range(3):
            expected = z[batch.labels[rows] == label].mean(0)
            torch.testing.assert_close(trained.head.prototypes[label], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[0] * 5, [0, 2], [0, 0, 0, 0, 0, 0, 0, 1]])
def test_few_labels_and_absent_classes_train_without_nan(labels):
    batch, trained = samples(len(labels), explained=True), network()
    batch = Samples(batch.images, torch.tensor(labels), batch.roi)
    outcome = train_in_episodes(trained, batch, Config(**RECIPE, explain_loss=0.1), rng())
    assert np.isfinite(outcome.loss)
    with torch.no_grad():
        scores = trained(batch.images)
    absent = sorted(set(range(3)) - set(labels))
    assert scores.isfinite().all()
    assert (scores[:, absent] == UNSEEN).all()


def test_rate_is_halved_where_the_loss_no_longer_falls(monkeypatch):
    rates = []
    adam = torch.optim.Adam

    class Recorded(adam):
        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(episodes.torch.optim, "Adam", Recorded)
    weight = torch.nn.Parameter(torch.zeros(1))
    config = Config(**RECIPE | {"epochs": 9, "episodes": 1, "learning_rate": 0.1})
    episodes.run_episodes(lambda episode: weight.sum() * 0 + 1, [weight], np.zeros(6, int), config, rng())
    assert rates == [0.1] * 5 + [0.05] * 4


@pytest.fixture(scope="module")
def dataset(phantom_dataset) -> Dataset:
    return phantom_dataset(150)


def learner(dataset: Dataset, **options) -> FinetuneLearner:
    return FinetuneLearner(dataset, network(), Config(**RECIPE | options), np.random.SeedSequence(0), "cpu")


def test_learner_reports_its_fit_and_counts_only_rois_of_queries(dataset):
    labelled = dataset.pool[:60]
    plain, guided = learner(dataset), learner(dataset, explain_loss=0.1, epochs=1, episodes=2)
    fit = plain.fit(labelled, 0)
    assert (fit.steps, len(fit.rois)) == (8, 0)
    scores = plain.score(labelled, {"roi"})
    assert fit.accuracy == (scores.logits.argmax(1) == dataset.labels[labelled]).mean()
    rois = guided.fit(labelled, 0).rois
    assert 0 < len(rois) <= 2 * 9
    assert set(rois) <= set(labelled)


def test_layer_before_the_last_norm_is_trained_and_scored(dataset):
    """A tiny DenseNet, explained at its last convolution: the norm keeps its statistics, and D is that of its maps."""
    torch.manual_seed(0)
    trunk = DenseNet(growth_rate=4, block_config=(1, 2), num_classes=0, bn_size=2)
    trunk.forward = trunk.forward_features
    norm = taken_from(trunk, "denseblock2.denselayer2.conv2", "tiny")
    head = PrototypicalHead(norm.weight.numel(), 3, norm)
    built = Network(trunk, head, [0.5] * 3, [0.25] * 3, None)
    config = Config(**RECIPE, explain_loss=0.5, explain_convention="author", overlap="soft")
    trained = FinetuneLearner(dataset, built, config, np.random.SeedSequence(0), "cpu")
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    trained.fit(dataset.pool[:30], 0)
    after = norm.state_dict()
    assert torch.equal(before["running_mean"], after["running_mean"])
    assert torch.equal(before["running_var"], after["running_var"])
    assert not torch.equal(before["weight"], after["weight"])

    scores = trained.score(dataset.test, {"roi"})
    (batch,) = dataset.shards.batches(dataset.test, len(dataset.test), "cpu")
    with torch.no_grad():
        maps = built.features(batch.images)
        pooled = maps.mean((2, 3))
        np.testing.assert_allclose(head(pooled), scores.logits, atol=1e-4)
        alpha = head.alpha(pooled, head(pooled).argmax(1))[:, -4:]
        cams = RECIPES["author"](torch.einsum("bc,bchw->bhw", alpha / maps[0, 0].numel(), maps[:, -4:]), (32, 32))
        masks = PackedRoi(batch.roi, 32).unpack().float()
    dice = 2 * (cams * masks).sum((1, 2)) / (cams.sum((1, 2)) + masks.sum((1, 2)))
    np.testing.assert_allclose(scores.overlap.dice, dice, atol=1e-4)


def test_warm_start_goes_on_from_stored_prototypes_and_weights(dataset):
    whole, resumed = learner(dataset, warm_start=True), learner(dataset, warm_start=True)
    whole.fit(dataset.pool[:20], 0)
    resumed.restore(whole.state())
    np.testing.assert_array_equal(whole.score(dataset.test, set()).logits, resumed.score(dataset.test, set()).logits)
    for either in (whole, resumed):
        either.fit(dataset.pool[:30], 1)
    np.testing.assert_array_equal(whole.score(dataset.test, set()).logits, resumed.score(dataset.test, set()).logits)


def test_saved_network_scores_like_the_one_that_was_trained(dataset, tmp_path):
    from egal_bench.models.saving import load_network

    trained = learner(dataset, backbone="small-cnn")
    trained.fit(dataset.pool[:20], 0)
    file = tmp_path / "network.safetensors"
    file.write_bytes(trained.network_file()["network.safetensors"])
    loaded = load_network(file).network
    images = torch.cat([batch.images for batch in dataset.shards.batches(dataset.test[:4], 4, "cpu")])
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.network(images))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prototypes": "last-episode"}, "--prototypes: belongs to --head prototypical"),
        ({"explain_layer": "denseblock4.denselayer16.conv2"}, "--explain-layer: belongs to --head prototypical"),
        ({"head": "prototypical", "early_stop": 0.2}, "--head: .*cannot be combined with --early-stop"),
        ({"head": "prototypical", "class_balance": True}, "--head: .*cannot be combined with --class-balance"),
        ({"head": "prototypical", "shots": 0}, "--shots: .*greater than or equal to 1"),
        ({"head": "prototype"}, "--head: .*'linear' or 'prototypical'"),
    ],
)
def test_options_that_do_not_fit_the_head_are_refused(flags, message):
    with pytest.raises(BenchError, match=message):
        resolve(flags)
