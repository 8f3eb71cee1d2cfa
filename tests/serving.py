"""`latentlake serve` for tests: its configs, its process, its server's API."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import LATENTLAKE, free_port
from tests.limits import END_S, RUN_S, SOON_S, START_S, until
from tests.prefect_home import prepare

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def settings_of(folder: Path, dataset: str, **more: Any) -> dict[str, Any]:
    return {
        "lake": str(folder / "lake"),
        "stage": {
            "source": str(folder / "source"),
            "dataset": dataset,
            "height": 28,
            "width": 28,
            "channels": 1,
        },
        "train": {
            "dataset": dataset,
            "model": dataset,
            "epochs": 1,
            "latent_dim": 4,
            "network": {"kind": "mlp", "widths": [32]},
        },
        "embed": {"dataset": dataset, "model": dataset, "alpha": 0.9},  # something is flagged
        "evaluate": {"samples": 4, "resamples": 100},
        "ray": {"cpus": 2},
        **more,
    }


class Served:
    """The server's API, as its UI uses it."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}/api"
        self.process = process

    def login(self) -> str | None:
        """USER:PASSWORD, once the server's home has one."""
        path = self.folder / "home" / "login"
        return path.read_text() if path.exists() else None

    def authorized(self) -> dict[str, str]:
        login = self.login()
        return {"authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}

    @functools.cached_property
    def token(self) -> dict[str, str]:
        """What a change needs where the server is protected against forged ones."""
        try:
            token = self.call("GET", "/csrf-token?client=tests")["token"]
        except urllib.error.HTTPError as error:
            if error.code != 422:  # it is not
                raise
            return {}
        return {"prefect-csrf-token": token, "prefect-csrf-client": "tests"}

    def client(self) -> dict[str, str]:
        """The environment of a command that speaks to the server."""
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.login() or ""}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Raises HTTPError, whose body has the reason."""
        data = json.dumps(body).encode() if body is not None else None
        kind = {"content-type": "application/json", **self.authorized()}
        if method != "GET":
            kind |= self.token
        asked = urllib.request.Request(self.url + path, data, kind, method=method)
        only_reads = method == "GET" or path.endswith("/filter")
        for left in reversed(range(30)):
            try:
                with urllib.request.urlopen(asked, timeout=SOON_S) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                # SQLite is locked: Prefect's own clients try again, too.
                if error.code != 503 or not left:
                    raise
                time.sleep(1)
            except TimeoutError:
                # A disk that others write to holds SQLite up for longer, too.
                if not only_reads or left < 27:
                    raise
        raise AssertionError("unreachable")

    def deployment(self, name: str) -> dict[str, Any]:
        return self.call("GET", f"/deployments/name/{name}")

    def start(self, name: str, **parameters: Any) -> str:
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = self.call(
            "POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body
        )
        return made["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.call("GET", f"/flow_runs/{run_id}")

    def wait(self, run_id: str) -> dict[str, Any]:
        return until(lambda: (run := self.run(run_id))["state_type"] in ENDED and run, RUN_S, 0.5)

    def artifacts(self, run_id: str) -> dict[str, Any]:
        asked = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        held = self.call("POST", "/artifacts/filter", asked)
        return {artifact["key"]: artifact["data"] for artifact in held if artifact["key"]}

    def log(self, run_id: str) -> str:
        asked = {"logs": {"flow_run_id": {"any_": [run_id]}}}
        return "\n".join(line["message"] for line in self.call("POST", "/logs/filter", asked))

    def events(self, prefix: str) -> list[dict[str, Any]]:
        asked = {"filter": {"event": {"prefix": [prefix]}}}
        return self.call("POST", "/events/filter", asked)["events"]


@contextlib.contextmanager
def serving(folder: Path, *configs: dict[str, Any], new_home: bool = False) -> Iterator[Served]:
    """`latentlake serve` of configs, with all of its deployments there; ended with the block."""
    paths = []
    for settings in configs:
        paths.append(folder / f"{settings['stage']['dataset']}.yaml")
        paths[-1].write_text(yaml.safe_dump(settings))
    if not new_home:
        prepare(folder / "home")
    port = free_port()
    command = [LATENTLAKE, "serve", *paths, "--port", str(port), "--home", folder / "home"]
    with serving_process(folder, port, command, {}) as held:
        until(lambda: _there(held, f"maintain/{paths[-1].stem}"), START_S)
        yield held


def _there(served: Served, deployment: str) -> bool:
    with contextlib.suppress(urllib.error.HTTPError):
        return bool(served.deployment(deployment))
    return False


@contextlib.contextmanager
def serving_process(
    folder: Path, port: int, command: list[Any], env: dict[str, str]
) -> Iterator[Served]:
    """A command that starts a Prefect server, when that answers; ended with the block."""
    log = (folder / "serve.log").open("wb")
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    process = subprocess.Popen(command, cwd=folder, stderr=log, stdout=log, env=own | env)
    held = Served(folder, port, process)

    def ready() -> bool:
        assert process.poll() is None, (folder / "serve.log").read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(held.call("GET", "/health"))
        return False

    try:
        until(ready, START_S)
        yield held
    finally:
        process.terminate()
        process.wait(END_S)
        log.close()


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    own = children(pid)
    return [*own, *(below for child in own for below in descendants(child))]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
