"""The report in a real browser: its slider, its sorting, three screens, no network, no errors."""

import os
import shutil

import numpy as np
import pytest
from report_factory import report_data

from cba_fast.erf import ErfMap
from cba_fast.erf.report import with_figures
from cba_fast.ops import box_sweep
from cba_fast.report import RunErf, Sizes, write_report
from cba_fast.runs.settings import BoxConfig, ReportConfig

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium or google-chrome on this machine", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SCREENS = ((390, 844), (820, 1180), (1440, 900))
RECT = "e => ['x', 'y', 'width', 'height'].map(k => Number(e.getAttribute(k)))"
EACH = "all => all.filter(e => !e.hidden).map(e => {})"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = report_data(tmp_path_factory.mktemp("report"))
    runs = {"sharp": root / "sharp", "<wide>": root / "<wide>"}
    config, report = BoxConfig(metadata_root=root / "meta"), ReportConfig(num_resamples=20)
    field = with_figures(ErfMap(np.eye(48) + np.ones((48, 48)), 4, []), [])
    erf = {n: RunErf(Sizes(90.0 + k, 5.0, 10), field) for k, n in enumerate(runs)}
    images = root / "images"
    made = write_report(runs, root / "r.html", config, report, images=images, erf=erf)
    return root, made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # chromium refuses root otherwise
        opened = p.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture
def page(written, browser):
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda r: said.append(r.url) if r.url.startswith(("http", "ws")) else None)
    page.goto((written[0] / "r.html").as_uri())
    yield page
    assert said == []
    page.close()


def set_slider(page, value):
    page.eval_on_selector(
        "#threshold",
        "(e, v) => { e.value = v; for (const k of ['input', 'change']) "
        "e.dispatchEvent(new Event(k, { bubbles: true })); }",
        value,
    )


def test_the_slider_moves_each_box_to_that_of_the_sweep(page, written):
    root, made = written
    for at in (0, 17, 60, 99):
        set_slider(page, at)
        threshold = made.runs[0].evaluator.thresholds[at]
        assert page.inner_text("#threshold-value").startswith(f"{threshold:g}")
        for card in page.query_selector_all(".card"):
            for n, run in enumerate(made.runs):
                u = np.load(root / run.name / f"{card.get_attribute('data-name')}.npy")[None]
                x0, y0, x1, y1 = box_sweep(u, [threshold])[0, 0].tolist()
                rects = card.query_selector_all(f"figure[data-run='{n}'] .moving")
                for rect in rects:
                    assert rect.evaluate(RECT) == [x0, y0, x1 - x0 + 1, y1 - y0 + 1]
    page.click("#best")
    for n, run in enumerate(made.runs):
        for figure in page.query_selector_all(f"figure[data-run='{n}']"):
            name = figure.evaluate("e => e.closest('.card').dataset.name")
            text = figure.query_selector(".iou").inner_text()
            assert text.startswith(f"IoU {run.judged[name].iou:.3f}")
            assert text.endswith("localized" if run.judged[name].iou >= 0.5 else "missed")


def test_the_slider_follows_the_keyboard(page):
    page.focus("#threshold")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#threshold") == "1"
    assert page.inner_text("#threshold-value").startswith("0.01")


def test_the_gallery_sorts_and_filters(page, written):
    _, made = written
    first, second = made.runs

    def names():
        return page.eval_on_selector_all(".card", EACH.format("e.dataset.name"))

    def check(value, key):
        page.select_option("#sort", value)
        found = [key(first.judged[name].iou, name) for name in names()]
        assert found == sorted(found)
        assert len(found) == len(first.judged)

    check("down", lambda iou, name: -iou)
    check("up", lambda iou, name: iou)
    check("near", lambda iou, name: abs(iou - 0.5))
    check("change", lambda iou, name: -abs(iou - second.judged[name].iou))
    page.select_option("#sort", "up")
    page.select_option("#run", "1")
    ious = [second.judged[name].iou for name in names()]
    assert ious == sorted(ious)
    page.select_option("#cause", "wrong place")
    assert (
        set(names()) == {n for n, j in second.judged.items() if j.cause == "wrong place"} != set()
    )
    page.select_option("#cause", "")
    page.fill("#text", "OWL")
    assert all("Owl" in name for name in names())
    assert page.inner_text("#count") == f"{len(names())} of {len(first.judged)} images shown"


def test_tables_sort_by_each_column(page):
    heads = page.query_selector_all("table.sortable th button")
    assert len(heads) == 4
    for column, head in enumerate(heads):
        cells = f"table.sortable tbody tr > :nth-child({column + 1})"
        for direction in ("ascending", "descending"):
            head.press("Enter")
            values = page.eval_on_selector_all(cells, EACH.format("e.textContent"))
            values = [float(v) for v in values] if column else values
            # Chromium's order ignores punctuation at first; the class with HTML comes first.
            expected = sorted(values, reverse=direction == "descending")
            if column:
                assert values == expected
            else:
                assert values[0 if direction == "ascending" else -1].startswith("<img")
            state = head.evaluate("e => e.parentElement.getAttribute('aria-sort')")
            assert state == direction


@pytest.mark.parametrize("screen", SCREENS, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_page_fits_the_screen(page, screen):
    width, height = screen
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#threshold", "#sort", "#text", ".card figure", ".maps img", "#erf svg"):
        page.locator(selector).first.scroll_into_view_if_needed()
        box = page.locator(selector).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    for box in page.query_selector_all(".scroll"):  # captions stay in sight, also to the right
        box.evaluate("e => { e.scrollLeft = 1e4; }")
        inside, caption = box.bounding_box(), box.query_selector("caption").bounding_box()
        assert caption["x"] >= inside["x"] - 1
        assert caption["x"] + caption["width"] <= inside["x"] + inside["width"] + 1
    maps = page.eval_on_selector_all(".maps img", EACH.format("e.offsetTop"))
    assert len(maps) == 2
    assert maps[0] == maps[1]  # side by side on every screen
    stages = page.eval_on_selector_all(".card:first-child .stage", EACH.format("e.offsetTop"))
    assert (stages[0] == stages[1]) == (width > 500)  # two runs side by side where there is room


def test_without_its_script_the_page_shows_the_boxes_at_the_best_thresholds(browser, written):
    root, made = written
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((root / "r.html").as_uri())
    assert page.is_hidden("#slider")
    card = page.locator(".card").first
    x0, y0, _, y1 = made.runs[0].judged[card.get_attribute("data-name")].box
    rect = card.locator("figure").first.locator(".predicted")
    assert rect.get_attribute("x") == str(x0)
    assert rect.get_attribute("height") == str(y1 - y0 + 1)
    assert card.is_visible()
    context.close()
