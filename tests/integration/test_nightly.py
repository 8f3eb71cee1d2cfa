"""The nightly flow through a real Prefect server, from the command line."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.command_process import CommandProcess
from tests.helpers import ROOT, free_port, ok, run_cli, write_source
from tests.limits import until
from tests.prefect_home import ask, wait_until_written

pytestmark = pytest.mark.integration
JOBS = ["stage", "train", "evaluate", "embed", "drift"]
OF_THE_REPORT = ("images", "reconstructions", "samples", "traversals")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandProcess]:
    """With a Prefect home of its own, in which these tests count."""
    made = CommandProcess(tmp_path_factory.mktemp("nightly"))
    yield made
    made.end()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_source(tmp_path / "source" / "a.parquet", range(300), broken=[5])
    settings = {
        "lake": str(tmp_path / "lake"),
        "stage": {
            "source": str(tmp_path / "source"),
            "dataset": "d",
            "height": 28,
            "width": 28,
            "channels": 1,
        },
        "train": {
            "dataset": "d",
            "model": "m",
            "epochs": 1,
            "latent_dim": 4,
            "network": {"kind": "mlp", "widths": [32]},
        },
        "embed": {"dataset": "d", "model": "m", "alpha": 0.9},  # so that something is flagged
        "evaluate": {"samples": 4, "resamples": 100},
    }
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@dataclasses.dataclass(frozen=True)
class Held:
    """What a Prefect home has of its runs, in the order of their making."""

    runs: list[tuple[str, str]]
    tasks: list[tuple[str, str]]
    tags: list[list[str]]  # each kind once, of runs and then of tasks
    texts: list[tuple[str, str]]  # artifacts in Markdown
    tables: dict[str, str]
    bars: list[tuple[str, str, str]]

    @classmethod
    def of(cls, home: Path) -> Held:
        wait_until_written(home)
        tags = [ask(home, f"SELECT DISTINCT tags FROM {of}_run") for of in ("flow", "task")]
        artifacts = "FROM artifact WHERE type = '{}' ORDER BY created"
        return cls(
            runs=ask(home, "SELECT name, state_type FROM flow_run ORDER BY created"),
            tasks=ask(home, "SELECT name, state_type FROM task_run"),
            tags=[json.loads(each) for found in tags for (each,) in found],
            texts=ask(home, "SELECT key, data " + artifacts.format("markdown")),
            tables=dict(ask(home, "SELECT key, data " + artifacts.format("table"))),
            bars=ask(home, "SELECT key, data, description " + artifacts.format("progress")),
        )


def test_two_nights_through_prefect(config: Path, commands: CommandProcess, tmp_path: Path) -> None:
    nightly = ("nightly", "--config", config)
    first = ok(commands.run(*nightly, "--night", "2026-01-01", "--json"))
    assert [report["job"] for report in first.json] == JOBS
    assert first.json[0]["counts"]["staged"] == 299
    assert first.json[3]["counts"]["embedded"] == 299
    write_source(tmp_path / "source" / "b.parquet", range(300, 340))
    second = ok(commands.run(*nightly, "--night", "2026-01-02", "--json"))
    assert [report["job"] for report in second.json] == [
        job
        for job in JOBS
        if job != "train"  # a champion is there
    ]
    assert second.json[0]["counts"]["rows_in"] == 40
    assert second.json[2]["counts"]["embedded"] == 40
    # A report that takes too long takes nothing of the night with it.
    settings = yaml.safe_load(config.read_text()) | {"timeouts": {"report_s": 0.01}}
    config.write_text(yaml.safe_dump(settings))
    ok(commands.run(*nightly, "--night", "2026-01-03"))
    held = Held.of(commands.prefect_home)
    assert held.runs == [(f"nightly d 2026-01-0{day}", "COMPLETED") for day in (1, 2, 3)]
    # By its tag a run is watched; a task's would cost it a slot each, requested at the server.
    assert held.tags == [["latentlake"], []]
    reports = [f"report d 2026-01-0{day}" for day in (1, 2, 3)]
    assert [name for name, state in held.tasks if state != "COMPLETED"] == [reports[2]]
    assert {name for name, _ in held.tasks} == {
        *("stage d", "train m", "evaluate m", "embed d", "drift d"),
        *reports,
    }
    keys = [key for key, _ in held.texts]
    assert [keys.count(key) for key in ("summary-d", "pictures-d", "report-d")] == [3, 2, 2]
    assert "No report: " in held.texts[-1][1]
    links = [data for key, data in held.texts if key == "report-d"]
    assert all(re.search(r"\]\(file://.*/report-m\.html\)", data) for data in links)
    assert set(keys) - {"pictures-d", "summary-d", "report-d"} == {
        f"{name}-d" for name in OF_THE_REPORT
    }
    assert ["rows in" in data for key, data in held.texts if key == "summary-d"] == [
        *(True, True),
        False,
    ]
    assert all(
        "data:image/png" in data for key, data in held.texts if key not in ("summary-d", "report-d")
    )
    moving = ["stage-d", "train-m", "evaluate-m", "embed-d"]
    assert [key for key, _, _ in held.bars] == [
        *moving,
        *(key for key in moving if key != "train-m"),
    ]
    assert {float(data) for _, data, _ in held.bars} == {100.0}
    flagged = json.loads(json.loads(held.tables["anomalies-d"]))
    assert flagged[0]["rank"] == 1
    assert all(row["source_uri"].endswith(".parquet") for row in flagged)
    refused = json.loads(json.loads(held.tables["refused-d"]))
    assert [(row["reason"], row["rows"]) for row in refused] == [("truncated", 1)]
    told = held.bars[0][2]
    assert re.fullmatch(r"stage d: 1 of 1 units, 300 rows_in, [\d,]+/s, 1 refused, 0:00 left", told)


TASKS = """
    SELECT t.name, t.run_count, t.state_type FROM task_run t JOIN flow_run f ON f.id = t.flow_run_id
    WHERE f.name = ?
"""


def test_a_users_mistake_in_a_flow_is_a_sentence_and_no_retry(
    config: Path, commands: CommandProcess, tmp_path: Path
) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["stage"]["source"] = str(tmp_path / "nowhere")
    config.write_text(yaml.safe_dump(settings))
    ran = commands.run("nightly", "--config", config, "--night", "2026-02-01")
    assert ran.code == 2, ran.err
    assert "does not exist" in ran.err
    assert "Traceback" not in ran.err
    home, name = commands.prefect_home, "nightly d 2026-02-01"
    wait_until_written(home)
    assert ask(home, TASKS, name) == [("stage d", 1, "FAILED")]
    ((run_id,),) = ask(home, "SELECT id FROM flow_run WHERE name = ?", name)
    ((summary,),) = ask(
        home, "SELECT data FROM artifact WHERE key = 'summary-d' AND flow_run_id = ?", run_id
    )
    ours = "SELECT event FROM events WHERE event LIKE 'latentlake.%' AND resource_id LIKE ?"
    (event,) = until(lambda: ask(home, ours, f"%{run_id}"))  # by another way than its states
    assert "The run ended early" in summary
    assert "does not exist" in summary
    assert event == ("latentlake.run.failed",)


def test_a_storage_that_does_not_answer_is_tried_again(
    config: Path, commands: CommandProcess
) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["stage"]["source"] = "s3://bucket/photos"
    config.write_text(yaml.safe_dump(settings))
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    ran = commands.run("nightly", "--config", config, "--night", "2026-02-02", env=env)
    assert ran.code == 1, ran.err
    wait_until_written(commands.prefect_home)
    assert ask(commands.prefect_home, TASKS, "nightly d 2026-02-02") == [("stage d", 3, "FAILED")]


def test_only_faults_of_storage_or_cluster_are_tried_again() -> None:
    from prefect.states import exception_to_failed_state

    from flows.nightly.tasks import is_passing_fault
    from jobs.errors import ClusterError, InputError, JobError, StorageError

    async def retried(error: Exception) -> bool:
        return await is_passing_fault(None, None, await exception_to_failed_state(error))

    for error in (StorageError("no answer"), ClusterError("gone")):
        assert asyncio.run(retried(error)) is True
    for error in (InputError("wrong"), JobError("failed"), ValueError("bug")):
        assert asyncio.run(retried(error)) is False


def test_a_misspelt_key_of_the_config_is_named(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["train"]["network"]["wdths"] = [3]
    settings["stagee"] = {}
    config.write_text(yaml.safe_dump(settings))
    ran = run_cli("nightly", "--config", config)
    assert ran.code == 2
    assert "train.network.wdths: unknown key; known: kind, widths, hidden" in ran.err
    assert "stagee: unknown key; known: lake, stage, train, embed, ray" in ran.err


@pytest.mark.parametrize(
    ("zone", "night"), [("Europe/Berlin", "2026-01-02"), ("UTC", "2026-01-01"), (None, None)]
)
def test_a_night_is_the_day_on_which_it_was_due_in_its_time_zone(
    config: Path, monkeypatch, zone: str | None, night: str | None
) -> None:
    """However late it runs: at half past eleven in London it is tomorrow in Berlin."""
    from flows.nightly import run_context
    from flows.nightly.settings import tonight

    due = dt.datetime(2026, 1, 1, 23, 30, tzinfo=dt.UTC) if zone else None
    monkeypatch.setattr(run_context, "flow_run", types.SimpleNamespace(scheduled_start_time=due))
    settings = yaml.safe_load(config.read_text())
    if zone:
        settings["schedule"] = {"cron": "30 0 * * *", "timezone": zone}
    config.write_text(yaml.safe_dump(settings))
    assert run_context.opened(str(config), None, None).night == (night or tonight())
    asked = dt.date(2026, 3, 4)
    assert run_context.opened(str(config), asked, None).night == "2026-03-04"


def test_the_automation_of_the_guide_is_one_that_prefect_takes() -> None:
    import uuid

    from prefect.events.schemas.automations import AutomationCore

    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"```yaml\n(# prefect automation create.*?)```", text, re.DOTALL)
    (told,) = yaml.safe_load(block.replace("ID-OF-THE-BLOCK", str(uuid.uuid4())))["automations"]
    made = AutomationCore.model_validate(told)
    assert made.trigger.expect == {"latentlake.anomalies.found"}
