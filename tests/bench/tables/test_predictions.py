"""The optional tables: predictions give every metric again, explanations the maps of galleries."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from bench.command_line import egal_bench
from bench.tiny import FLAGS, contents
from egal_bench.models.network import build
from egal_bench.tables.results import load
from egal_shards import ShardSet


def probabilities(rows):
    logits = np.stack(rows.logits.to_list()).astype(np.float64)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def test_predictions_give_the_metrics_of_rounds_again(finished):
    tables = load(finished[0])
    rounds = tables["rounds"].set_index(["dataset", "strategy", "seed", "round"])
    for run, rows in tables["predictions"].groupby(["dataset", "strategy", "seed", "round"]):
        p, labels = probabilities(rows), rows.label.to_numpy()
        expected = {
            "accuracy": metrics.accuracy_score(labels, p.argmax(1)),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, p.argmax(1)),
            "macro_auc": metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro"),
            "macro_f1": metrics.f1_score(labels, p.argmax(1), average="macro"),
            "nll": metrics.log_loss(labels, p),
            "ece": float(multiclass_calibration_error(torch.from_numpy(p), torch.tensor(labels), p.shape[1], 15)),
        }
        for name, value in expected.items():
            assert rounds.loc[run, name] == pytest.approx(value, abs=1e-6), name


def test_predictions_name_every_test_sample_in_every_round(finished):
    out, _ = finished
    index = ShardSet(out / "shards/phantom-brain").index().set_index("key")
    test = index[index.split == "test"]
    for _, rows in load(out)["predictions"].groupby(["strategy", "seed", "round"]):
        assert sorted(rows.key) == sorted(test.index)
        assert (test.loc[rows.key, "group"].to_numpy() == rows.group.to_numpy()).all()
        assert (test.loc[rows.key, "label"].to_numpy() == rows.label.to_numpy()).all()


def test_explanations_are_maps_of_queried_and_fixed_test_samples(finished):
    tables = load(finished[0])
    explanations, selections = tables["explanations"], tables["selections"]
    assert (explanations["map"].map(len) == explanations.height * explanations.width).all()
    fixed = explanations[explanations.split == "test"].groupby(["strategy", "seed", "round"])["key"].agg(tuple)
    assert fixed.nunique() == 1
    queried = explanations[explanations.split == "pool"].merge(
        selections.assign(round=selections["round"] - 1), on=["dataset", "strategy", "seed", "round", "key"]
    )
    assert len(queried) == (explanations.split == "pool").sum() > 0
    assert queried["rank"].max() == 7


def test_optional_tables_change_nothing_of_a_run(finished, tmp_path):
    flags = [*FLAGS, "--keep=none", "--seeds=1", "--strategies=egal", "--out=out", "--workers=1"]
    egal_bench("compare", *flags, cwd=tmp_path, status=0)
    without, kept = contents(tmp_path / "out"), contents(finished[0])
    assert set(without) == {"rounds", "selections"}
    assert set(kept) == {"rounds", "selections", "predictions", "explanations", "pool"}
    for name, rows in without.items():
        same = kept[name].query("strategy == 'egal' and seed == 0").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, same)


def test_the_saved_network_gives_the_predictions_of_the_last_round(tmp_path):
    flags = [*FLAGS, "--save-network", "--seeds=1", "--strategies=random", "--out=out", "--workers=1"]
    egal_bench("compare", *flags, cwd=tmp_path, status=0)
    (file,) = (tmp_path / "out").glob("networks/**/network.safetensors")
    with safe_open(file, "pt") as stored:
        about = json.loads(stored.metadata()["egal_bench"])
    network = build(
        about["backbone"], len(about["classes"]), image_channels=about["channels"], image_size=about["image_size"],
        size=about["size"], seed=1,
    ).eval()  # fmt: skip
    network.load_state_dict(load_file(file))
    predictions = load(tmp_path / "out")["predictions"].query("round == 2").set_index("key").logits
    shards = ShardSet(tmp_path / "out/shards/phantom-brain")
    positions = np.flatnonzero(np.isin(shards.index().key, predictions.index))
    for batch in shards.batches(positions, 64):
        with torch.no_grad():
            logits = network(batch.images).numpy()
        np.testing.assert_allclose(logits, np.stack(predictions.loc[list(batch.keys)].to_list()), atol=1e-5)
