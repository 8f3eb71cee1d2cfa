"""What we register at a Prefect server, at a real one: deployments, their queue, the watches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from flows.login import login_of
from flows.prefect_env import server_environment
from tests.helpers import ROOT, free_port
from tests.limits import RUN_S, until
from tests.prefect_home import prepare
from tests.serving import Served, serving_process, settings_of

pytestmark = pytest.mark.integration
POOL = "latentlake"
WINDOW_S = 10  # the shortest that Prefect has
# Of configs, a path a line.
DEPLOY = """
import sys
from flows.serve import deployments
from flows.nightly.settings import load_nightly
for path in map(str.strip, sys.stdin):
    deployments.make_pool("latentlake")
    deployments.deploy(path, load_nightly(path), "latentlake", ".")
    print("deployed", flush=True)
"""
WATCH = f"""
from flows.serve import automations
automations.LOST_AFTER_S = automations.NEVER_BEGAN_S = {WINDOW_S}
automations.watch_runs()
"""
SLEEPER = """
import contextlib, sys, time
from prefect import flow, tags
@flow(log_prints=False)
def sleeper(seconds: float) -> None:
    time.sleep(seconds)
with tags(*sys.argv[2:]):
    sleeper(float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Prefect server without a worker."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    home = folder / "home"
    home.mkdir()
    env = server_environment(f"http://127.0.0.1:{port}/api", home, login_of(home))
    prepare(home)
    with serving_process(folder, port, command, env) as held:
        yield held


def python(served: Served, code: str, *arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
    """In a process of its own, which has Prefect's settings as they are at its beginning."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {**served.client(), "PREFECT_HOME": str(served.folder / "client")}
    words = [sys.executable, "-c", code, *(str(word) for word in arguments)]
    return subprocess.Popen(words, env=env | {"PYTHONPATH": str(ROOT)}, **more)


class Deploy:
    """Does what `serve` does with a config when it starts."""

    def __init__(self, server: Served, process: subprocess.Popen[bytes]) -> None:
        self.server, self.process = server, process

    def __call__(self, dataset: str, **more: Any) -> None:
        path = self.server.folder / f"{dataset}.yaml"
        path.write_text(yaml.safe_dump(settings_of(self.server.folder, dataset, **more)))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n".encode())
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"deployed\n"


@pytest.fixture(scope="module")
def deploy(server: Served) -> Iterator[Deploy]:
    with python(server, DEPLOY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Deploy(server, process)


def crons(deployment: dict[str, Any]) -> dict[str, bool]:
    return {one["schedule"]["cron"]: one["active"] for one in deployment["schedules"]}


def test_what_was_done_on_a_page_stays_when_serve_starts_again(
    server: Served, deploy: Deploy
) -> None:
    deploy("kept", schedule={"cron": "0 2 * * *"})
    maintain, nightly = (server.deployment(f"{name}/kept") for name in ("maintain", "nightly"))
    weekly = {"schedule": {"cron": "0 6 * * 0", "timezone": "Europe/Berlin"}, "active": False}
    for held in (maintain, nightly):
        server.call("POST", f"/deployments/{held['id']}/schedules", [weekly])
    server.call("PATCH", f"/deployments/{maintain['id']}", {"paused": True})
    (ours,) = nightly["schedules"]
    at = f"/deployments/{nightly['id']}/schedules/{ours['id']}"
    server.call("PATCH", at, {"active": False})

    deploy("kept", schedule={"cron": "0 2 * * *"})
    assert crons(server.deployment("maintain/kept")) == {"0 6 * * 0": False}
    assert server.deployment("maintain/kept")["paused"] is True
    assert server.deployment("nightly/kept")["paused"] is False
    assert crons(server.deployment("nightly/kept")) == {"0 2 * * *": False, "0 6 * * 0": False}
    # The config's own follows the config.
    deploy("kept", schedule={"cron": "0 3 * * *"})
    assert crons(server.deployment("nightly/kept")) == {"0 3 * * *": False, "0 6 * * 0": False}
    server.call("PATCH", at, {"active": True})
    deploy("kept", schedule={"cron": "0 4 * * *"})
    assert crons(server.deployment("nightly/kept")) == {"0 4 * * *": True, "0 6 * * 0": False}
    deploy("kept")
    assert crons(server.deployment("nightly/kept")) == {"0 6 * * 0": False}


def test_a_config_that_loses_its_only_schedule_has_none(server: Served, deploy: Deploy) -> None:
    deploy("once", schedule={"cron": "0 2 * * *"})
    assert crons(server.deployment("nightly/once")) == {"0 2 * * *": True}
    deploy("once")
    assert crons(server.deployment("nightly/once")) == {}


def test_a_schedule_of_an_earlier_version_is_taken_over(server: Served, deploy: Deploy) -> None:
    deploy("older", schedule={"cron": "0 2 * * *"})
    held = server.deployment("nightly/older")
    (ours,) = held["schedules"]
    server.call("DELETE", f"/deployments/{held['id']}/schedules/{ours['id']}")
    unnamed = {"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": True}
    server.call("POST", f"/deployments/{held['id']}/schedules", [unnamed])
    deploy("older", schedule={"cron": "0 2 * * *"})
    deploy("older", schedule={"cron": "0 5 * * *"})
    assert crons(server.deployment("nightly/older")) == {"0 5 * * *": True}


def handed_out(served: Served) -> list[str]:
    """The runs that a worker of the pool would be given now."""
    asked = {"scheduled_before": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 5))}
    held = served.call("POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", asked)
    return [each["flow_run"]["id"] for each in held]


def set_state(served: Served, run_id: str, kind: str, **more: Any) -> None:
    body = {"state": {"type": kind, **more}, "force": True}
    served.call("POST", f"/flow_runs/{run_id}/set_state", body)


def test_the_flows_of_a_dataset_run_one_at_a_time(server: Served, deploy: Deploy) -> None:
    for dataset in ("a", "b"):
        deploy(dataset)
    first = server.start("nightly/a")
    second, third = server.start("maintain/a"), server.start("train/a")
    other = server.start("nightly/b")
    assert set(handed_out(server)) == {first, other}
    set_state(server, first, "PENDING")
    assert handed_out(server) == [other]
    set_state(server, first, "RUNNING")
    assert handed_out(server) == [other]
    waiting = [server.run(each)["state_type"] for each in (second, third)]
    assert waiting == ["SCHEDULED"] * 2
    set_state(server, first, "CRASHED")  # as the watch does it
    assert set(handed_out(server)) == {second, other}
    # What somebody set on the queue's page stays.
    queue = server.call("GET", f"/work_pools/{POOL}/queues/a")
    assert queue["concurrency_limit"] == 1
    server.call("PATCH", f"/work_pools/{POOL}/queues/a", {"concurrency_limit": 2})
    deploy("a")
    assert server.call("GET", f"/work_pools/{POOL}/queues/a")["concurrency_limit"] == 2


def runs_of(served: Served, name: str) -> list[dict[str, Any]]:
    return served.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": [name]}}})


def begun(served: Served, tags: list[str], *states: tuple[str, str]) -> str:
    """A run that went through these states, type and name, and of which nobody hears again."""
    flow = served.call("POST", "/flows/", {"name": "by hand"})["id"]
    run_id = served.call("POST", "/flow_runs/", {"flow_id": flow, "tags": tags})["id"]
    for kind, name in states:
        set_state(served, run_id, kind, name=name)
    return run_id


@pytest.fixture(scope="module")
def watched(server: Served) -> Served:
    assert python(server, WATCH).wait(RUN_S) == 0
    time.sleep(10)  # the server takes automations in a while after it has stored them
    return server


def test_only_our_runs_are_watched(watched: Served) -> None:
    """Others beat every 180 s by default; a run of ours may be lost before its first beat."""
    foreign = python(watched, SLEEPER, 4 * WINDOW_S)
    ours = python(watched, SLEEPER, 600, "latentlake", "photos")
    running = ("RUNNING", "Running")
    silent = begun(watched, ["latentlake"], running)
    again = begun(watched, ["latentlake"], ("RUNNING", "Rerunning"))
    unbegun = begun(watched, ["latentlake"], ("PENDING", "Pending"))
    alone = begun(watched, ["photos"], ("PENDING", "Pending"), running)
    resting = begun(watched, ["latentlake"], running, ("PAUSED", "Suspended"))

    def killed() -> dict[str, Any] | None:
        held = [run for run in runs_of(watched, "sleeper") if "latentlake" in run["tags"]]
        return held[0] if held and held[0]["state_type"] == "RUNNING" else None

    lost = until(killed)["id"]
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    for run_id in (lost, silent, again, unbegun):
        run = watched.wait(run_id)
        assert run["state_type"] == "CRASHED"
        word = "did not begin" if run_id == unbegun else "no heartbeat"
        assert word in run["state"]["message"]
    assert foreign.wait(RUN_S) == 0
    assert [run["state_type"] for run in runs_of(watched, "sleeper") if not run["tags"]] == [
        "COMPLETED"
    ]
    assert watched.run(alone)["state_type"] == "RUNNING"
    assert watched.run(resting)["state_type"] == "PAUSED"


def test_the_automation_of_the_guide_hears_of_every_end_that_is_none(watched: Served) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    (told,) = [
        one
        for block in blocks
        for one in block.get("automations", [])
        if "prefect.flow-run.Crashed" in one["trigger"]["expect"]
    ]
    watched.call("POST", "/automations/", told | {"actions": [{"type": "do-nothing"}]})

    def heard() -> set[str]:
        held = watched.events("prefect.automation.triggered")
        events = [event["payload"]["triggering_event"] for event in held]
        resources = [event["resource"]["prefect.resource.id"] for event in events if event]
        return {name.removeprefix("prefect.flow-run.") for name in resources}

    time.sleep(10)  # as above
    running = ("RUNNING", "Running")
    crashed = begun(watched, ["latentlake"], running)  # by the watch
    failed = begun(watched, ["latentlake"], running, ("FAILED", "Failed"))
    late = begun(watched, ["latentlake"], running, ("FAILED", "TimedOut"))
    foreign = begun(watched, [], running, ("FAILED", "Failed"))
    good = begun(watched, ["latentlake"], running, ("COMPLETED", "Completed"))
    until(lambda: heard() >= {crashed, failed, late})
    assert not heard() & {foreign, good}
