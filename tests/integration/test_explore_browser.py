"""`latentlake explore`, as its command starts it, in a real browser."""

from __future__ import annotations

import asyncio
import http.client
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from jobs.lake.paths import LakePaths
from tests.browser import NEEDS_BROWSER
from tests.explored import HOSTILE, NIGHTS, Explored, exploring, make_lake
from tests.explored_page import CARDS, NARROW, SAID, Page, explored_by
from tests.helpers import LATENTLAKE, free_port, image_bytes, image_ids, run_cli
from tests.limits import COMMAND_S, END_S, SOON_S

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LakePaths:
    return make_lake(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def explored(lake: LakePaths) -> Iterator[Explored]:
    with exploring(lake) as held:
        yield held


@pytest.fixture
def page(explored: Explored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setenv("SE_OFFLINE", "true")  # it downloads no driver
    with explored_by(explored, tmp_path) as made:
        yield made


@NEEDS_BROWSER
def test_anomalies_are_shown_by_night_and_drift_is_told_loudly(page: Page) -> None:
    page.see(SAID, "CALIBRATION NOT VALID on this night")
    page.see(SAID, "drift was found")
    page.see(CARDS, "(not valid)")
    page.choose("Night", NIGHTS[0])
    page.see(SAID, "Calibration valid")
    cards = page.cards()
    assert len(cards) == len(set(cards)) > 1
    assert "(not valid)" not in page.see(CARDS).text
    assert "q_value" in page.see("table").text
    page.choose("Which", "highest scores")
    page.until(lambda: len(page.cards()) == 24, "no page of ranked images")
    page.picture("explore")


@NEEDS_BROWSER
def test_an_anomaly_opens_with_its_reconstruction_and_its_neighbours(page: Page) -> None:
    page.choose("Night", NIGHTS[0])
    page.see(SAID, "Calibration valid")
    worst = page.cards()[0]
    page.click(f"{CARDS}[data-id='{worst}']")
    for caption in ("as staged", "reconstruction", "difference"):
        page.see("figcaption", caption)
    page.see("td", worst)
    near = page.until(lambda: page.all(CARDS, "distance"), "no neighbours")
    assert len(near) == 12
    assert worst not in [one.get_attribute("data-id") for one in near]
    other = near[0].get_attribute("data-id")
    near[0].click()
    page.see("td", other)
    page.click("button[aria-label=close]")
    page.until(lambda: not page.all("figcaption"), "it does not close")


@NEEDS_BROWSER
def test_an_uploaded_file_finds_itself_and_one_that_is_no_image_is_told(
    page: Page, tmp_path: Path
) -> None:
    row = 17
    (tmp_path / "again.png").write_bytes(image_bytes([row])[0])
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    page.tab("Search")
    page.see("label, button, [role=button]", "Upload an image")
    page.upload(tmp_path / "again.png", "Nearest to again.png")
    page.see(CARDS, "distance 0.0000")
    page.until(lambda: page.cards()[0] == image_ids([row])[0], "the file itself is not the first")
    page.upload(tmp_path / "broken.png", "broken.png: ")
    assert page.cards() == []


@NEEDS_BROWSER
def test_a_search_by_id_finds_others_and_an_unknown_id_is_told(page: Page) -> None:
    page.tab("Search")
    known = image_ids([5])[0]
    page.write("Image id", known[:10] + Keys.ENTER)
    page.see(SAID, f"Nearest to image {known[:10]}")
    page.until(lambda: len(page.cards()) == 12, "not twelve neighbours")
    assert known not in page.cards()
    page.write("Image id", "ffffffffffff" + Keys.ENTER)
    page.see(SAID, "no embedded image has an id that starts with 'ffffffffffff'")


@NEEDS_BROWSER
def test_images_are_leafed_through_and_narrowed_down(page: Page) -> None:
    page.tab("Images")
    page.see(SAID, "1 to 48 of 660 images")
    first = page.cards()
    page.click("button[aria-label='Go to page 2']")
    page.see(SAID, "49 to 96 of 660 images")
    page.until(lambda: not set(page.cards()) & set(first), "the same images again")
    page.choose("Night", NIGHTS[1])
    page.see(SAID, "1 to 48 of 60 images")
    page.choose("Label", "<script>")
    page.see(SAID, "1 to 30 of 30 images")
    page.until(lambda: len(page.cards()) == 30, "not those of that label")
    assert page.see(CARDS).text.startswith(HOSTILE[:20])


@NEEDS_BROWSER
def test_a_hostile_label_is_text_wherever_it_is_shown(page: Page) -> None:
    page.choose("Night", NIGHTS[1])
    page.see("span", HOSTILE)
    page.see("td", HOSTILE)
    page.tab("SQL")
    asked = (
        f"SELECT label, 1 AS \"{HOSTILE.replace(chr(34), '')}\" FROM images WHERE label LIKE '<%'"
    )
    ask(page, asked)
    page.see("td", HOSTILE)
    page.see("th", "<script>")
    ask(page, f'SELECT "{HOSTILE}"')
    page.see(SAID, "<script>")


def ask(page: Page, statement: str) -> None:
    page.write("SELECT statement", statement)
    page.click("button", "Run")


@NEEDS_BROWSER
def test_sql_is_answered_cut_off_and_refused(page: Page) -> None:
    page.tab("SQL")
    ask(page, "SELECT split, count(*) AS many FROM images GROUP BY ALL")
    page.see(SAID, "4 rows in")
    page.see("th", "many")
    ask(page, "SELECT image_id FROM images")
    page.see(SAID, "200 rows in")
    page.see(SAID, "there are more")
    page.click("td button")
    page.see("figcaption", "as staged")
    page.click("button[aria-label=close]")
    page.until(lambda: not page.all("figcaption"), "it does not close")
    for wrong, told in (
        ("DROP VIEW images", "only one SELECT at a time"),
        ("SELECT * FROM read_csv('/etc/passwd')", "Cannot access file"),
        ("SELECT nothing FROM images", "nothing"),
    ):
        ask(page, wrong)
        page.see(SAID, told)


@NEEDS_BROWSER
def test_the_overview_lists_what_there_is(page: Page) -> None:
    page.tab("Overview")
    page.see("caption", "Datasets")
    assert "660" in page.see("table", "images_version").text
    page.see("td", "champion")
    page.see("td", "embed")


@NEEDS_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_of_it_light_and_dark(page: Page, scheme: str) -> None:
    page.prefer(scheme)
    page.size(*NARROW)
    page.browser.refresh()
    for name in ("Anomalies", "Search", "Images", "SQL", "Overview"):
        page.tab(name)
        page.see(SAID)
        title = page.see("[role=tab]", name)
        assert title.rect["x"] >= 0
        assert title.rect["x"] + title.rect["width"] <= NARROW[0]
        inside = "return document.documentElement.scrollWidth"
        assert page.browser.execute_script(inside) <= NARROW[0]
        for one in page.all("input, textarea, [role=combobox], [role=status], table"):
            if one.get_attribute("type") != "file" and one.is_displayed():
                assert one.rect["x"] >= 0
                assert one.accessible_name or one.tag_name == "table" or one.aria_role == "status"
    shade = "return getComputedStyle(document.querySelector('body')).backgroundColor"
    with Image.open(io.BytesIO(page.browser.get_screenshot_as_png())) as shot:
        corner = shot.convert("L").getpixel((5, NARROW[1] - 5))
    assert (corner > 200) == (scheme == "light"), page.browser.execute_script(shade)


def status(explored: Explored, host: str, path: str = "/") -> tuple[int, dict[str, str], str]:
    asked = http.client.HTTPConnection("127.0.0.1", explored.port, timeout=SOON_S)
    asked.request("GET", path, headers={"Host": host})
    answer = asked.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")


def test_another_hosts_name_gets_nothing(explored: Explored) -> None:
    """DNS rebinding: a page of that host would read what this one sends."""
    for host in ("127.0.0.1", "localhost"):
        code, headers, text = status(explored, f"{host}:{explored.port}")
        assert code == 200
        assert "latentlake" in text
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers
    for host in ("evil.example", f"evil.example:{explored.port}", "127.0.0.1.evil.example"):
        for path in ("/", "/ws", "/static/js/bokeh.min.js", "/metadata"):
            assert status(explored, host, path)[0] == 403, (host, path)
    assert status(explored, "localhost", "/autoload.js")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_another_pages_websocket_is_refused(explored: Explored, origin: str) -> None:
    async def connect(of: str) -> None:
        asked = HTTPRequest(f"ws://127.0.0.1:{explored.port}/ws", headers={"Origin": of})
        (await websocket_connect(asked)).close()

    with pytest.raises(HTTPClientError, match="403"):
        asyncio.run(connect(origin))


def test_it_listens_on_loopback_alone(explored: Explored) -> None:
    port = f"{explored.port:04X}"
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert [one for one in listening if one.endswith(f":{port}")] == [f"0100007F:{port}"]
    six = Path("/proc/net/tcp6")
    assert not six.exists() or f":{port} " not in six.read_text()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_has_written_nothing(lake: LakePaths, stop: signal.Signals) -> None:
    root = Path(lake.uri.removeprefix("file://"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    port = free_port()
    with exploring(lake, "--port", str(port)) as held:
        assert held.port == port
        assert status(held, "localhost")[0] == 200
        held.process.send_signal(stop)
        assert held.process.wait(END_S) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_mistakes_are_told(lake: LakePaths, explored: Explored, tmp_path: Path) -> None:
    ran = run_cli("explore", "--no-open", "--lake", tmp_path / "none")
    assert ran.code == 2
    assert "there is no lake" in ran.err
    root = lake.uri.removeprefix("file://")
    ran = run_cli("explore", "--no-open", "--lake", root, "--port", str(explored.port))
    assert ran.code == 2
    assert f"something listens on port {explored.port} already" in ran.err


def test_without_panel_a_sentence_says_what_to_install(lake: LakePaths, tmp_path: Path) -> None:
    (tmp_path / "panel.py").write_text("raise ImportError('not here')")
    command = [str(LATENTLAKE), "explore", "--no-open", "--lake", lake.uri]
    ways = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(ways)}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert ran.returncode == 2
    assert "pip install 'latentlake[explore]'" in ran.stderr
    assert "Traceback" not in ran.stderr
