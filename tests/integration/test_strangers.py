"""What keeps a foreign web page from a Prefect server, line by line; a real server and browser.

`test_browser.py` attacks `latentlake serve` as it is. Here are the others for comparison, the open
server first: were the attack too weak, all would seem closed. Only that one is part of the suite;
`make attack` tries all.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.login import login_of, secured
from flows.prefect_env import server_environment
from tests.browser import NEEDS_BROWSER, browsing
from tests.helpers import free_port
from tests.prefect_home import prepare
from tests.rounds import ROUNDS
from tests.serving import Served, serving_process
from tests.stranger import HOST, Came, attack, strangers_page

pytestmark = [pytest.mark.integration, NEEDS_BROWSER]
AUTH = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
CORS = ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS",)
CSRF = ("PREFECT_SERVER_CSRF_PROTECTION_ENABLED",)
# Which lines a server has, what each way of a page of another origin comes to, and of a name that
# is rebound to this machine. A run that was created is code that a worker runs.
OPEN = ((), Came(200, 201, "sent", "heard"), Came(200, 201, "sent", "heard"))
ROWS = [
    OPEN,
    (CORS, Came("blocked", "blocked", "sent", "heard"), Came(200, 201, "sent", "heard")),
    (CSRF, Came(200, 201, "sent", "heard"), Came(200, 201, "sent", "heard")),
    (AUTH, Came(401, 401, "sent", "closed"), Came(401, 401, "sent", "closed")),
    (
        (*AUTH, *CORS, *CSRF),
        Came("blocked", "blocked", "sent", "closed"),
        Came(403, 403, "sent", "closed"),
    ),
]
NAMES = ["nothing", "CORS", "CSRF", "auth", "all three"]


@contextlib.contextmanager
def serving_with(folder: Path, lines: tuple[str, ...]) -> Iterator[Served]:
    port, home = free_port(), folder / "home"
    prepare(home)
    login = login_of(home)
    env = server_environment(f"http://127.0.0.1:{port}/api", home, login)
    without = {name for name in secured("", "") if name not in lines}
    if AUTH[0] in without:
        (home / "login").unlink()
    env = {name: value for name, value in env.items() if name not in without}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with serving_process(folder, port, command, env) as served:
        yield served


@pytest.mark.parametrize(
    ("lines", "foreign", "rebound"),
    ROWS if ROUNDS > 1 else [OPEN],
    ids=NAMES if ROUNDS > 1 else NAMES[:1],
)
def test_what_a_stranger_s_page_gets_done(
    tmp_path: Path, lines: tuple[str, ...], foreign: Came, rebound: Came
) -> None:
    with (
        serving_with(tmp_path, lines) as served,
        strangers_page() as page,
        browsing(tmp_path, knows=HOST) as browser,
    ):
        deployment = made(served)
        came = attack(browser, page, served.url, deployment, "id")
        runs = len(served.call("POST", "/flow_runs/filter", {}))
        own = served.url.replace("127.0.0.1", HOST)
        later = attack(browser, own.removesuffix("/api"), own, deployment, "id")
        more = len(served.call("POST", "/flow_runs/filter", {})) - runs
    assert (came, later) == (foreign, rebound)
    assert (runs > 0, more > 0) == ((AUTH[0] not in lines,) * 2)


def made(served: Served) -> str:
    """The id of a deployment."""
    flow = served.call("POST", "/flows/", {"name": "nightly"})["id"]
    return served.call("POST", "/deployments/", {"name": "photos", "flow_id": flow})["id"]
