"""Prefect's page, as `latentlake serve` starts it, in a real browser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import NEEDS_BROWSER, RENAME_FOLDER, SCREENSHOTS, browsing, save_picture
from tests.helpers import ok, run_cli, write_source
from tests.limits import RUN_S, SOON_S, until
from tests.serving import Served, serving, settings_of
from tests.stranger import HOST, Came, attack, strangers_page

pytestmark = [pytest.mark.integration, NEEDS_BROWSER]
NIGHT = "2026-01-01"
# Messages come and go by themselves: every one is kept.
KEEP_TOASTS = """
    window.toasts = [];
    new MutationObserver(() => {
        for (const toast of document.querySelectorAll('.p-toast-container > *'))
            window.toasts.push(toast.innerText);
    }).observe(document.body, {childList: true, subtree: true});
"""
NO_ANIMATIONS = """
    const style = document.createElement('style');
    style.textContent = '* {transition: none !important; animation: none !important}';
    document.head.append(style);
"""


def saying(text: str) -> str:
    """The innermost thing that says this and nothing else."""
    return f'//*[normalize-space()="{text}" and not(*)]'


def holding(text: str) -> str:
    """Something that says this among other things."""
    return f'//*[text()[contains(., "{text}")]]'


def button(text: str) -> str:
    return f'//button[normalize-space()="{text}"]'


def field(name: str) -> str:
    """Of the form: a label with what belongs to it."""
    return f'//label[starts-with(normalize-space(), "{name}")]/../..'


def link(path: str, text: str = "") -> str:
    return f'//a[contains(@href, "{path}") and contains(normalize-space(), "{text}")]'


class Page:
    """What somebody at the browser sees and does."""

    def __init__(self, browser: webdriver.Chrome, served: Served) -> None:
        self.browser, self.served = browser, served
        home = served.url.removesuffix("/api")
        browser.get(f"{home}/deployments")
        self.log_in()
        browser.get(f"{home}/deployments")  # without what was said before the login
        browser.execute_script(KEEP_TOASTS + NO_ANIMATIONS)

    def log_in(self) -> None:
        """By what `latentlake serve --show-login` prints."""
        shown = ok(run_cli("serve", "--show-login", "--home", self.served.folder / "home")).out
        self.see('//input[@type="password"]').send_keys(shown.strip())
        self.click(button("Login"))
        self.see(holding("Deployments"))

    def reload(self) -> None:
        self.nothing_went_wrong()
        self.browser.refresh()
        self.browser.execute_script(KEEP_TOASTS + NO_ANIMATIONS)

    def see(self, what: str, seconds: float = SOON_S) -> WebElement:
        """Waits until it is there to be seen."""

        def visible(browser: webdriver.Chrome) -> WebElement | None:
            found = browser.find_elements(By.XPATH, what)
            return next((one for one in found if one.is_displayed()), None)

        return self._until(visible, f"{what} is not to be seen", seconds)

    def click(self, what: str) -> None:
        def clicked(_: webdriver.Chrome) -> bool:
            self.see(what).click()
            return True

        # The page may put another element in its place meanwhile, or one above it.
        self._until(clicked, f"{what} cannot be clicked", SOON_S)

    def _until(self, done, message: str, seconds: float):
        patient = WebDriverWait(self.browser, seconds, ignored_exceptions=[WebDriverException])
        try:
            return patient.until(done)
        except TimeoutException:
            raise AssertionError(f"{message} on this page:\n{self.text}") from None

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def open_form(self) -> None:
        """Of a run of nightly/photos."""
        flow, deployment = link("/flows/flow/", "nightly"), link("/deployments/deployment/")
        self.click(f"{flow}/ancestor::*[.{deployment}][1]{deployment}")
        self.click(saying("Description"))
        self.see(saying(self.served.deployment("nightly/photos")["description"]))
        self.click(button("Run"))
        self.click(saying("Custom run"))
        self.see(button("Submit"))

    def nothing_went_wrong(self) -> None:
        """No traceback is shown, and no message ever was but that a run was begun."""
        assert "Traceback" not in self.text
        for toast in self.browser.execute_script("return window.toasts"):
            assert "scheduled to start" in toast

    def picture(self, name: str, height: int) -> None:
        """For docs/operations.md, by `make screenshots`."""
        if not SCREENSHOTS:
            return
        around = self.browser.execute_script("return window.outerHeight - window.innerHeight")
        self.browser.set_window_size(1440, height + around)
        self.browser.execute_script(RENAME_FOLDER, str(self.served.folder), "/srv/latentlake")
        save_picture(self._still(), name)
        self.browser.set_window_size(1440, 1000)  # a list shows what fits

    def _still(self) -> bytes:
        shots = [b""]

        def same(browser: webdriver.Chrome) -> bool:
            shots.append(browser.get_screenshot_as_png())
            return shots[-1] == shots[-2]

        self._until(same, "nothing stands still", SOON_S)
        return shots[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("browser")
    write_source(folder / "source" / "a.parquet", range(300), broken=[5])
    with serving(folder, settings_of(folder, "photos")) as held:
        yield held


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path) as browser:
        yield Page(browser, served)


def runs(served: Served) -> list[dict]:
    return served.call("POST", "/flow_runs/filter", {})


def see_in_time(page: Page, what: str) -> None:
    """The server writes down what happened a while after it did, and a page does not ask again."""
    for _ in range(10):
        page.reload()
        with contextlib.suppress(AssertionError):
            page.see(what, 6)
            return
    page.see(what)


@pytest.mark.parametrize("rebound", [False, True], ids=["a foreign page", "a name rebound to us"])
def test_a_stranger_s_page_gets_nothing_done_and_hears_nothing(
    served: Served, tmp_path: Path, rebound: bool
) -> None:
    ran = tmp_path / "ran"
    deployment = served.deployment("nightly/photos")["id"]
    before = runs(served)
    with strangers_page() as foreign, browsing(tmp_path, knows=HOST) as browser:
        own = served.url.replace("127.0.0.1", HOST)  # as if it had been the stranger's all along
        page, api = (own.removesuffix("/api"), own) if rebound else (foreign, served.url)
        came = attack(browser, page, api, deployment, f"touch {ran}")
    refused = 403 if rebound else "blocked"
    assert came == Came(read=refused, write=refused, blind="sent", listen="closed")
    assert runs(served) == before
    assert not ran.exists()


def submit(page: Page) -> None:
    """Until there is a run: a busy page that is drawn anew drops a click."""
    for _ in range(5):
        page.click(button("Submit"))
        with contextlib.suppress(AssertionError):
            until(lambda: runs(page.served), 30)
            return
    raise AssertionError(f"no run was begun; the page says:\n{page.text}")


def test_the_form_explains_its_fields_and_refuses_a_wrong_night(page: Page) -> None:
    page.open_form()
    fields = page.served.deployment("nightly/photos")["parameter_openapi_schema"]["properties"]
    assert set(fields) == {"config", "night", "retrain", "lake"}
    for name, about in fields.items():
        assert about["description"] in page.see(field(name)).text
    # What a calendar gives is a date; in a calendar nothing else can be typed.
    page.click(field("night") + button("date"))
    day = page.see(field("night") + '//input[@type="date"]')
    day.send_keys("yesterday")
    assert not day.get_attribute("value")
    page.click(field("night") + "//label//button")
    page.click(saying("Use JSON input"))
    for wrong in ("yesterday", "2026-13-45"):
        page.see(field("night") + "//textarea").send_keys(Keys.CONTROL + "a")
        page.see(field("night") + "//textarea").send_keys(f'"{wrong}"')
        page.click(button("Submit"))
        page.see(saying(f"'{wrong}' is not valid under any of the given schemas"))
    assert runs(page.served) == []
    page.nothing_went_wrong()


def test_a_run_started_by_the_form_shows_its_summary_and_its_refusals(page: Page) -> None:
    page.open_form()
    page.click(field("night") + button("date"))
    page.see(field("night") + '//input[@type="date"]').send_keys("01012026")
    day = page.see(field("night") + '//input[@type="date"]')
    assert day.get_attribute("value") == NIGHT
    page.click(field("retrain") + '//*[@role="switch"]')
    page.see(field("retrain") + '//*[@role="switch" and @aria-checked="true"]')
    page.picture("page-form", 1090)
    submit(page)
    page.click(link("/runs/flow-run/"))
    page.see(saying("Completed"), RUN_S)
    page.see(saying(f"nightly photos {NIGHT}"))
    (run,) = runs(page.served)
    assert run["parameters"]["night"] == NIGHT
    assert run["parameters"]["retrain"]
    page.see(holding("Finished in state Completed()"))
    see_in_time(page, saying("6 Task runs"))
    page.click(saying("Artifacts"))
    page.see(link("/artifacts/artifact/", "refused-photos"))
    page.picture("page-run", 860)
    page.click(link("/artifacts/artifact/", "summary-photos"))
    page.see(holding("staged 299"))
    page.see(saying("Trained because there is no champion yet."))
    page.picture("page-summary", 860)
    page.browser.back()
    page.click(saying("Artifacts"))
    page.click(link("/artifacts/artifact/", "refused-photos"))
    page.see("//table" + holding("image file is truncated"))
    page.browser.back()
    page.click(saying("Artifacts"))
    page.click(link("/artifacts/artifact/", "pictures-photos"))
    flagged = page.see('//img[contains(@alt, "flagged anomalies")]')
    assert int(flagged.get_attribute("naturalWidth")) > 200
    page.picture("page-pictures", 560)
    page.nothing_went_wrong()
    page.click(link("/runs", "Runs"))
    page.see(saying("Hide subflows"))
    page.see(link("/runs/flow-run/", f"nightly photos {NIGHT}"))
    page.picture("page-runs", 860)
    page.nothing_went_wrong()
