"""The report in a real browser: no error, no request, every control works, on a phone, in the dark and on paper."""

import shutil
from pathlib import Path

import pytest

from bench.in_process import unrendered_figures
from bench.reports.made_up import write_results
from egal_bench.reports.question import Question
from egal_bench.reports.report import write_report
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
A4 = 703  # CSS pixels of a page between its margins
HOSTILE = "<img src=x onerror=alert(1)>&lt;b"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium with a profile of its own; the tests skip only where no browser can be had."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        path = path or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=path, headless=True, args=FLAGS, viewport={"width": 1200, "height": 800}
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    strategies = ("random", "egal", "entropy", "misalignment", HOSTILE)
    write_results(runs, datasets=("cheng", "siim", "wbc"), strategies=strategies, seeds=range(3), gains={"egal": 0.05})
    with unrendered_figures():
        write_report([runs], runs / "report", Question())
    return runs / "report/report.html"


@pytest.fixture
def page(browser, report):
    """The opened report; the test fails if the page logs, asks for another file, or opens a dialog."""
    page, messages = browser.new_page(), []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    show(page, "curves")
    page.evaluate("scrollTo(0, 0)")
    yield page
    assert [m for m in messages if m != report.as_uri() and not m.startswith(("data:", "blob:"))] == []
    page.close()


def show(page, chart):
    """Scroll to a chart, which is drawn only then."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart} .scatterlayer .trace")


def drawn(page):
    """Return what the chart shows: the lines, and the titles of the axes."""
    lines = page.eval_on_selector_all(
        "#curves .scatterlayer .js-line", "all => all.map((one) => one.getAttribute('d'))"
    )
    titles = page.eval_on_selector_all("#curves .xtitle, #curves .ytitle", "all => all.map((one) => one.textContent)")
    return lines, titles


def test_the_first_screen_shows_verdict_and_figure(page):
    visible = "element => { const r = element.getBoundingClientRect(); return r.top >= 0 && r.top < innerHeight }"
    assert page.eval_on_selector(".verdict", visible)
    assert page.eval_on_selector(".forest svg", visible)


@pytest.mark.parametrize(
    ("name", "value"), [("metric", "nll"), ("x", "masks"), ("spread", "iqm"), ("spread", "seeds"),
                        ("view", "difference"), ("dataset", "1")]
)  # fmt: skip
def test_every_choice_redraws_the_chart(page, name, value):
    before, sentence = drawn(page), page.text_content("#described")
    page.select_option(f"#controls [name={name}]", value)
    page.wait_for_function("(old) => document.getElementById('described').textContent !== old", arg=sentence)
    lines, titles = drawn(page)
    if name in ("metric", "x", "view"):
        assert titles != before[1]
    if name != "dataset":  # the made-up data sets are equal
        assert lines != before[0]


@pytest.mark.parametrize(
    ("chart", "name", "value"),
    [("pool", "strategy", "entropy"), ("pool", "query", "1"), ("calibration", "strategy", "entropy")],
)
def test_every_choice_redraws_a_diagnostic(page, chart, name, value):
    show(page, chart)
    points = f"JSON.stringify(document.getElementById('{chart}').data.map((trace) => trace.x))"
    before, sentence = page.evaluate(points), page.text_content(f"#{chart}-described")
    page.select_option(f"#{chart}-controls [name={name}]", value)
    page.wait_for_function(f"(old) => document.getElementById('{chart}-described').textContent !== old", arg=sentence)
    assert page.evaluate(points) != before


def test_charts_out_of_view_cost_nothing(browser, report):
    page = browser.new_page()
    page.set_viewport_size({"width": 375, "height": 300})
    page.goto(report.as_uri())
    assert page.evaluate("window.Plotly === undefined")
    page.close()


def test_a_strategy_can_be_hidden_by_keyboard(page):
    rows = page.locator("#numbers tbody tr")
    assert rows.count() == 5
    page.focus("#strategies input >> nth=1")
    page.keyboard.press("Space")
    assert rows.count() == 4
    page.click("button[data-all='']")
    assert rows.count() == 0


def test_the_numbers_beside_the_chart_are_those_drawn(page):
    last = "#curves"
    centre = page.evaluate("document.getElementById('curves').data.find((t) => t.mode === 'lines+markers').y")
    cells = page.eval_on_selector_all("#numbers tbody tr:first-child td", "all => all.map((one) => one.textContent)")
    assert [cell.split()[0] for cell in cells] == [f"{value:.2f}" for value in centre], last


def test_a_hostile_name_is_text_in_the_chart(page):
    assert page.locator("#strategies label", has_text=HOSTILE).count() == 1
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    width = "document.querySelector('#curves .main-svg').getBoundingClientRect().width"
    page.wait_for_function(f"() => {width} <= 375")
    for chart in ("pool", "calibration"):
        show(page, chart)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_dark_mode_darkens_page_and_chart(page):
    brightness = """(selector) => getComputedStyle(document.querySelector(selector))[selector === 'body' ?
        'backgroundColor' : 'fill'].match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"""
    page.emulate_media(color_scheme="light")
    light = [page.evaluate(brightness, selector) for selector in ("body", "#curves .ytitle")]
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => ({brightness})('#curves .ytitle') > 500")
    dark = [page.evaluate(brightness, selector) for selector in ("body", "#curves .ytitle")]
    assert light[0] > 700 > 200 > dark[0]
    assert light[1] < 200 < 500 < dark[1]


def test_the_report_prints_to_pdf(page):
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_printed_chart_fits_the_page_and_names_its_colours(page):
    width = "document.querySelector('#curves .main-svg').getBoundingClientRect().width"
    on_screen = page.evaluate(width)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_selector("#curves .legendtext")
    names = page.eval_on_selector_all("#curves .legendtext", "all => all.map((one) => one.textContent)")
    assert sorted(names) == sorted(["random", "egal", "entropy", "misalignment", HOSTILE])
    assert page.evaluate(width) <= A4
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"() => {width} === {on_screen}")
    assert page.locator("#curves .legendtext").count() == 0


def test_tables_fit_the_printed_page(page):
    page.set_viewport_size({"width": A4, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('#results').scrollWidth") <= A4


def test_every_control_has_a_name_for_a_screen_reader(page):
    names = page.eval_on_selector_all(
        "select, input, button, svg[role=img], #curves, .chart, .scroll",
        "all => all.filter((e) => !e.closest('.plotly')).map((e) => e.getAttribute('aria-label') || "
        "(e.labels && e.labels.length && e.labels[0].textContent) || e.textContent)",
    )
    assert all(name.strip() for name in names)


@pytest.mark.usefixtures("unrendered")
def test_the_opacity_slider_changes_the_class_maps(browser, tmp_path):
    pack(phantom(samples=60, size=32, roi_area=0.08, seed=0), tmp_path / "set", size=32, progress=False)
    write_results(tmp_path / "runs", seeds=range(2), shards=ShardSet(tmp_path / "set"))
    write_report([tmp_path / "runs"], tmp_path, Question())
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    opacity = "getComputedStyle(document.querySelector('.cam')).opacity"
    assert page.evaluate(opacity) == "0.5"
    page.focus("#opacity")
    page.keyboard.press("End")
    assert page.evaluate(opacity) == "1"
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    page.emulate_media(media="print")
    assert not page.is_visible("#opacity")
    page.close()
