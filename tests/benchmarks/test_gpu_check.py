"""The script for a visit to a GPU: its steps, its table, and the checks that it makes there, on the CPU in small."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux only)")

from benchmarks import gpu_check
from benchmarks.gpu import agreement, project, speed
from benchmarks.gpu.cases import Case, variants
from benchmarks.gpu.steps import Row, Step, table, visit, write
from egal_kernels.acquisition import reference


def silent(line):
    """Say nothing."""


def fails(left):
    raise ValueError("first line\nsecond line")


def test_a_step_that_fails_or_cannot_run_does_not_stop_the_visit():
    steps = [
        Step("without its package", fails, 0, ("json", "no_such_package")),
        Step("failing", fails, 0),
        Step("too long", fails, 1000),
        Step("good", lambda left: [Row("good", "case", 2.0, "µs")], 0),
    ]
    rows = visit(steps, 100, silent)
    assert [(row.step, row.result) for row in rows] == [
        ("without its package", "skipped"), ("failing", "failed"), ("too long", "skipped"), ("good", 2.0)]  # fmt: skip
    assert [row.note for row in rows] == [
        "not installed: no_such_package", "ValueError: first line", "needs 1000 s, 100 s are left", ""]  # fmt: skip


def test_a_step_learns_how_much_time_is_left():
    seconds = []
    steps = [
        Step("slow", lambda left: time.sleep(0.02) or [], 0),
        Step("next", lambda left: seconds.append(left) or [], 0),
    ]
    visit(steps, 5, silent)
    assert 0 < seconds[0] <= 4.98


def test_a_step_is_stopped_when_the_time_is_over_and_its_rows_stay():
    def endless(left):
        yield Row("endless", "first", "equal")
        time.sleep(60)

    rows = visit([Step("endless", endless, 0)], 0.05, silent)
    assert [(row.result, row.note) for row in rows] == [("equal", ""), ("failed", "TimeoutError: no time is left")]


def test_the_rows_are_written_as_a_table_and_as_json(tmp_path):
    rows = [
        Row("variants", "a case", 0.123456, "µs per image", "40% of the roof"),
        Row("loss", "", "failed", note="why"),
    ]
    write(rows, {"device": "a GPU"}, tmp_path / "rows.json")
    stored = json.loads((tmp_path / "rows.json").read_text())
    assert stored["machine"] == {"device": "a GPU"}
    assert [Row(**row) for row in stored["rows"]] == rows
    assert table(rows).splitlines()[2:] == [
        "| variants | a case | 0.1235 µs per image | 40% of the roof |", "| loss |  | failed | why |"]  # fmt: skip


@pytest.fixture
def backend_gives(monkeypatch):
    """Return a function that makes the Triton backend return the reference's result, changed by `change`."""

    def replace_backend(change):
        def acquire(features, head, roi, *, threshold, convention, tuned):
            return change(reference.acquire(features, head, roi, threshold=threshold, convention=convention), tuned)

        monkeypatch.setattr(agreement.backend, "acquire", acquire)

    return replace_backend


def test_equal_results_pass_in_every_variant(backend_gives):
    tunings = []
    backend_gives(lambda out, tuned: tunings.append(tuned) or out)
    case = Case(16, 5, 31, torch.bfloat16)
    agreement.check_head(case, "cpu")
    assert set(tunings) == set(variants(case).values())
    assert {tuned.epilogue for tuned in tunings} == {0, 1, 4}
    assert len(variants(replace(case, channels_last=True))) > len(variants(case))  # bf16 rows of 25 cannot stream
    agreement.check_maps((3, 5), (31, 20), "captum", "cpu")


def test_one_wrong_pixel_of_one_variant_is_found(backend_gives):
    backend_gives(lambda out, tuned: replace(out, cam_area=out.cam_area + 1) if tuned and tuned.epilogue else out)
    agreement.check_maps((3, 5), (31, 20), "captum", "cpu")  # a convention that is checked in one kernel only
    with pytest.raises(AssertionError, match=r"cam_area of \[4, 1, 3, 5\] .* epilogue=1"):
        agreement.check_maps((3, 5), (31, 20), "grad-cam", "cpu")


def test_wrong_logits_are_found(backend_gives):
    backend_gives(lambda out, tuned: replace(out, logits=out.logits + 0.1))
    with pytest.raises(AssertionError, match="logits of"):
        agreement.check_head(Case(16, 5, 31), "cpu")


def test_the_loss_of_another_backend_is_compared():
    agreement.check_loss(Case(8, 5, 31), "grad-cam", "cpu", "cpu")


def test_the_host_is_timed_for_every_batch_size_and_for_the_loss():
    rows = list(speed.host_cost(0, "cpu", "cpu", calls=2))
    assert [row.case.split(", ")[0] for row in rows] == ["acquire"] * 3 + ["cam_loss"]
    assert [row.case.split(", ")[-1] for row in rows] == ["B=1", "B=32", "B=256", "B=32"]
    assert all(row.result > 0 for row in rows)


def test_all_steps_fit_into_the_limit(tmp_path):
    assert sum(step.seconds for step in gpu_check.steps_of(tmp_path, None, None, {})) <= gpu_check.LIMIT


class Finished:
    """A background process that has ended."""

    def __init__(self, status, line):
        self.status, self.line = status, line

    def result(self, seconds):
        return self.status, self.line


@pytest.fixture
def profiled(monkeypatch):
    """The settings with which profiles were asked for; none is made."""
    settings = []

    def profile(config, out, **options):
        settings.append((config.backbone, config.precision, config.compile, options["samples"]))
        row = {"stage": "pass", "rate_q50": 5.0, "share_of_forward": 0.9, "share_of_roof": None, "roof": None}
        return SimpleNamespace(rows=[row], compiling=3.0 if config.compile == "on" else None)

    monkeypatch.setattr("egal_bench.profiling.profile.profile", profile)
    return settings


def test_profiles_cover_backbones_precisions_and_compile(profiled, tmp_path):
    rows = list(project.profiles(Finished(0, ""), tmp_path, 1000, "cpu"))
    assert set(profiled) == {
        (backbone, precision, compile, 2560)
        for backbone in ("resnet18", "resnet50", "densenet121")
        for precision in ("float32", "bfloat16")
        for compile in ("off", "on")
    }
    compiled = [f"{backbone} {precision} compile on" for backbone, precision, compile, _ in profiled if compile == "on"]
    assert [row.case for row in rows if row.unit == "s"] == [f"{label}: first batch" for label in compiled]


def test_profiles_that_no_time_is_left_for_are_skipped(profiled, tmp_path):
    rows = list(project.profiles(Finished(0, ""), tmp_path, 1, "cpu"))
    assert not profiled
    assert {(row.result, row.note) for row in rows} == {("skipped", "no time is left")}


def test_compilations_are_shown_and_those_that_last_are_stopped():
    started = {("a", "x"): Finished(0, "12.5"), ("b", "x"): Finished(None, ""), ("c", "x"): Finished(1, "why")}
    rows = list(project.compiling(started, 100))
    assert [(row.case, row.result) for row in rows] == [("a x", 12.5), ("b x", "skipped"), ("c x", "failed")]


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_training_steps_are_timed_and_replayed_ones_must_give_the_same_bits(monkeypatch, error):
    def recorder(trunk, sample, allow_unused_input):
        return lambda images: trunk(images) + error

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    rows = list(project.training_step(0, "cpu", ["small-cnn"], 32, steps=1))
    labels = [f"small-cnn, batches of 32, {name}" for name in ("plain", "explained, bfloat16")]
    assert [row.case for row in rows] == [
        f"{label}{end}" for label in labels for end in ("", ", CUDA graphs", ", bits")
    ]
    assert all(row.result > 0 for row in rows if not row.case.endswith("bits"))
    assert {row.result for row in rows if row.case.endswith("bits")} == {"failed" if error else "equal"}


@pytest.mark.parametrize(
    ("status", "line", "result", "note"),
    [
        (0, "22 passed in 60 s", "equal", "22 passed in 60 s"),
        (1, "1 failed, 21 passed in 60 s", "failed", "1 failed, 21 passed in 60 s"),
        (1, "TypeError: only arrays", "skipped", "Triton's interpreter fails here: TypeError: only arrays"),
        (None, "", "skipped", "not finished in time"),
    ],
)
def test_a_broken_interpreter_is_not_a_failed_kernel(status, line, result, note):
    (row,) = project.interpreted(Finished(status, line), 1)
    assert (row.result, row.note) == (result, note)


def test_a_background_process_gives_its_last_line_or_is_stopped():
    done = project.Background("sh", "-c", "echo $WORD; echo last; exit 3", WORD="first")
    assert done.result(30) == (3, "last")
    assert project.Background("sleep", "60").result(0.05) == (None, "")
