"""What infra/ tells of a Prefect server that asks who is there: a real one, asked as compose.yaml's
`deploy` and the worker on Kubernetes ask theirs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import free_port
from tests.limits import END_S, SOON_S, START_S, until
from tests.prefect_home import prepare
from tests.unit.infra.files import INFRA, document, documents

pytestmark = pytest.mark.integration

AUTH = "somebody:a word"
SERVICES = document("compose.yaml")["services"]
PYTHON = Path(sys.executable)


def own() -> dict[str, str]:
    """The environment without Prefect's, with the installed programs first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {"PATH": f"{PYTHON.parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of its API. As compose starts it, apart from PostgreSQL and the address."""
    folder = tmp_path_factory.mktemp("prefect")
    told = SERVICES["prefect-server"]["environment"]
    assert "PREFECT_AUTH_STRING:?" in told["PREFECT_SERVER_API_AUTH_STRING"]
    env = own() | {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_HOME": str(folder / "home")}
    prepare(folder / "home")
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "prefect", "server", "start", "--port", str(port)],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
        )

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
            return True
        return False

    try:
        until(ready, START_S)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait(END_S)


def held(server: str, what: str) -> list[dict[str, Any]]:
    head = {"content-type": "application/json"}
    head["authorization"] = f"Basic {b64encode(AUTH.encode()).decode()}"
    asked = urllib.request.Request(f"{server}/{what}/filter", b"{}", head)
    with urllib.request.urlopen(asked, timeout=SOON_S) as answer:
        return json.loads(answer.read())


def environment(told: dict[str, str], server: str, home: Path) -> dict[str, str]:
    """What a container is told of Prefect, with this server and its secret filled in."""
    given = {k: v for k, v in told.items() if k.startswith("PREFECT_")}
    assert "PREFECT_API_URL" in given
    secrets = {k: AUTH for k, v in given.items() if k == "PREFECT_API_AUTH_STRING" or not v}
    return own() | given | {"PREFECT_API_URL": server, "PREFECT_HOME": str(home)} | secrets


def test_deploy_makes_everything_once_however_often_it_runs(server: str, tmp_path: Path) -> None:
    deploy = SERVICES["deploy"]
    for mount in deploy["volumes"]:
        source, target, _ = mount.split(":")
        (tmp_path / Path(target).name).write_text((INFRA / source).read_text())
    env = environment(deploy["environment"], server, tmp_path / "home")
    seen = []
    for _ in range(2):
        done = subprocess.run(
            [*deploy["entrypoint"], *deploy["command"]],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        seen.append([one["id"] for one in held(server, "automations")])
    told = [automation["name"] for automation in document("heartbeat.yaml")["automations"]]
    assert sorted(one["name"] for one in held(server, "automations")) == sorted(told)
    assert sorted(seen[0]) == sorted(seen[1])
    queues = {queue["name"]: queue["concurrency_limit"] for queue in held(server, "work_queues")}
    assert queues["photos"] == 1
    assert len(held(server, "deployments")) == 5
    assert [pool["name"] for pool in held(server, "work_pools")] == ["latentlake"]


def test_the_worker_on_kubernetes_is_let_in(server: str, tmp_path: Path) -> None:
    (worker,) = (d for d in documents(INFRA / "kubernetes/prefect-worker.yaml")
                 if d["kind"] == "Deployment")  # fmt: skip
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value", "") for each in container["env"]}
    env = environment(told, server, tmp_path)

    def asks(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-m", "prefect", "work-pool", "ls"]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    let_in = asks(env)
    assert let_in.returncode == 0, let_in.stdout + let_in.stderr
    # With a key, as for Prefect Cloud, it would not be.
    key = {k: v for k, v in env.items() if k != "PREFECT_API_AUTH_STRING"}
    refused = asks(key | {"PREFECT_API_KEY": AUTH})
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr
