"""`make machine`: what a few tests need of the machine, in front of `make test`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.limits import COMMAND_S

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="no make")


def machine(folder: Path, user: int, apt_get: str, *there: str) -> tuple[str, str]:
    """What is said, and what apt-get was requested, on a machine that has these commands."""
    asked = folder / "asked"
    scripts = dict.fromkeys(("sed", *there), "") | {"id": f"echo {user}"}
    if apt_get:
        scripts["apt-get"] = f'echo "$@" >> {asked}; {apt_get}'
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [str(MAKE), "-s", "machine"],
        cwd=ROOT,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, asked.read_text() if asked.exists() else ""


def test_a_browser_and_ip_are_installed_where_they_are_missing(tmp_path: Path) -> None:
    said, asked = machine(tmp_path, 0, "true")
    assert said == "machine: apt-get install chromium chromium-driver iproute2\n"
    update, install = asked.splitlines()
    assert update.startswith("update")
    assert install.endswith("--no-install-recommends chromium chromium-driver iproute2")


def test_only_what_is_missing_is_installed(tmp_path: Path) -> None:
    said, _ = machine(tmp_path, 0, "true", "chromium", "ip")
    assert said == "machine: apt-get install chromium chromium-driver\n"


def test_where_all_is_there_nothing_is_said_or_done(tmp_path: Path) -> None:
    assert machine(tmp_path, 0, "true", "chromium", "chromedriver", "ip") == ("", "")


@pytest.mark.parametrize(("user", "apt_get"), [(1000, "true"), (0, "")])
def test_where_it_may_not_be_installed_one_line_says_so(
    tmp_path: Path, user: int, apt_get: str
) -> None:
    said, asked = machine(tmp_path, user, apt_get, "chromium", "chromedriver")
    assert said == "machine: some tests skip without iproute2\n"
    assert not asked


def test_an_installation_that_fails_fails_nothing(tmp_path: Path) -> None:
    said, _ = machine(tmp_path, 0, "exit 100")
    assert said.endswith("machine: that did not work; some tests skip\n")
