"""`latentlake serve`: a Prefect server, a worker and the deployments, on this machine alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.login import login_of
from flows.nightly.settings import NightlySettings, load_nightly
from flows.prefect_env import server_environment
from jobs.errors import InputError, JobError

log = logging.getLogger("latentlake")

HOST = "127.0.0.1"
POOL = "latentlake"
READY_S = 120.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 2.0
STOP_S = 40.0  # a worker ends its runs within Prefect's 30


def serve(configs: Sequence[str], port: int, home: Path, runs_at_once: int) -> None:
    """Run until it is stopped. home: of the server's database and settings.

    Raises InputError for a config that is wrong, JobError where the server or the worker ends.
    """
    settings = _loaded(configs)
    for stop in STOPS:  # from here on, so that no child outlives this process
        signal.signal(stop, _stop)
    login = login_of(home)
    url = f"http://{HOST}:{port}/api"
    if _answers(url):
        raise InputError(f"something listens on port {port} already; name another with --port")
    os.environ |= server_environment(url, home, login)  # before anything imports prefect
    with contextlib.suppress(KeyboardInterrupt):
        _serve(settings, url, port, home, runs_at_once)
    log.info("serve: stopped")


def _serve(
    settings: list[tuple[str, NightlySettings]], url: str, port: int, home: Path, runs_at_once: int
) -> None:
    from flows.serve import automations, deployments

    for config, parsed in settings:
        deployments.schedule_of(config, parsed)  # its mistakes are reported before anything starts
    with _process("server", "server", "start", "--host", HOST, "--port", str(port)) as server:
        wait_for(url, server)
        deployments.make_pool(POOL)
        automations.watch_runs()
        for config, parsed in settings:
            for name in deployments.deploy(config, parsed, POOL, str(Path.cwd())):
                log.info("serve: %s", name)
        log.info(
            "serve: http://%s:%d; ^C ends it. The page asks once for a login: %s",
            HOST,
            port,
            shlex.join(["latentlake", "serve", "--show-login", "--home", str(home)]),
        )
        _work(server, "--limit", str(runs_at_once))


def _loaded(configs: Sequence[str]) -> list[tuple[str, NightlySettings]]:
    settings = [(config, load_nightly(config)) for config in configs]
    datasets = [parsed.stage.dataset for _, parsed in settings]
    twice = sorted({name for name in datasets if datasets.count(name) > 1})
    if twice:
        raise InputError(f"several configs stage {', '.join(twice)}; one config a dataset")
    return settings


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait for a server to answer. Raises JobError where it ends first."""
    deadline = time.monotonic() + READY_S
    while not _answers(url):
        if server.poll() is not None:
            raise JobError(f"the Prefect server ended with {server.returncode}; see above")
        if time.monotonic() > deadline:
            raise JobError(f"the Prefect server did not answer within {READY_S:.0f} s")
        time.sleep(0.2)


@contextlib.contextmanager
def _process(name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`prefect …`, ended by its process id whatever ends the block."""
    # Not between a child's beginning and our knowing it.
    with _no_signals():
        # In a session of its own: ^C is ours to pass on, the worker first.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prefect", *arguments],
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=functools.partial(_as_usual, private=name == "server"),
        )
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            yield process
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("serve: the %s does not end; killed", name)
                process.kill()
                process.wait()


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _as_usual(*, private: bool) -> None:
    """private: what it writes is for its user alone, as the server's database."""
    if private:
        os.umask(0o077)
    # A worker ends itself by SIGINT, which a shell's background jobs ignore.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _work(server: subprocess.Popen[bytes], *options: str) -> None:
    """Keep a worker at work for as long as the server lives."""
    while True:
        arguments = ("worker", "start", "--pool", POOL, "--type", "process", *options)
        with _process("worker", *arguments) as worker:
            while worker.poll() is None:
                if server.poll() is not None:
                    raise JobError(f"the Prefect server ended with {server.returncode}; see above")
                time.sleep(0.5)
        log.warning("serve: the worker ended with %s; another one starts", worker.returncode)
        time.sleep(AGAIN_S)
