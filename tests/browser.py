"""A real browser, without a window, for tests; and pictures of what it shows, for the docs."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.helpers import ROOT
from tests.serving import descendants

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium with its driver: apt-get install chromium chromium-driver",
)
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=1440,1000 --hide-scrollbars --lang=en-US"
)
SCREENSHOTS = os.environ.get("LATENTLAKE_SCREENSHOTS")  # a folder, by `make screenshots`
# A picture for the docs has no temporary folder in it.
RENAME_FOLDER = """
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        texts.currentNode.data = texts.currentNode.data.replaceAll(arguments[0], arguments[1]);
    for (const area of document.querySelectorAll('textarea'))
        area.value = area.value.replaceAll(arguments[0], arguments[1]);
"""


@contextlib.contextmanager
def browsing(
    folder: Path, *, hears: bool = False, knows: str | None = None
) -> Iterator[webdriver.Chrome]:
    """folder: for its profile. hears: its console, and what it asks the network for. knows: a host
    name, which is this machine."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in [*OPTIONS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(option)
    if knows is not None:
        options.add_argument(f"--host-resolver-rules=MAP {knows} 127.0.0.1")
    if hears:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(executable_path=DRIVER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # it downloads no driver
        browser = webdriver.Chrome(options=options, service=service)
    try:
        yield browser
    finally:
        own = descendants(service.process.pid)
        try:
            browser.quit()
        finally:
            service.stop()
            for pid in own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def save_picture(png: bytes, name: str) -> None:
    """In the docs' folder, small."""
    assert SCREENSHOTS
    with Image.open(io.BytesIO(png)) as shot:
        few = shot.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(ROOT / SCREENSHOTS / f"{name}.png", optimize=True)
