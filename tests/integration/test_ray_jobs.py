"""A remote cluster, as `ray start --head` makes it: jobs are submitted, followed, stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobDetails, JobSubmissionClient

from jobs.cluster.settings import RaySettings
from jobs.dispatch.request import JobRequest
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.stage.settings import StageSettings
from jobs.train.settings import TrainSettings
from tests.helpers import Ran, ok, run_cli, write_source
from tests.limits import RUN_S, until
from tests.prometheus import PROMETHEUS, dashboard_metrics, exported, panels, prometheus
from tests.ray_head import RayHead, running_head
from tests.serving import Served, command_of, descendants, serving, settings_of
from tests.wheels import wheel_of

pytestmark = pytest.mark.integration
NIGHT = "2026-01-01"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with running_head(2) as made:
        yield made


@pytest.fixture
def asked(head: RayHead) -> RaySettings:
    return RaySettings(address=head.address)


RUN = """
    import json, sys
    from jobs.errors import LatentlakeError
    from jobs.dispatch.request import JobRequest
    from jobs.dispatch.run import run
    try:
        told = {"result": run(JobRequest.model_validate_json(sys.argv[1]), sys.argv[2])}
    except LatentlakeError as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told))
"""


def told_of(work: JobRequest, head: RayHead, asked_by: str = "") -> dict[str, Any]:
    """In a process of its own: Ray reads how to authenticate when it is imported."""
    command = [sys.executable, "-c", textwrap.dedent(RUN), work.model_dump_json(), asked_by]
    env = os.environ | head.environment
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, timeout=RUN_S)
    return json.loads(done.stdout.splitlines()[-1])


def submissions(head: RayHead, target: str) -> list[JobDetails]:
    """Of a dataset or model, in their order."""
    client = JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {head.token}"})
    held = [job for job in client.list_jobs() if f"-{target}-" in (job.submission_id or "")]
    return sorted(held, key=lambda job: job.start_time or 0)


def stage_of(
    source: Path, lake: LakePaths, ray: RaySettings, dataset: str, **more: Any
) -> JobRequest:
    small = {"height": 28, "width": 28, "channels": 1}
    settings = StageSettings(source=str(source), dataset=dataset, **small, **more)
    return JobRequest.of(settings, lake.uri, NIGHT, ray)


@dataclasses.dataclass(frozen=True)
class ClusterNight:
    told: Ran
    lake: LakePaths
    exported: set[str]
    drawn: dict[str, list[list[float]]]  # by panel: the highest values of each query's series


@pytest.fixture(scope="module")
def night(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> ClusterNight:
    """A whole one, and what Prometheus made of it."""
    folder = tmp_path_factory.mktemp("night")
    write_source(folder / "source" / "a.parquet", range(300), broken=[5])
    settings = {
        "lake": str(folder / "lake"),
        "stage": {"source": str(folder / "source"), "dataset": "far", "height": 28, "width": 28}
        | {"channels": 1},
        "train": {"dataset": "far", "model": "far", "epochs": 2, "latent_dim": 4}
        | {"network": {"kind": "mlp", "widths": [32]}, "workers": 2},
        "embed": {"dataset": "far", "model": "far"},
        "evaluate": {"samples": 4, "resamples": 100},
        "ray": {"address": head.address},
    }
    (folder / "n.yaml").write_text(yaml.safe_dump(settings))
    command = ("nightly", "--config", folder / "n.yaml", "--night", NIGHT, "--json")
    drawn: dict[str, list[list[float]]] = {}
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(exported(head))
        asked = stack.enter_context(prometheus(head)) if PROMETHEUS else None
        told = ok(run_cli(*command, env=head.environment))
        if asked is not None:
            time.sleep(5)  # what the last job did is on its way
            for panel in panels():
                queries = [target["expr"] for target in panel["targets"]]
                drawn[panel["title"]] = [asked.most(query) for query in queries]
    return ClusterNight(told, LakePaths((folder / "lake").as_uri()), metrics, drawn)


def test_a_night_on_a_cluster(head: RayHead, night: ClusterNight) -> None:
    kinds = ("stage", "train", "evaluate", "embed", "drift")
    assert tuple(report["job"] for report in night.told.json) == kinds
    assert night.told.json[0]["counts"]["staged"] == 299
    held = submissions(head, "far")
    assert [str(job.submission_id)[:-15] for job in held] == [
        f"latentlake-{kind}-far-{NIGHT}" for kind in kinds
    ]
    # What the jobs logged over there is told here.
    assert "submitted as the Ray job latentlake-train-far" in night.told.err
    assert "nats" in night.told.err
    assert "Traceback" not in night.told.err
    assert len(views.sql(night.lake, "SELECT image_id FROM embeddings")) == 299


def test_every_metric_of_the_dashboard_is_exported(night: ClusterNight) -> None:
    wanted = dashboard_metrics()
    assert len(wanted) > 10
    assert wanted <= night.exported, f"not exported: {sorted(wanted - night.exported)}"


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on this machine")
def test_a_real_prometheus_draws_every_panel_of_a_short_night(night: ClusterNight) -> None:
    assert len(night.drawn) > 10
    for title, queries in night.drawn.items():
        assert all(queries), f"nothing to draw in {title}"
    # A counter that comes with its last value, as a short job's does, counts in full.
    assert 60 * 5 * max(night.drawn["Rows a second"][0]) >= 299
    assert max(night.drawn["Refused rows, by reason"][0]) == 1
    units = sum(report["units"] for report in night.told.json if report["job"] != "train")
    assert 5 * sum(night.drawn["Units a minute"][0]) == pytest.approx(units)


def test_a_flow_is_cancelled_with_its_job_and_finds_it_again(
    head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the page: cancelled, started again, its process killed, started once more."""
    write_source(tmp_path / "source" / "a.parquet", range(300))
    settings = settings_of(tmp_path, "long", ray={"address": head.address})
    settings["train"] |= {"epochs": 500_000, "run": {"checkpoint_s": 1}}
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)  # of serve, its worker and their runs

    def trainings(*statuses: str) -> list[JobDetails]:
        held = submissions(head, "long")
        return [job for job in held if job.status in statuses and "-train-" in job.submission_id]

    def at_work(served: Served) -> str:
        run_id = served.start("nightly/long", night=NIGHT)
        until(lambda: "images of 28x28x1" in served.log(run_id), RUN_S)
        return run_id

    def cancel(served: Served, run_id: str) -> None:
        cancelling = {"state": {"type": "CANCELLING"}, "force": False}
        served.call("POST", f"/flow_runs/{run_id}/set_state", cancelling)
        assert served.wait(run_id)["state_type"] == "CANCELLED"

    with serving(tmp_path, settings) as served:
        first = at_work(served)
        (job,) = trainings("RUNNING")
        assert f"submitted as the Ray job {job.submission_id}" in served.log(first)
        assert (job.metadata or {})["asked_by"] == first
        until(lambda: list((tmp_path / "lake" / "runs").glob("long-*/checkpoints/*")))
        cancel(served, first)
        until(lambda: trainings("STOPPED"))
        assert not list((tmp_path / "lake" / "models").rglob("model.json"))
        second = at_work(served)
        assert "going on from" in served.log(second)
        for pid in descendants(served.process.pid):
            if "prefect.engine" in command_of(pid):
                os.kill(pid, signal.SIGKILL)
        (job,) = trainings("RUNNING")
        served.wait(second)
        third = at_work(served)
        assert f"following the Ray job {job.submission_id}" in served.log(third)
        assert [job.submission_id] == [held.submission_id for held in trainings("RUNNING")]
        cancel(served, third)
        until(lambda: not trainings("RUNNING", "PENDING"))


def test_asked_again_by_the_same_it_hears_what_came_of_it(
    source: Path, lake: LakePaths, head: RayHead, asked: RaySettings
) -> None:
    work = stage_of(source, lake, asked, "again")
    first = told_of(work, head, "run 1")
    assert first["result"]["counts"]["staged"] == 300
    assert told_of(work, head, "run 1") == first
    assert len(submissions(head, "again")) == 1
    assert told_of(work, head, "run 2")["result"]["units"] == 0
    assert len(submissions(head, "again")) == 2


@contextlib.contextmanager
def training(
    source: Path, lake: LakePaths, head: RayHead, dataset: str, asked_by: str
) -> Iterator[tuple[JobDetails, dict[str, Any]]]:
    """One that takes long, at work, and what its caller is told when it has ended."""
    asked = RaySettings(address=head.address)
    told_of(stage_of(source, lake, asked, dataset), head)
    small = {"epochs": 500_000, "latent_dim": 4, "network": {"kind": "mlp", "widths": [32]}}
    settings = TrainSettings.model_validate({"dataset": dataset, "model": dataset, **small})
    work = JobRequest.of(settings, lake.uri, NIGHT, asked)
    told: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: told.update(told_of(work, head, asked_by)))
    thread.start()
    found = until(lambda: [job for job in submissions(head, dataset) if job.driver_info][1:], RUN_S)
    yield found[0], told
    thread.join(RUN_S)


def test_a_driver_that_is_killed_is_a_fault_of_the_cluster(
    source: Path, lake: LakePaths, head: RayHead
) -> None:
    with training(source, lake, head, "killed", "run 1") as (job, told):
        os.kill(int(job.driver_info.pid), signal.SIGKILL)
    assert told["error"].startswith(f"ClusterError: the Ray job {job.submission_id} FAILED")


def test_what_a_run_had_asked_for_ends_with_it(
    source: Path, lake: LakePaths, head: RayHead
) -> None:
    """As the hook of a cancelled flow does, whose process could not any more."""
    stop = "import sys; from jobs.dispatch.submit import stop_all_of; stop_all_of(*sys.argv[1:])"
    env = os.environ | head.environment
    with training(source, lake, head, "asked", "run 7") as (job, told):
        for asked_by, status in (("run 8", "RUNNING"), ("run 7", "STOPPED")):
            subprocess.run(
                [sys.executable, "-c", stop, head.address, asked_by], env=env, check=True
            )
            until(lambda expected=status: submissions(head, "asked")[-1].status == expected)
    assert told["error"].startswith(f"JobError: the Ray job {job.submission_id} was stopped")
    # It ended its workers itself, before Ray would have.
    logs = head.folder / "session_latest" / "logs"
    assert "KeyboardInterrupt" in (logs / f"job-driver-{job.submission_id}.log").read_text()


def test_errors_are_those_of_the_job(
    source: Path, lake: LakePaths, head: RayHead, asked: RaySettings, tmp_path: Path
) -> None:
    refused = run_cli(
        *("train", "--dataset", "none", "--model", "m", "--lake", tmp_path / "lake"),
        *("--ray-address", head.address),
        env=head.environment,
    )
    assert refused.code == 2
    assert "unknown dataset 'none'" in refused.err
    assert "Traceback" not in refused.err


def test_a_wrong_token_is_refused(
    source: Path, lake: LakePaths, head: RayHead, tmp_path: Path
) -> None:
    where = ("--ray-address", head.address, "--lake", tmp_path / "lake")
    refused = run_cli(
        *("stage", "--source", source, "--dataset", "d", *where),
        env={**head.environment, "RAY_AUTH_TOKEN": "another"},
    )
    assert refused.code == 2
    assert "token" in refused.err
    assert "Traceback" not in refused.err


def test_a_cluster_that_is_not_there_is_told_soon(source: Path, tmp_path: Path) -> None:
    where = ("--ray-address", "http://127.0.0.1:9", "--lake", tmp_path / "lake")
    refused = run_cli("stage", "--source", source, "--dataset", "d", *where)
    assert refused.code == 1
    assert "http://127.0.0.1:9 does not answer" in refused.err


def test_other_commands_say_that_they_need_a_node(
    source: Path, lake: LakePaths, head: RayHead
) -> None:
    from jobs.cluster import connect as cluster_connect

    with pytest.raises(InputError, match="takes jobs"):
        cluster_connect._connect(RaySettings(address=head.address))


def test_a_wheel_brings_its_own_code(
    source: Path, lake: LakePaths, head: RayHead, asked: RaySettings, tmp_path: Path
) -> None:
    wheel = wheel_of(tmp_path)
    brought = asked.model_copy(update={"wheel": str(wheel)})
    work = stage_of(source, lake, brought, "brought")
    assert told_of(work, head)["result"]["counts"]["staged"] == 300
    # A changed wheel of the same name arrives, too: the cluster's own code would not say this.
    with zipfile.ZipFile(wheel) as held:
        parts = {name: held.read(name) for name in held.namelist()}
    main = b'if __name__ == "__main__":'
    assert main in parts["jobs/submitted.py"]
    changed = b'raise SystemExit("the changed one")\n' + main
    parts["jobs/submitted.py"] = parts["jobs/submitted.py"].replace(main, changed)
    with zipfile.ZipFile(wheel, "w") as made:
        for name, data in parts.items():
            made.writestr(name, data)
    assert "the changed one" in told_of(work, head)["error"]


def test_another_version_on_the_cluster_is_refused(
    source: Path, lake: LakePaths, head: RayHead, asked: RaySettings, tmp_path: Path
) -> None:
    brought = asked.model_copy(update={"wheel": str(wheel_of(tmp_path, "0.0.9"))})
    told = told_of(stage_of(source, lake, brought, "older"), head)["error"]
    ours = importlib.metadata.version("latentlake")
    assert told.startswith(f"InputError: the cluster has latentlake 0.0.9, this side {ours}")
