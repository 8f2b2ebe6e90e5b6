"""The report as files: complete, self-contained, safe with hostile names, and honest about what is missing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from bench.command_line import egal_bench, error_of
from bench.in_process import unrendered_figures
from bench.reports.made_up import write_results
from egal_bench.reports import html
from egal_bench.reports.names import latex, markdown, shown
from egal_bench.reports.question import Question
from egal_bench.reports.report import write_report

HOSTILE = ("<script>alert(1)</script>", "a\"b'c", "two\nlines", "\x1b[31mred", "$x_1$ & 50% {\\}", "<b>%{x}</b>")


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self._raw = [], [], 0
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._raw += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._raw:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a report on three data sets, and the content of its verdict.json."""
    runs = tmp_path_factory.mktemp("complete")
    datasets, strategies = ("cheng", "siim", "wbc"), ("random", "egal", "entropy", "misalignment")
    write_results(runs, datasets=datasets, strategies=strategies, seeds=range(4), gains={"egal": 0.05})
    return runs / "report", write_report([runs], runs / "report", Question())


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def report_on(path, **settings):
    """Return the page and the verdict of a report on made-up runs."""
    out = path / "report"
    verdict = write_report([write_results(path / "runs", **settings)], out, Question())
    return page_of(out), verdict


def test_a_report_has_all_its_files(complete):
    folder, verdict = complete
    assert json.loads((folder / "verdict.json").read_text()) == verdict
    tables = {path.stem for path in (folder / "tables").iterdir()}
    assert tables >= {"results", "differences", "efficiency", "penalties", "ranks", "test_set", "classes", "purchases",
                      "class_shares", "overlap", "pool", "distances", "calibration", "confusion_1", "time"}  # fmt: skip
    for table in tables:
        assert {(folder / "tables" / f"{table}.{e}").stat().st_size > 0 for e in ("csv", "md", "tex")} == {True}
    for figure in ("learning_curves", "differences", "penalties", "critical_differences"):
        assert (folder / f"figures/{figure}.png").read_bytes().startswith(b"\x89PNG")
        pdf = (folder / f"figures/{figure}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, embedded
        assert b"/Type3" not in pdf


def test_the_page_says_the_verdict_of_every_data_set(complete):
    folder, verdict = complete
    words = page_of(folder).words
    for dataset in verdict["datasets"].values():
        assert dataset["sentence"] in words
    for check in verdict["audit"]:
        assert check["detail"] in words


def test_the_page_holds_no_external_address(complete):
    source = (complete[0] / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://.{0,60}", source) == []
    page = Page(source)
    references = {v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href")}
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "base")]


def test_the_csv_tables_hold_the_numbers_of_the_verdict(complete):
    folder, verdict = complete
    table = pd.read_csv(folder / "tables/differences.csv")
    row = table.query("dataset == 'siim' and strategy == 'egal' and metric == 'accuracy' and outcome == 'aubc'").iloc[0]
    assert row["difference"] == verdict["datasets"]["siim"]["strategies"]["egal"]["aubc"]["difference"]


@pytest.mark.usefixtures("unrendered")
def test_the_same_runs_give_the_same_report(tmp_path, complete):
    write_report([complete[0].parent], tmp_path, Question())
    for name in ("report.html", "verdict.json", "tables/results.csv"):
        assert (tmp_path / name).read_bytes() == (complete[0] / name).read_bytes()


def test_hostile_names_appear_as_text(tmp_path):
    page, _ = report_on(tmp_path, datasets=HOSTILE[:2], strategies=("random", *HOSTILE), seeds=range(2))
    with unrendered_figures():
        plain, _ = report_on(tmp_path / "plain", datasets=("a", "b"), strategies=("random", *"cdefgh"), seeds=range(2))
    for name in HOSTILE:
        assert shown(name) in page.words
    assert "\x1b" not in page.words
    assert [tag for tag, _ in page.tags if tag == "script"] == [tag for tag, _ in plain.tags if tag == "script"]
    assert "b" not in {tag for tag, _ in page.tags}


def test_a_long_name_is_cut_and_still_unique():
    a, b = shown("x" * 10_000 + "a"), shown("x" * 10_000 + "b")
    assert max(len(a), len(b)) <= 80
    assert a != b


@pytest.mark.parametrize("name", HOSTILE)
def test_text_formats_escape_names(name):
    assert not re.search(r"(?<!\\)[&%#_$](?!\\)", latex(shown(name)).replace(r"\$", ""))
    assert "|" not in re.sub(r"\\.", "", markdown("a|b"))
    assert "<" not in markdown(shown(name))


def test_embedded_data_cannot_end_its_script():
    text = html.embedded({"name": "</script><!--\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--\u2028"}


DEGENERATE = {
    "one seed": ({"seeds": [0]}, "with 1 seed there are no standard deviations"),
    "one strategy": ({"strategies": ("random",)}, "only random was run"),
    "no baseline": ({"strategies": ("egal", "entropy")}, "random was not run"),
    "no ROI": ({"roi": False}, "No sample of the pool has an ROI"),
    "no pool": ({"pool": False}, "No run has a readable table pool"),
    "zero rounds": ({"rounds": 0}, "no query round was run"),
    "constant metric": ({"constant": True}, "accuracy is the same in every run"),
    "no predictions": ({"predictions": False}, "No run has a readable table predictions"),
    "two data sets": ({"datasets": ("a", "b")}, "No rank tests: they need 3 data sets, and this report has 2."),
    "one seed of one strategy": ({"strategies": ("random",), "seeds": [0], "rounds": 0}, "no query round"),
    "missing seeds": ({"missing": [("cheng", "egal", s) for s in (0, 1, 2)]}, "egal has no finished run with seed 0"),
}


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("case", DEGENERATE)
def test_a_report_says_what_could_not_be_computed(tmp_path, case):
    settings, words = DEGENERATE[case]
    page, verdict = report_on(tmp_path, **settings)
    assert words in page.words
    if case == "no ROI":
        assert "no ROI was used" in page.words
    assert "nan" not in re.findall(r"\w+", page.words.lower())
    json.dumps(verdict, allow_nan=False)


@pytest.mark.usefixtures("unrendered")
def test_the_page_says_what_to_do_next_below_the_verdict(tmp_path):
    page, verdict = report_on(tmp_path, seeds=range(3), noise=0.05)
    dataset = verdict["datasets"]["cheng"]
    assert re.match(r"3 seeds cannot show a difference; 7 can\. About .* seeds would decide ", dataset["next_step"])
    assert f"{dataset['sentence']} {dataset['next_step']}" in page.words
    assert "3 seeds can hardly show any" in page.words


def test_the_command_writes_the_report_and_prints_the_verdict(tmp_path):
    write_results(tmp_path / "runs", seeds=range(3))
    process = egal_bench("report", "runs", "--margin=2", "--json", cwd=tmp_path, status=0)
    *lines, last = process.stdout.splitlines()
    verdict = json.loads(last)
    assert verdict == json.loads((tmp_path / "runs/report/verdict.json").read_text())
    assert verdict["question"]["margin"] == 0.02
    assert lines[0] == verdict["datasets"]["cheng"]["sentence"]
    assert lines[-1] == "Report: runs/report/report.html"


def test_the_command_does_not_import_torch(tmp_path):
    write_results(tmp_path / "runs", seeds=range(2))
    code = "import sys; sys.argv = ['egal-bench', 'report', 'runs']\nfrom egal_bench.cli import main\ntry: main()\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_a_folder_without_runs_is_one_line(tmp_path):
    error = error_of(egal_bench("report", tmp_path / "nothing", cwd=tmp_path))
    assert "holds no finished run" in error


def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    with pytest.raises(html.BenchError, match=r"needs jinja2 and plotly: pip install 'egal-bench\[report\]'"):
        write_report([tmp_path], tmp_path / "report", Question())
