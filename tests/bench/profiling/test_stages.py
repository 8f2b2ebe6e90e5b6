"""The stages of a pool pass: each does what its name says, on the same samples, and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from egal_bench.profiling import stages as module
from egal_bench.profiling.stages import MEANING
from egal_bench.scoring import pool_pass
from egal_bench.scoring.pool_pass import score


def test_read_gives_the_bytes_of_each_sample_in_the_shards(by_name, dataset, positions):
    index = pd.read_parquet(Path(dataset.shards.where) / "index.parquet").iloc[positions]
    spans = by_name["read"].run()
    assert by_name["read"].bytes == sum(map(len, spans))
    for span, key in zip(spans, index["key"], strict=True):
        assert f"{key}.image.npy".encode() in span[:512]  # the tar header of its first member


def test_decode_reads_no_file(by_name, monkeypatch):
    monkeypatch.setattr(module.os, "pread", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
    by_name["decode"].run()


def test_decode_checks_what_it_decodes(by_name, monkeypatch):
    decoded = []
    decode_span = module.decode_span
    monkeypatch.setattr(module, "decode_span", lambda *words: decoded.append(decode_span(*words)))
    by_name["decode"].run()
    assert len(decoded) == 24


def test_forward_counts_the_operations_of_the_trunk(by_name, network):
    flop = 0

    def count(layer, _, out):
        nonlocal flop
        flop += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    for layer in network.trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.features(torch.zeros(24, 1, 32, 32, dtype=torch.uint8))
    assert by_name["forward"].amount == by_name["scoring"].amount == by_name["pass"].amount == flop


def test_each_stage_runs_the_trunk_and_acquire_as_it_says(by_name, network, monkeypatch):
    images, maps = [], []
    network.trunk.register_forward_hook(lambda _, inputs, __: images.append(len(inputs[0])))
    explained = module.explained
    spy = lambda *words: maps.append(len(words[1])) or explained(*words)  # noqa: E731
    monkeypatch.setattr(module, "explained", spy)
    monkeypatch.setattr(pool_pass, "explained", spy)
    counts = {}
    for name in ("forward", "explanation", "scoring", "pass"):
        images.clear()
        maps.clear()
        by_name[name].run()
        counts[name] = (sum(images), sum(maps))
    assert counts == {"forward": (24, 0), "explanation": (0, 24), "scoring": (24, 24), "pass": (24, 24)}


def test_acquisition_ranks_by_entropy_plus_misalignment(by_name, network, dataset, positions, config):
    scores = score(network, dataset, positions, config, "cpu", needs={"roi"})
    misalignment = 1 - np.asarray(scores.overlap.dice, np.float64)
    misalignment[np.isnan(misalignment)] = np.nanmean(misalignment)
    expected = np.argsort(-(scores.entropy + misalignment), kind="stable")
    np.testing.assert_array_equal(by_name["acquisition"].run().indices, expected)


def test_every_stage_has_a_meaning(by_name):
    assert list(by_name) == list(MEANING)


def test_the_roofs_are_rates_beyond_the_caches_and_in_the_precision(by_name, config, monkeypatch):
    monkeypatch.setattr(module, "_cpu_memcpy_bytes", lambda: 1000)
    monkeypatch.setitem(module.GEMM_SIDE, "cpu", 8)
    tf32 = module.roofs(config.model_copy(update={"precision": "tf32"}))
    half = module.roofs(config.model_copy(update={"precision": "bfloat16"}))
    assert {name: amount for name, (_, amount) in tf32.items()} == {"memcpy": 2 * 1000, "GEMM TF32": 2 * 8**3}
    assert half["GEMM bfloat16"][0]() is None
    assert by_name["forward"].roof == by_name["pass"].roof == "GEMM float32"
    assert {stage.roof for stage in by_name.values()} <= {"", *module.roofs(config)}


@pytest.mark.parametrize(
    ("text", "megabytes"), [("307200K\n", 256), ("131072K", 128), ("1024K", 64), ("?", 256), (None, 256)]
)
def test_a_copy_is_larger_than_the_last_cache_within_limits(text, megabytes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LAST_CACHE", tmp_path / "size")
    if text is not None:
        (tmp_path / "size").write_text(text)
    assert module._cpu_memcpy_bytes() == megabytes << 20
