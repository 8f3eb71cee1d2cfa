"""The registry of jobs: it names every job there is, and what it names is there."""

from __future__ import annotations

import ast
import inspect

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from flows.nightly import tasks
from jobs.cluster.settings import RaySettings
from jobs.dispatch.registry import JOBS, kind_of
from jobs.dispatch.request import JobRequest
from jobs.dispatch.run import job_of, run_here
from jobs.embed.settings import DropSettings, MapSettings
from jobs.engine.job import Job
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.settings import build
from tests.helpers import ROOT


def named_jobs() -> set[str]:
    """The `name` of every class of the sources that is a job."""
    found = set()
    for path in sorted((ROOT / "jobs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and {"Job", "PoolJob"} & {
                ast.unparse(base) for base in node.bases
            }:
                found |= {
                    ast.literal_eval(line.value)
                    for line in node.body
                    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name"
                }
    return found


def test_every_job_is_in_it() -> None:
    names = named_jobs()
    assert {"stage", "train", "embed", "compact"} <= names
    assert names <= set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_what_it_names_is_there(name: str) -> None:
    kind = JOBS[name]
    loaded = kind.load()
    if inspect.isclass(loaded):
        assert issubclass(loaded, Job)
        assert loaded.name == name
    assert kind.command in cli.commands
    assert kind.task is None or getattr(tasks, kind.task).name == kind.task
    if kind.makes is not None:
        assert kind.settings is not None
        assert kind.makes in kind.settings.model_fields
        assert kind_of(kind.settings.model_construct()) == name
    # Who has workers is given Ray's settings, and nobody else.
    assert ("ray_settings" in inspect.signature(loaded).parameters) == kind.workers


def test_every_task_of_a_night_is_of_a_job() -> None:
    found = {value.name for value in vars(tasks).values() if isinstance(value, tasks.Task)}
    assert found == {kind.task for kind in JOBS.values()} - {None}


@pytest.mark.parametrize("kind", ["compact", "index", "nothing"])
def test_only_whole_jobs_are_requested(kind: str) -> None:
    values = {"kind": kind, "settings": {}, "lake": "file:///l", "night": "2026-01-01"}
    with pytest.raises(InputError, match=f"unknown job '{kind}'; known: drift.*train"):
        build(JobRequest, values)


NEEDED = {"drop": ["--model", "m@champion"], "map": ["--model", "m"]}
USELESS = [
    (["--workers", "2"], "--workers"),
    (["--autoscaling"], "--autoscaling"),
    (["--resource-timeout", "0"], "--resource-timeout"),
    (["--ray-address", "10.0.0.1:6379"], "--ray-address 10.0.0.1:6379"),
]


@pytest.mark.parametrize("command", NEEDED)
@pytest.mark.parametrize(("words", "said"), USELESS)
def test_options_of_workers_are_refused_where_there_are_none(
    command: str, words: list[str], said: str
) -> None:
    outcome = CliRunner().invoke(cli, [command, *NEEDED[command], *words])
    assert isinstance(outcome.exception, InputError)
    assert outcome.exception.exit_code == 2
    assert f"{command} runs in one process" in str(outcome.exception)
    assert f"leave out {said}" in str(outcome.exception)
    # Another address is advised where that is what does not serve.
    assert ("http://HEAD" in str(outcome.exception)) == ("address" in said)


@pytest.mark.parametrize("command", NEEDED)
def test_a_cluster_that_takes_jobs_gets_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[JobRequest] = []

    def submitted(request: JobRequest, asked_by: str) -> dict[str, object]:
        sent.append(request)
        return {"job": request.kind, "target": request.target}

    monkeypatch.setattr("jobs.dispatch.submit.run_on_cluster", submitted)
    words = [command, *NEEDED[command], "--ray-address", "http://head:8265"]
    outcome = CliRunner().invoke(cli, words)
    assert outcome.exception is None, outcome.exception
    (request,) = sent
    assert (request.kind, request.ray.address) == (command, "http://head:8265")
    assert JobRequest.model_validate_json(request.model_dump_json()) == request


def test_drop_and_map_run_from_a_request(embedded: LakePaths) -> None:
    def request(settings: DropSettings | MapSettings) -> JobRequest:
        made = JobRequest.of(settings, embedded.uri, "2026-01-02", RaySettings())
        return JobRequest.model_validate_json(made.model_dump_json())

    assert run_here(request(MapSettings(model="m")))["counts"]["mapped"] == 600
    assert len(views.sql(embedded, "SELECT * FROM maps")) == 600
    drop = request(DropSettings(model="m@champion", dataset="d"))
    assert job_of(drop).name == "drop"
    assert run_here(drop)["counts"]["dropped"] == 600
    assert len(views.sql(embedded, "SELECT * FROM maps")) == 0
