"""Charts in a real MLflow tracking server, and a training that one does not hold up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.lake.paths import LakePaths
from jobs.telemetry.metrics import BadStep, Metric
from jobs.telemetry.mlflow import MLFLOW, Mlflow
from tests.helpers import free_port
from tests.integration.conftest import train
from tests.limits import END_S, SOON_S, START_S

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = (sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1")
    store = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(port))
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *store],
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(process, uri, folder / "log")
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_S)


def _wait(process: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
            return
        time.sleep(0.2)


def test_a_training_is_a_run_of_the_server(trained: LakePaths, server: str, monkeypatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv(MLFLOW, server)
    report = train(trained, model="charted", epochs=2, run={"log_s": 0.0})
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("charted")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["latentlake_version"] == report.counts["version"]
    assert run.data.params["network.kind"] == "conv"
    assert run.data.params["latent_dim"] == "4"
    history = client.get_metric_history(run.info.run_id, "validation_nats")
    assert len(history) == 2
    assert history[-1].value == pytest.approx(report.counts["validation_nats"])


def test_another_attempt_goes_on_in_the_same_run(server: str, monkeypatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv(MLFLOW, server)
    for step in (1, 2):
        attempt = Mlflow("again", "v1", {"seed": 0})
        attempt.metrics([Metric("train_nats", float(step), "nats", step, 1)] * 700)
        attempt.bad_step(BadStep(step, "step 3: loss inf", ["x"]))
        attempt.close()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("again")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    held = client.get_metric_history(run.info.run_id, "train_nats")
    assert {(metric.step, metric.value) for metric in held} == {(1, 1.0), (2, 2.0)}
    assert run.data.tags["bad_step_2"] == "step 3: loss inf"


def test_a_server_that_never_answers_holds_up_nothing(monkeypatch, caplog) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv(MLFLOW, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("jobs.telemetry.mlflow.CLOSE_S", 1.0)
        started = time.monotonic()
        listener = Mlflow("m", "v1", {})
        for step in range(100):
            listener.metrics([Metric("train_nats", 1.0, "nats", step, 1)])
        listener.close()
        assert time.monotonic() - started < SOON_S  # not until its client gives up
    assert "not all of the charts got there" in caplog.text
