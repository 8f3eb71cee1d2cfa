"""The page of `latentlake explore` in a real browser, for tests."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import SCREENSHOTS, browsing, save_picture
from tests.explored import Explored
from tests.limits import SOON_S

WIDE, NARROW = (1280, 900), (390, 844)
# The library's parts have shadow roots, into which no selector looks by itself.
FOUND = """
const found = [];
const look = root => {
    for (const one of root.querySelectorAll('*')) {
        if (one.matches(arguments[0]) && one.checkVisibility()
            && (one.innerText ?? one.value ?? '').includes(arguments[1])) found.push(one);
        if (one.shadowRoot) look(one.shadowRoot);
    }
};
look(document);
return found;
"""
CARDS = "button[data-id]"
SAID = "[role=status]"


class Page:
    """What somebody at the browser sees and does."""

    def __init__(self, browser: webdriver.Chrome, explored: Explored) -> None:
        self.browser, self.explored = browser, explored
        self.size(*WIDE)
        browser.get(explored.url)

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)

    def all(self, css: str, text: str = "") -> list[WebElement]:
        return self.browser.execute_script(FOUND, css, text)

    def see(self, css: str, text: str = "") -> WebElement:
        return self.until(lambda: self.all(css, text), f"no {css} with {text!r}")[0]

    def until(self, done: Callable[[], Any], message: str) -> Any:
        patient = WebDriverWait(self.browser, SOON_S, ignored_exceptions=[WebDriverException])
        try:
            return patient.until(lambda _: done())
        except TimeoutException:
            raise AssertionError(f"{message}; {self.state}") from None

    @property
    def state(self) -> str:
        """For whoever reads of a failure."""
        text = self.browser.execute_script("return document.body.innerText")
        logged = [entry["message"] for entry in self.browser.get_log("browser")]
        return f"said: {self.said}; shown: {text!r}; logged: {logged[-5:]}"

    @property
    def said(self) -> list[str]:
        return [one.text for one in self.all(SAID)]

    def click(self, css: str, text: str = "") -> None:
        def clicked() -> bool:
            self.press(self.see(css, text))
            return True

        self.until(clicked, f"{css} with {text!r} cannot be clicked")

    def press(self, element: WebElement) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def tab(self, name: str) -> None:
        self.until(lambda: any(self.said), "it never said anything")  # nor hears before that
        self.click("[role=tab]", name)
        self.until(lambda: self.all("[role=tab][aria-selected=true]", name), f"no tab {name}")

    def choose(self, label: str, option: str) -> None:
        """Of a list that has this label."""
        box = self.until(
            lambda: [one for one in self.all("[role=combobox]") if self.label_of(one) == label],
            f"no list {label}",
        )
        self.press(box[0])
        self.click("[role=menuitem]", option)

    def label_of(self, element: WebElement) -> str:
        """As assistive technology is told."""
        return element.accessible_name.split("\n")[0].strip()

    def write(self, label: str, text: str) -> None:
        """Over what stands in a field."""
        self.field(label).click()
        keys = ActionChains(self.browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL)
        keys.send_keys(text).perform()

    def field(self, label: str) -> WebElement:
        inputs = self.until(
            lambda: [one for one in self.all("input, textarea") if self.named(one, label)],
            f"no field {label}",
        )
        return inputs[0]

    def named(self, element: WebElement, label: str) -> bool:
        return element.accessible_name.startswith(label)

    def upload(self, path: Path, told: str) -> None:
        """Until it is told. Sent again where nothing is done: a busy page drops an upload."""
        hidden = FOUND.replace("one.checkVisibility()", "true")
        for _ in range(5):
            self.browser.execute_script(hidden, "input[type=file]", "")[0].send_keys(str(path))
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline:
                if self.all(SAID, "Embedding it") or self.all(SAID, told):
                    self.see(SAID, told)
                    return
                time.sleep(0.05)
        self.see(SAID, told)

    def cards(self) -> list[str]:
        return [one.get_attribute("data-id") for one in self.all(CARDS)]

    def picture(self, name: str) -> None:
        """For the docs, by `make screenshots`."""
        if not SCREENSHOTS:
            return
        shots = [b""]

        def same() -> bool:
            shots.append(self.browser.get_screenshot_as_png())
            return shots[-1] == shots[-2]

        self.until(same, "nothing stands still")
        save_picture(shots[-1], name)

    def requests(self) -> list[str]:
        """Addresses that the browser has requested since the last time."""
        events = [json.loads(e["message"])["message"] for e in self.browser.get_log("performance")]
        kinds = {"Network.requestWillBeSent": "request", "Network.webSocketCreated": None}
        asked = []
        for event in events:
            if event["method"] in kinds:
                told = event["params"]
                asked.append(told["url"] if "url" in told else told["request"]["url"])
        return asked

    def nothing_went_wrong(self) -> None:
        """No complaint, no request to anywhere else, no script of the data's."""
        complaints = [e for e in self.browser.get_log("browser") if e["level"] == "SEVERE"]
        assert not complaints
        own = self.explored.url.removeprefix("http://")
        begins = ("data:", "chrome", *(f"{kind}{own}" for kind in ("http://", "ws://")))
        begins += (f"blob:http://{own}",)
        asked = self.requests()
        assert asked
        assert [address for address in asked if not address.startswith(begins)] == []
        assert self.browser.execute_script("return window.taken") is None


@contextlib.contextmanager
def explored_by(explored: Explored, folder: Path) -> Iterator[Page]:
    """A browser at the page; when the block ends, nothing may have gone wrong."""
    with browsing(folder, hears=True) as browser:
        made = Page(browser, explored)
        yield made
        made.nothing_went_wrong()
