"""A real S3-compatible server (SeaweedFS) on loopback, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import botocore.session
import pytest
from botocore.exceptions import ClientError

from jobs.lake import storage
from tests.helpers import S3Server
from tests.limits import END_S, START_S

WEED = Path(sys.executable).parent / "weed"
EVERYTHING = ["Admin", "Read", "Write", "List", "Tagging"]


@contextlib.contextmanager
def running_server(host: str = "127.0.0.1", inside: Sequence[str] = ()) -> Iterator[S3Server]:
    """Started, ready, with a bucket `lake`; ended by its process id.

    inside: a command that runs it elsewhere, such as in a network namespace.
    """
    folder = Path(tempfile.mkdtemp(prefix="ll-s3-", dir="/tmp"))
    pipeline, reader = _new_keys(), _new_keys()
    identities = [
        _identity("pipeline", pipeline, EVERYTHING),
        _identity("reader", reader, ["Read:lake", "List:lake"]),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    port = _free_port()
    with (folder / "log").open("wb") as log:
        process = _start(folder, host, port, log, inside)
        endpoint = f"http://{host}:{port}"
        try:
            _wait_ready(process, endpoint, folder / "log")
            server = S3Server(endpoint, pipeline, reader)
            _wait_for_bucket(server)
            yield server
        finally:
            _end(process)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def reached(server: S3Server) -> Iterator[None]:
    """Within it, this process's own storage functions reach the server, too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        forget_clients()
        yield
        forget_clients()


def forget_clients() -> None:
    """Of this process: they keep the credentials that they were made with."""
    storage._filesystem.cache_clear()
    storage._aws_session.cache_clear()


def _new_keys() -> tuple[str, str]:
    return secrets.token_hex(8), secrets.token_hex(16)


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _start(
    folder: Path, host: str, s3_port: int, log: BinaryIO, inside: Sequence[str]
) -> subprocess.Popen[bytes]:
    ports = {name: _free_port() for name in ("master", "volume", "filer", "admin")}
    return subprocess.Popen(
        [
            *inside,
            str(WEED),
            "-logtostderr",
            "mini",
            f"-dir={folder / 'data'}",
            f"-ip={host}",
            f"-ip.bind={host}",
            *(f"-{name}.port={port}" for name, port in ports.items()),
            f"-s3.port={s3_port}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-bucket=lake",
        ],
        stdout=log,
        stderr=log,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)


def _free_port() -> int:
    # The server also opens each port + 10000, so both must be free.
    for _ in range(100):
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if not 10_000 < port < 50_000:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no free pair of ports")


def _wait_ready(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the S3 server is not ready: {log.read_text()[-2000:]}")


def _wait_for_bucket(server: S3Server) -> None:
    """The server says that it is ready a moment before it makes the bucket."""
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.pipeline[0],
        aws_secret_access_key=server.pipeline[1],
        region_name="us-east-1",
    )
    deadline = time.monotonic() + START_S
    while True:
        try:
            client.head_bucket(Bucket="lake")
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
