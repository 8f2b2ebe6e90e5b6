"""The finetune regime: it learns, repeats itself to the last bit, and looks at what its options say and no more."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from egal_bench import model
from egal_bench.config import Config, resolve
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.finetune import FinetuneLearner
from egal_bench.results import load
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetune") / "set"
    pack(phantom(samples=150, size=32, roi_area=0.08), path, size=32, progress=False)
    return open_dataset(path)


def learner(dataset, steps: int = 30, **options) -> FinetuneLearner:
    network = model.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0)
    settings = Config(**{"steps": steps, "learning_rate": 5e-3, "batch_size": 16} | options)
    return FinetuneLearner(dataset, network, settings, np.random.SeedSequence(0).spawn(4)[3], "cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_fits_what_it_was_shown(dataset):
    made, labelled = learner(dataset, steps=180), dataset.pool[:40]
    before = (made.score(labelled, overlap=False).logits.argmax(1) == dataset.labels[labelled]).mean()
    made.fit(labelled, 0)
    after = (made.score(labelled, overlap=False).logits.argmax(1) == dataset.labels[labelled]).mean()
    assert before < 0.7
    assert after > 0.85


def test_a_round_depends_on_its_labels_and_number_not_on_what_was_fitted_before(dataset):
    fresh, used = learner(dataset), learner(dataset)
    used.fit(dataset.pool[20:60], 0)
    for made in (fresh, used):
        made.fit(dataset.pool[:30], 1)
    scores = [made.score(dataset.test, overlap=True) for made in (fresh, used)]
    np.testing.assert_array_equal(scores[0].logits, scores[1].logits)
    np.testing.assert_array_equal(scores[0].overlap.intersection, scores[1].overlap.intersection)
    used.fit(dataset.pool[:30], 2)
    assert not np.array_equal(used.score(dataset.test, overlap=False).logits, scores[0].logits)


def test_both_ways_to_score_agree_whatever_the_order(dataset):
    made = learner(dataset)
    made.fit(dataset.pool[:30], 0)
    full, cheap = made.score(dataset.test, overlap=True), made.score(dataset.test[::-1], overlap=False)
    np.testing.assert_allclose(full.logits, cheap.logits[::-1], atol=1e-4)
    np.testing.assert_allclose(full.entropy, cheap.entropy[::-1], atol=1e-4)


def test_divergence_is_reported_with_its_remedy(dataset):
    made = learner(dataset)
    with torch.no_grad():
        made.initial["head.weight"].fill_(float("inf"))
    with pytest.raises(BenchError, match="diverged in round 3: lower --learning-rate"):
        made.fit(dataset.pool[:20], 3)


ALL = {"explain_loss": 0.5, "early_stop": 0.2, "warm_start": True, "class_balance": True}


@pytest.mark.parametrize("options", [ALL, *({name: value} for name, value in ALL.items())], ids=lambda o: "+".join(o))
def test_one_seed_gives_the_same_weights_twice_and_every_option_changes_them(dataset, options):
    weights = []
    for chosen in (options, options, {}):
        made = learner(dataset, steps=10, **chosen)
        for round_, count in enumerate((30, 40)):
            made.fit(dataset.pool[:count], round_)
        weights.append(torch.cat([value.float().flatten() for value in made.network.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_with_explanations_moves_the_grad_cam_of_the_training_set_onto_its_rois(dataset):
    labelled, found = dataset.pool[:40], {}
    for alpha in (0.0, 1.0):
        made = learner(dataset, steps=60, explain_loss=alpha)
        made.fit(labelled, 0)
        found[alpha] = misalignment(made, labelled)
    assert found[0.0] > 0.4
    assert found[1.0] < found[0.0] - 0.1


@torch.no_grad()
def misalignment(made: FinetuneLearner, positions: np.ndarray) -> float:
    """Mean of 1 − soft Dice of the true class's Grad-CAM with the ROI, in plain float64."""
    samples = [made.dataset.shards[i] for i in positions]
    maps = made.network.features(torch.from_numpy(np.stack([sample.image for sample in samples]))).double()
    values = []
    for features, sample in zip(maps, samples, strict=True):
        cam = torch.tensordot(made.network.head.weight.double()[sample.label], features, 1).relu()
        cam = F.interpolate(cam[None, None] / cam.max().clamp(min=1e-12), sample.roi.shape, mode="bilinear")[0, 0]
        cam = ((cam - cam.min()) / (cam.max() - cam.min()).clamp(min=1e-12)).numpy()
        values.append(1 - 2 * (cam * sample.roi).sum() / (cam.sum() + sample.roi.sum()))
    return float(np.mean(values))


class Guarded(ShardSet):
    """A shard set that gives away the samples at some positions only, and notes which were asked for."""

    def batches(self, indices, batch_size, device="cpu"):
        assert np.isin(indices, self.allowed).all(), "training asked for a sample outside the labelled set"
        self.asked.append(np.array(indices))
        return super().batches(indices, batch_size, device)


@pytest.mark.parametrize("options", [{"early_stop": 0.25}, ALL])
def test_early_stop_reads_labelled_samples_only_and_trains_on_none_that_it_holds_out(dataset, options):
    labelled = dataset.pool[5:45]
    shards = Guarded(dataset.shards.path)
    shards.allowed, shards.asked = labelled, []
    made = learner(dataclasses.replace(dataset, shards=shards), steps=8, **options)
    made.fit(labelled[:30], 0)
    made.fit(labelled, 1)
    held, trained, held_later, trained_later = shards.asked
    assert np.intersect1d(np.concatenate([trained, trained_later]), np.concatenate([held, held_later])).size == 0
    np.testing.assert_array_equal(np.union1d(trained, held), np.sort(labelled[:30]))
    np.testing.assert_array_equal(np.union1d(trained_later, held_later), np.sort(labelled))
    assert np.isin(held, held_later).all()  # a warm start has never trained on what is held out


def test_early_stop_that_would_hold_out_nothing_is_refused(dataset):
    with pytest.raises(BenchError, match=r"--early-stop 0\.01 holds out none of 5 labels: raise"):
        learner(dataset, early_stop=0.01).fit(dataset.pool[:5], 0)


@pytest.mark.parametrize("warm", [False, True])
def test_a_warm_start_starts_from_the_last_rounds_weights_and_a_retrained_round_does_not(dataset, warm):
    made = learner(dataset, steps=3, warm_start=warm, learning_rate=1e-30)  # which moves no weight
    first = made.network.trunk[0].weight.detach().clone()
    with torch.no_grad():
        made.network.trunk[0].weight.mul_(-2)  # what another seed's rounds may have left
    made.fit(dataset.pool[:20], 0)
    assert torch.equal(made.network.trunk[0].weight, first)
    with torch.no_grad():
        made.network.trunk[0].weight.mul_(3)  # what round 0 learned
    made.fit(dataset.pool[:30], 1)
    assert torch.equal(made.network.trunk[0].weight, 3 * first if warm else first)


def test_fit_tells_whose_rois_it_looked_at(dataset):
    labelled = dataset.pool[:30]
    assert learner(dataset, steps=1).fit(labelled, 0).tolist() == []
    assert learner(dataset, steps=1, explain_loss=0.1).fit(labelled, 0).tolist() == labelled.tolist()
    partly = learner(dataset, steps=1, explain_loss=0.1, early_stop=0.2).fit(labelled, 0)
    assert 20 < len(partly) < 30
    assert np.isin(partly, labelled).all()


@pytest.mark.parametrize("flag", ALL)
def test_an_option_of_training_is_refused_where_nothing_is_trained(flag):
    with pytest.raises(BenchError, match=f"--{flag.replace('_', '-')}: is of --regime finetune"):
        resolve({"regime": "frozen", flag: ALL[flag]})
    assert Config(**{flag: ALL[flag]}).identity() != Config().identity()


def test_flags_reach_training_the_record_and_the_cost(tmp_path):
    flags = [
        "--backbone=small-cnn", "--phantom-samples=120", "--size=32", "--strategies=random,egal", "--seeds=1",
        "--init=15", "--budget=10", "--rounds=1", "--steps=3", "--batch-size=8", "--workers=1", "--out=out", "--json",
        "--precision=float32",
        "--explain-loss=0.25", "--early-stop=0.2", "--warm-start", "--no-class-balance",
    ]  # fmt: skip
    command = [str(Path(sys.executable).with_name("egal-bench")), "compare", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recorded = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert [recorded[name] for name in ALL] == [0.25, 0.2, True, False]
    rounds = load(tmp_path / "out")["rounds"].set_index(["strategy", "round"])
    pool = open_dataset(tmp_path / "out/shards/phantom-brain").pool
    masks = rounds.masks
    assert 10 <= masks["random", 0] == masks["egal", 0] <= 14  # what it trained on, of 15 labels
    assert masks["random", 0] < masks["random", 1] < 25
    # queried from the whole rest of the pool: all but the held-out part of the initial set
    assert masks["egal", 1] == len(pool) - (15 - masks["egal", 0])
    assert json.loads(done.stdout.splitlines()[-1])["strategies"]["random"]["masks"] == masks["random", 1]
