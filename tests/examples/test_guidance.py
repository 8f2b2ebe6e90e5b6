"""The example that asks when guidance helps, in a tiny version, in this process."""

import argparse
import importlib.util
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "guidance" / "when_guidance_helps.py"


@pytest.fixture
def study(monkeypatch):
    """The script as a module, with two of its shortcuts and two of its strategies."""
    spec = importlib.util.spec_from_file_location("when_guidance_helps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHORTCUTS", (0.0, 0.95))
    monkeypatch.setattr(module, "STYLES", {name: module.STYLES[name] for name in ("random", "egal")})
    return module


def test_it_gathers_every_dial_and_draws_one_picture(study, tmp_path):
    args = argparse.Namespace(out=tmp_path, rounds=1, samples=90, steps="1", workers=1)
    gains = pd.concat([study.compare(args, 0, loss) for loss in study.EXPLAIN_LOSSES], ignore_index=True)
    dials = set(zip(gains.shortcut, gains.explain_loss, gains.strategy, strict=True))
    assert dials == {(s, e, name) for s in (0.0, 0.95) for e in (0.0, 1.0) for name in study.STYLES}
    study.draw(gains, tmp_path / "guidance.png")
    assert (tmp_path / "guidance.png").read_bytes().startswith(b"\x89PNG")


def test_interval_is_that_of_students_t(study):
    half = study.half_width(pd.Series([2.0]), pd.Series([10]))
    assert half[0] == pytest.approx(2 / 10**0.5 * 2.262, rel=1e-3)
