"""A job API that does not answer: every wait has an end."""

from __future__ import annotations

import contextlib
import http.server
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from jobs.cluster.settings import RaySettings
from jobs.dispatch import ray_jobs_client
from jobs.dispatch.ray_jobs_client import JobApi
from jobs.dispatch.request import JobRequest
from jobs.dispatch.submit import run_on_cluster
from jobs.errors import ClusterError, InputError
from jobs.stage.settings import StageSettings
from tests.helpers import free_port
from tests.limits import SOON_S


@contextlib.contextmanager
def mute() -> Iterator[str]:
    """It takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def answering(*codes: int) -> Iterator[tuple[str, list[str]]]:
    """Answers with these codes one after the other, the last one from then on."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(codes[min(len(asked), len(codes)) - 1])
            body = b'{"ray_version": "2.60.0"}' if "version" in self.path else b"[]"
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs_client._Client, "timeout_s", (0.5, 0.5))
    monkeypatch.setattr(ray_jobs_client, "CONNECT_S", 0.5)
    monkeypatch.setattr(ray_jobs_client, "STOP_S", 0.5)
    monkeypatch.setattr(ray_jobs_client, "POLL_S", 0.05)


def test_a_server_that_says_nothing_is_given_up() -> None:
    with mute() as address, pytest.raises(ClusterError, match="does not answer"):
        JobApi(address)


def test_an_alarm_is_heard_while_a_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Prefect ends a task after its time."""

    class Late(Exception):
        pass

    def late(*_: object) -> None:
        raise Late

    monkeypatch.setattr(ray_jobs_client._Client, "timeout_s", (2 * SOON_S, 2 * SOON_S))
    before = signal.signal(signal.SIGALRM, late)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with mute() as address, pytest.raises(Late):
            JobApi(address)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < SOON_S


@pytest.mark.slow
def test_a_stop_that_nobody_answers_ends(caplog: pytest.LogCaptureFixture) -> None:
    with answering(200) as (address, _):
        api = JobApi(address)
    with mute() as address:
        api._client._address = address
        api.stop("latentlake-stage-d-1")
    assert "not seen to have ended" in caplog.text


def test_a_server_that_starts_anew_is_waited_for() -> None:
    with answering(200, 200, 503, 500, 200) as (address, asked):
        assert JobApi(address).jobs() == []
    assert len(asked) == 5


def test_a_refusal_is_none_to_wait_for() -> None:
    with answering(200, 200, 404) as (address, asked), pytest.raises(ClusterError, match="404"):
        JobApi(address).jobs()
    assert len(asked) == 3


def test_it_is_the_cluster_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client takes the environment's."""
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    with answering(200) as (address, asked):
        JobApi(address)
    assert asked


def test_no_password_of_an_address_is_told() -> None:
    with pytest.raises(ClusterError) as told:
        JobApi(f"http://me:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(told.value)


def test_a_wrong_name_is_refused_before_anything_is_submitted() -> None:
    far = RaySettings(address="http://127.0.0.1:9")
    work = JobRequest.of(
        StageSettings(source="s", dataset="d" * 200), "file:///l", "2026-01-01", far
    )
    with pytest.raises(InputError, match="dataset name"):
        run_on_cluster(work)
