"""The report of a night in a real browser, from disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from flows.demo import KINDS
from jobs.lake.storage import local_path
from jobs.report.write import write_report
from tests import reported
from tests.browser import NEEDS_BROWSER, RENAME_FOLDER, SCREENSHOTS, browsing, save_picture
from tests.limits import SOON_S

pytestmark = [pytest.mark.integration, NEEDS_BROWSER]
ATTACK = '<img src=x onerror="window.attacked=1"><script>window.attacked=1</script>'
# For a test a few images are enough; a picture for the docs has a model that has learned something.
SMALL: dict[str, Any] = {"first": 1500, "second": 300, "spoilt": 60}
LARGE: dict[str, Any] = {
    "first": 4000,
    "second": 1200,
    "spoilt": 80,
    "epochs": (3, 10),
    "latent_dim": 16,
    "network": {"kind": "conv"},
    "learning_rate": 2e-3,
    "score_batch": 256,
}
CANVASES = """
    const found = [];
    const search = (root) => {
        for (const each of root.querySelectorAll('*')) {
            if (each.tagName === 'CANVAS') found.push(each);
            if (each.shadowRoot) search(each.shadowRoot);
        }
    };
"""
PAINTED = (
    CANVASES
    + """
    search(arguments[0]);
    return found.map((canvas) => canvas.width * canvas.height && canvas.getContext('2d')
        .getImageData(0, 0, canvas.width, canvas.height).data
        .reduce((count, value, at) => count + (at % 4 == 3 && value > 0), 0));
"""
)
# Where a point of the map is on the screen: of the last group, which is the flagged ones.
PLACE = """
    const plot = Bokeh.documents.flatMap((document) => document.roots()).find(
        (root) => root.renderers.some((each) => each.data_source.get_column('place')));
    const view = Bokeh.index.find_one(plot);
    const renderer = plot.renderers[plot.renderers.length - 1];
    const source = renderer.data_source;
    const canvas = view.canvas_view.el.getBoundingClientRect();
    return [
        canvas.left + view.frame.x_scale.compute(source.get('x')[0]),
        canvas.top + view.frame.y_scale.compute(source.get('y')[0]),
        source.get('image_id')[0],
        plot.x_range.end - plot.x_range.start,
    ];
"""
TOOLTIP = """
    const found = [];
    const search = (root) => {
        for (const each of root.querySelectorAll('*')) {
            if (each.classList.contains('bk-tooltip-content')) found.push(each);
            if (each.shadowRoot) search(each.shadowRoot);
        }
    };
    search(document);
    const content = found.find((each) => each.innerText.trim());
    if (!content) return null;
    const thumb = content.querySelector('[style*=sprites]');
    const style = getComputedStyle(thumb);
    const host = getComputedStyle(content.getRootNode().host);
    const images = content.querySelectorAll('img').length;
    return {text: content.innerText, picture: style.backgroundImage.slice(0, 22),
        ink: host.color, paper: host.backgroundColor, images};
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The page of a night that drifted, and the folder of its lake."""
    folder = tmp_path_factory.mktemp("report")

    def named(label: int) -> str:
        return KINDS[label] if SCREENSHOTS or label != 3 else ATTACK

    lake = reported.two_nights(
        folder,
        **(LARGE if SCREENSHOTS else SMALL),
        names=named,
        dataset="clothing",
        model="clothing",
    )
    reported.judged(lake)
    made = write_report(lake, "clothing", "clothing", reported.NIGHTS[1])
    path = local_path(made.uri)
    assert path is not None
    return path, folder


class Page:
    """The report as somebody sees it."""

    def __init__(self, browser: webdriver.Chrome, path: Path, folder: Path) -> None:
        self.browser, self.path, self.folder = browser, path, folder

    def open(self, width: int = 1280, *, dark: bool = False) -> None:
        """Waits until every chart is there."""
        self.resize(width, 900)
        self.paper(dark=dark)
        self.asked_for()  # the browser's own first page
        self.browser.get(self.path.as_uri())
        charts = len(self.browser.find_elements(By.CSS_SELECTOR, ".chart"))
        assert charts >= 5
        self.until(
            lambda: self.script("return document.documentElement.dataset.drawn") == str(charts)
        )

    def resize(self, width: int, height: int) -> None:
        told = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)

    def paper(self, *, dark: bool) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def until(self, done: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SOON_S
        while not (value := done()):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        return value

    def log(self) -> list[str]:
        """What the console complains of."""
        entries: list[Any] = self.browser.get_log("browser")
        return [e["message"] for e in entries if e["level"] in ("WARNING", "SEVERE")]

    def asked_for(self) -> set[str]:
        """What it has loaded since the last call."""
        found = set()
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"][:200])
        return found

    def painted(self) -> dict[str, int]:
        """By chart: how many pixels are not empty."""
        charts = self.browser.find_elements(By.CSS_SELECTOR, ".chart")
        return {str(c.get_attribute("id")): sum(self.script(PAINTED, c)) for c in charts}

    def point(self) -> tuple[float, float, str, float]:
        """Of the map: a flagged point on the screen, its image, and the width of what is shown."""
        self.script("document.getElementById('chart-map').scrollIntoView({block: 'center'})")
        time.sleep(0.5)
        return tuple(self.script(PLACE))

    def move(self, x: float, y: float) -> None:
        told = {"type": "mouseMoved", "x": x, "y": y}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", told)

    def picture(self, name: str, anchor: str | None, height: int) -> None:
        """For the docs: from an anchor, or the top, so many pixels."""
        if not SCREENSHOTS:
            return
        self.script(RENAME_FOLDER, str(self.folder), "/srv/latentlake")
        self.resize(self.script("return innerWidth"), height)
        if anchor:
            self.script("document.getElementById(arguments[0]).scrollIntoView()", anchor)
        time.sleep(1)
        save_picture(self.browser.get_screenshot_as_png(), name)


@pytest.fixture
def page(written: tuple[Path, Path], tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path, hears=True) as browser:
        yield Page(browser, *written)


def test_every_chart_is_drawn_without_a_complaint_or_a_request(page: Page) -> None:
    page.open()
    painted = page.painted()
    assert set(painted) == {
        f"chart-{n}" for n in ["training", "rate", "map", "drift", "dimensions"]
    }
    assert min(painted.values()) > 500, painted
    assert page.log() == []
    asked = page.asked_for()
    assert page.path.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert {url for url in asked if url.startswith("file:")} == {page.path.as_uri()}
    # Whatever is written into the page later on may not be fetched either.
    page.script("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'}))")
    page.until(lambda: any("Content Security Policy" in line for line in page.log()))
    page.picture("report", None, 1180)


def test_pictures_and_text_of_the_data_are_shown_and_not_run(page: Page) -> None:
    page.open()
    if not SCREENSHOTS:
        assert ATTACK in page.script("return document.getElementById('data').textContent")
    images = page.script("return [...document.images].map((i) => [i.naturalWidth, i.alt])")
    assert len(images) > 100
    assert all(width > 0 and alt for width, alt in images)
    assert page.script("return window.attacked") is None
    assert page.log() == []
    page.picture("report-anomalies", "anomalies", 1100)


@pytest.mark.parametrize("dark", [False, True])
def test_the_map_reacts_to_pointer_and_wheel(page: Page, dark: bool) -> None:
    page.open(dark=dark)
    x, y, image_id, width = page.point()
    page.move(x + 30, y + 30)
    page.move(x, y)
    told = page.until(lambda: page.script(TOOLTIP))
    assert image_id in told["text"]
    assert "flagged" in told["text"]
    assert "p =" in told["text"]
    assert told["picture"].startswith('url("data:image/webp')
    assert told["images"] == 0  # of what a label holds, nothing is an element
    assert page.script("return window.attacked") is None
    assert bright(told["paper"]) < 100 if dark else bright(told["paper"]) > 155
    assert abs(bright(told["ink"]) - bright(told["paper"])) > 100
    page.picture("report-map-dark" if dark else "report-map", "map", 860)
    here = ScrollOrigin.from_viewport(int(x), int(y))
    ActionChains(page.browser).scroll_from_origin(here, 0, -300).perform()
    page.until(lambda: page.script(PLACE)[3] < 0.9 * width)
    page.script("return Bokeh.documents.forEach((d) => d.roots().forEach((r) => r.reset.emit()))")
    page.until(lambda: abs(page.script(PLACE)[3] - width) < 1e-3 * width)
    assert page.log() == []


def bright(colour: str) -> float:
    """Of `rgb(…)`, 0 to 255."""
    numbers = colour.partition("(")[2].rstrip(")").split(",")[:3]
    return sum(map(float, numbers)) / 3


def test_a_phone_scrolls_down_only(page: Page) -> None:
    page.open(390)
    assert page.script("return document.documentElement.scrollWidth") <= 390
    assert page.script("return document.body.scrollWidth") <= 390
    for section in page.browser.find_elements(By.CSS_SELECTOR, "section"):
        assert section.rect["x"] + section.rect["width"] <= 390
    assert min(page.painted().values()) > 300
    page.script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.script("return document.documentElement.scrollWidth") <= 390
    page.picture("report-phone", None, 1400)


def test_dark_paper_has_light_ink_in_the_charts_too(page: Page) -> None:
    page.open()
    read = "return getComputedStyle(document.body).backgroundColor"
    chart = page.browser.find_element(By.ID, "chart-training")
    assert bright(page.script(read)) > 200
    before = chart.screenshot_as_base64
    page.paper(dark=True)
    page.until(lambda: bright(page.script(read)) < 60)
    assert page.script(AXIS).strip() == "#a5b0bb"
    # Nobody has loaded the page again.
    page.until(lambda: min(map(bright, page.script(LEGENDS))) > 200)
    assert chart.screenshot_as_base64 != before
    page.until(lambda: page.script(LIGHT_PIXELS, chart) > 200)
    page.picture("report-dark", "training", 1180)


AXIS = "return getComputedStyle(document.getElementById('chart-map')).getPropertyValue('--faint')"
LEGENDS = """
    const found = [];
    const search = (root) => {
        for (const each of root.querySelectorAll('*')) {
            if (each.classList.contains('bk-label')) found.push(getComputedStyle(each).color);
            if (each.shadowRoot) search(each.shadowRoot);
        }
    };
    search(document);
    return found;
"""
# Grey and light: of axes and their text, as lines and points have colours.
LIGHT_PIXELS = (
    CANVASES
    + """
    search(arguments[0]);
    let count = 0;
    for (const canvas of found.filter((each) => each.width * each.height)) {
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        for (let at = 0; at < data.length; at += 4) {
            const [r, g, b, a] = data.slice(at, at + 4);
            count += a > 200 && r > 140 && Math.abs(r - b) < 40;
        }
    }
    return count;
"""
)


def test_the_first_tab_reaches_the_skip_link_and_the_next_ones_the_sections(page: Page) -> None:
    page.open()
    page.browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = page.browser.switch_to.active_element
    assert first.text == "Skip to the report"
    assert first.rect["x"] >= 0
    assert page.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    assert page.browser.switch_to.active_element.text == "Data card"
    first.send_keys(Keys.ENTER)
    assert page.script("return document.activeElement.id") == "main"
