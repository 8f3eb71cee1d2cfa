"""`latentlake serve`: a real Prefect server and worker, runs made as the UI makes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.prefect_env import HEARTBEAT_S, WORKER_ASKS_S
from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.helpers import LATENTLAKE, ROOT, free_port, ok, run_cli, write_source
from tests.limits import END_S, RUN_S, until
from tests.serving import (
    ENDED,
    Served,
    children,
    command_of,
    descendants,
    serving,
    settings_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    write_source(folder / "source" / "a.parquet", range(300), broken=[5])
    # One that comes by itself, every minute, and one that takes long.
    schedule = {"cron": "* * * * *", "timezone": "Europe/Berlin"}
    slow = settings_of(folder, "slow")
    slow["train"] |= {"epochs": 500_000, "run": {"checkpoint_s": 1}}
    hasty = settings_of(folder, "hasty", timeouts={"train_s": 6.0})
    hasty["train"] |= {"epochs": 500_000}
    scheduled = settings_of(folder, "d", schedule=schedule)
    with serving(folder, scheduled, slow, hasty, new_home=True) as held:
        yield held


def test_a_scheduled_night_comes_by_itself_and_shows_what_it_did(served: Served) -> None:
    deployment = served.deployment("nightly/d")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"] == {
        "cron": "* * * * *",
        "timezone": "Europe/Berlin",
        "day_or": True,
    }
    of_this = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    def begun() -> list[dict[str, Any]]:
        held = served.call("POST", "/flow_runs/filter", of_this)
        return [run for run in held if run["state_type"] != "SCHEDULED"]

    first = until(begun, RUN_S)[0]
    # The next minute's is not to come: the tests below have the worker to themselves.
    served.call("PATCH", f"/deployments/{deployment['id']}", {"paused": True})
    run = served.wait(first["id"])
    assert run["state_type"] == "COMPLETED"
    assert run["auto_scheduled"]
    assert re.fullmatch(r"nightly d \d{4}-\d\d-\d\d", run["name"])
    held = served.artifacts(run["id"])
    assert {"summary-d", "refused-d", "stage-d", "embed-d"} <= set(held)
    assert "there is no champion yet" in held["summary-d"]
    assert "staged 299" in held["summary-d"]
    assert json.loads(held["refused-d"])[0]["rows"] == 1
    assert float(held["stage-d"]) == 100.0
    assert held["pictures-d"].startswith("![The flagged anomalies")
    log = served.log(run["id"])
    assert "train" in log
    assert "Traceback" not in log
    ids = views.sql(LakePaths((served.folder / "lake").as_uri()), "SELECT image_id FROM embeddings")
    assert len(ids) == 299
    # Events are kept by a service of the server, soon after.
    (event,) = until(lambda: served.events("latentlake.model.trained"))
    assert event["resource"]["prefect.resource.id"] == "latentlake.dataset.d"
    (event,) = until(lambda: served.events("latentlake.model.promoted"))
    assert event["payload"]["alias"] == "champion"
    (event,) = until(lambda: served.events("latentlake.anomalies.found"))
    assert event["resource"]["prefect.resource.id"] == "latentlake.dataset.d"
    assert event["payload"]["anomalies"] == len(json.loads(held["anomalies-d"]))


@pytest.mark.parametrize("name", ["nightly", "train", "embed", "backfill", "maintain"])
def test_a_form_has_few_fields_each_explained(served: Served, name: str) -> None:
    deployment = served.deployment(f"{name}/d")
    fields = deployment["parameter_openapi_schema"]["properties"]
    assert len(fields) <= 6
    assert all(field["description"] for field in fields.values())
    assert deployment["parameter_openapi_schema"]["required"] == ["config"]
    assert deployment["parameters"] == {"config": str(served.folder / "d.yaml")}
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["tags"] == ["latentlake", "d"]
    assert not re.search("key|secret|password|credential", " ".join(fields), re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("nightly/d", {"night": "yesterday"}),
        ("nightly/d", {"night": "2026-13-45"}),
        ("nightly/d", {"retrain": "maybe"}),
        ("maintain/d", {"keep_days": -1}),
        ("backfill/d", {"since": "2026-1-1"}),
    ],
)
def test_a_wrong_value_is_refused_by_the_form(served: Served, name: str, wrong: dict) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.start(name, **wrong)
    assert refused.value.code in (409, 422)
    assert next(iter(wrong)) in refused.value.read().decode()


def test_a_mistake_in_the_config_is_a_sentence(served: Served) -> None:
    (served.folder / "broken.yaml").write_text("lake: x\nstagee: {}\n")
    run = served.wait(
        served.start("nightly/d", config=str(served.folder / "broken.yaml"), night="2026-01-05")
    )
    assert run["state_type"] == "FAILED"
    assert "stagee: unknown key" in run["state"]["message"]
    assert "Traceback" not in served.log(run["id"])

    def told() -> list[dict[str, Any]]:
        about = f"prefect.flow-run.{run['id']}"
        held = served.events("latentlake.run.failed")
        return [each for each in held if each["resource"]["prefect.resource.id"] == about]

    (event,) = until(told)
    assert "stagee: unknown key" in event["payload"]["message"]
    assert event["payload"]["state"] == "Failed"


def raylets(served: Served) -> set[int]:
    """Of the runs of this server; others run on the machine, too."""
    own = descendants(served.process.pid)
    return {pid for pid in own if "raylet/raylet" in command_of(pid)}


def at_work(served: Served, run_id: str) -> None:
    """Waits until the training of a run has begun."""
    folder = served.folder / "lake" / "runs"
    until(lambda: "images of 28x28x1" in served.log(run_id), RUN_S)
    until(lambda: list(folder.glob("slow-*/checkpoints/*")))
    assert served.run(run_id)["state_type"] == "RUNNING"


# The socket that the page listens to; logs have one, too, which Prefect leaves off (3.8).
LISTEN = f"""
import asyncio
from prefect.events.clients import get_events_subscriber
async def listen():
    async with asyncio.timeout({RUN_S}), get_events_subscriber() as events:
        print("listening", flush=True)
        async for event in events:
            if event.event == "prefect.flow-run.Running":
                print(event.resource.id, flush=True)
asyncio.run(listen())
"""


@pytest.fixture
def slow(served: Served) -> Iterator[Served]:
    """Runs of `slow` go on until they are stopped; one that a failed test left would hold the
    dataset's only place, and the next test with it."""
    yield served
    of_these = {"deployments": {"name": {"any_": ["slow"]}}}
    for run in served.call("POST", "/flow_runs/filter", of_these):
        if run["state_type"] not in ENDED:
            state = {"state": {"type": "CANCELLING"}, "force": False}
            served.call("POST", f"/flow_runs/{run['id']}/set_state", state)
            served.wait(run["id"])


@contextlib.contextmanager
def listening(served: Served) -> Iterator[Iterator[str]]:
    """The runs that begin, as the page hears of them."""
    env = os.environ | served.client()
    live = subprocess.Popen([sys.executable, "-c", LISTEN], env=env, stdout=subprocess.PIPE)
    assert live.stdout is not None
    try:
        assert live.stdout.readline() == b"listening\n"
        yield (line.decode().strip() for line in live.stdout)
    finally:
        live.kill()
        live.wait(END_S)


def test_a_cancelled_run_stops_and_the_next_goes_on_from_it(slow: Served) -> None:
    served = slow
    with listening(served) as begun:
        run_id = served.start("nightly/slow", night="2026-01-01")
        assert f"prefect.flow-run.{run_id}" in begun
    at_work(served, run_id)
    held = raylets(served)
    assert held
    cancelling = {"state": {"type": "CANCELLING"}, "force": False}
    served.call("POST", f"/flow_runs/{run_id}/set_state", cancelling)
    assert served.wait(run_id)["state_type"] == "CANCELLED"
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in held))
    lake = LakePaths((served.folder / "lake").as_uri())
    assert len(views.sql(lake, "SELECT * FROM images WHERE dataset = 'slow'")) == 299
    assert (served.folder / "lake" / "models" / "slow").exists() is False or not list(
        (served.folder / "lake" / "models" / "slow").rglob("model.json")
    )
    again = served.start("nightly/slow", night="2026-01-01")
    until(lambda: "going on from" in served.log(again), RUN_S)
    # Another flow of the dataset waits for its end.
    waiting = served.start("maintain/slow", night="2026-01-01")
    time.sleep(5 * WORKER_ASKS_S)
    assert served.run(waiting)["state_type"] == "SCHEDULED"
    served.call("POST", f"/flow_runs/{again}/set_state", cancelling)
    assert served.wait(again)["state_type"] == "CANCELLED"
    # Its turn came; there is no model to maintain yet.
    assert "unknown model" in served.wait(waiting)["state"]["message"]


def test_a_task_is_given_up_when_its_time_is_over(served: Served) -> None:
    run = served.wait(served.start("nightly/hasty", night="2026-01-01"))
    assert run["state_type"] == "FAILED"
    asked = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = {task["name"]: task for task in served.call("POST", "/task_runs/filter", asked)}
    assert tasks["train hasty"]["state_name"] == "TimedOut"
    assert tasks["train hasty"]["total_run_time"] >= 6
    assert tasks["train hasty"]["run_count"] == 1  # not tried again


def test_a_killed_worker_leaves_no_run_running_for_ever(slow: Served) -> None:
    served = slow
    watched_within(served, HEARTBEAT_S + 10)  # 90 s, of which a test need not see each
    run_id = served.start("nightly/slow", night="2026-01-02")
    at_work(served, run_id)
    (worker,) = (pid for pid in children(served.process.pid) if "worker" in command_of(pid).split())
    for pid in [worker, *descendants(worker)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run = served.wait(run_id)
    assert run["state_type"] == "CRASHED"
    assert "no heartbeat" in run["state"]["message"]
    watched_within(served)
    # Another worker is there, and does what comes.
    done = served.wait(served.start("nightly/d", night="2026-01-02"))
    assert done["state_type"] == "COMPLETED"


def test_prefect_yaml_deploys_the_same(served: Served, tmp_path: Path) -> None:
    text = (ROOT / "infra" / "prefect.yaml").read_text()
    config, home = served.folder / "d.yaml", tmp_path / "home"
    text = text.replace("/srv/latentlake/nightly.yaml", str(config))
    text = text.replace("/srv/latentlake", str(served.folder))
    (tmp_path / "prefect.yaml").write_text(text)
    queue = "work-queue create photos --limit 1 --pool latentlake"
    for words in (queue, f"deploy --all --prefect-file {tmp_path / 'prefect.yaml'}"):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words.split()],
            cwd=tmp_path,
            env=os.environ | served.client() | {"PREFECT_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("nightly", "train", "embed", "backfill", "maintain"):
        theirs, ours = (served.deployment(f"{name}/{of}") for of in ("photos", "d"))
        for key in ("parameter_openapi_schema", "parameters", "description", "entrypoint"):
            assert theirs[key] == ours[key], (name, key)
        assert theirs["global_concurrency_limit"]["limit"] == 1
        assert theirs["work_pool_name"] == ours["work_pool_name"]
        assert theirs["job_variables"]["env"] == ours["job_variables"]["env"]
        assert (theirs["work_queue_name"], ours["work_queue_name"]) == ("photos", "d")
    for dataset in ("photos", "d"):
        queue = served.call("GET", f"/work_pools/latentlake/queues/{dataset}")
        assert queue["concurrency_limit"] == 1
    (schedule,) = served.deployment("nightly/photos")["schedules"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    run = served.wait(served.start("nightly/photos", night="2026-01-03"))
    assert run["state_type"] == "COMPLETED"


def watched_within(served: Served, seconds: float | None = None) -> list[float]:
    """Changes after how long without a heartbeat a run is lost; what the server's watches have."""
    first = f"w.LOST_AFTER_S = {seconds}; " if seconds is not None else ""
    code = f"from flows.serve import automations as w; {first}w.watch_runs()"
    env = os.environ | served.client()
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    held = served.call("POST", "/automations/filter", {})
    return sorted(one["trigger"]["within"] for one in held if "latentlake" in one["name"])


def test_the_watch_over_heartbeats_is_brought_up_to_date(served: Served) -> None:
    assert watched_within(served, 77) == [77.0, 1200.0]
    assert watched_within(served) == [90.0, 1200.0]


def test_two_configs_of_one_dataset_are_refused(served: Served) -> None:
    config = served.folder / "d.yaml"
    refused = run_cli("serve", config, config.with_name("slow.yaml"), config)
    assert refused.code == 2
    assert "several configs stage d" in refused.err


def test_a_port_that_is_taken_is_refused(served: Served) -> None:
    port = served.url.split(":")[2].split("/")[0]
    refused = run_cli("serve", served.folder / "d.yaml", "--port", port)
    assert refused.code == 2
    assert f"something listens on port {port} already" in refused.err


def test_the_nightly_of_the_command_line_uses_that_server(served: Served) -> None:
    command = ("nightly", "--config", served.folder / "d.yaml", "--night", "2026-01-09")
    stranger = run_cli(*command, env={"PREFECT_API_URL": served.url})
    assert stranger.code != 0
    ok(run_cli(*command, env=served.client()))
    asked = {"flow_runs": {"name": {"any_": ["nightly d 2026-01-09"]}}}
    (run,) = served.call("POST", "/flow_runs/filter", asked)
    assert run["state_type"] == "COMPLETED"
    assert "latentlake" in run["tags"]  # the watch has it, too


def test_the_server_s_database_is_for_its_user_alone(served: Served) -> None:
    files = list((served.folder / "home").rglob("prefect.db*"))
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_time_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_source(tmp_path / "source" / "a.parquet", range(3))
    settings = settings_of(tmp_path, "d", schedule={"cron": "99 25 * * *"})
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(settings))
    refused = run_cli("serve", tmp_path / "d.yaml", "--home", tmp_path / "home", cwd=tmp_path)
    assert refused.code == 2
    assert "schedule.cron" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_stopped_while_it_starts_it_leaves_no_server(tmp_path: Path, how: int) -> None:
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(settings_of(tmp_path, "d")))
    arguments = ["--port", str(free_port()), "--home", str(tmp_path / "home")]
    process = subprocess.Popen(
        [LATENTLAKE, "serve", tmp_path / "d.yaml", *arguments],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
    )
    try:
        (server,) = until(lambda: children(process.pid))
        process.send_signal(how)
        assert process.wait(END_S) == 0
        assert not Path(f"/proc/{server}").exists()
    finally:
        process.kill()
