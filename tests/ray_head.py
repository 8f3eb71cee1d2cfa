"""A Ray cluster as `ray start` makes it, in processes of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.helpers import free_port
from tests.limits import END_S, SOON_S, START_S

RAY = Path(sys.executable).parent / "ray"
QUICK = {"RAY_metrics_report_interval_ms": "500"}  # tests do not last long
EMBEDDED = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0 once this process has had an embedded cluster


@dataclasses.dataclass(frozen=True)
class RayHead:
    """With a token of its own, as a cluster that others can reach should have."""

    address: str
    gcs: str
    metrics_host: str
    folder: Path
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever submits to it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def open(self, path: str) -> bytes:
        asked = urllib.request.Request(self.address + path)
        asked.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(asked, timeout=SOON_S) as answer:
            return answer.read()


def ended(process: subprocess.Popen[bytes]) -> None:
    """Of a session of its own, with all that it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)


@contextlib.contextmanager
def running_head(
    cpus: int,
    env: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    options: Sequence[str] = (),
) -> Iterator[RayHead]:
    """Ends with the block. options: more of `ray start`."""
    folder = Path(tempfile.mkdtemp(prefix="ll-h-", dir="/tmp"))
    port, dashboard, metrics = port or free_port(), free_port(), free_port()
    token = secrets.token_hex(16)
    head = RayHead(
        f"http://{host}:{dashboard}", f"{host}:{port}", f"{host}:{metrics}", folder, token
    )
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        f"--num-cpus={cpus}",
        f"--node-ip-address={host}",
        f"--port={port}",
        f"--dashboard-host={host}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
        *options,
    ]
    process = _started(command, head, folder, env or {})
    try:
        _wait_for(head, process, folder)
        yield head
    finally:
        ended(process)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_node(
    head: RayHead, cpus: int, env: Mapping[str, str], host: str, inside: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Another host of the cluster, with what it says in head.folder beside the head's.

    inside: a command that runs it there, such as ip netns exec.
    """
    folder = Path(tempfile.mkdtemp(prefix="node-", dir=head.folder))
    command = [
        *inside,
        str(RAY),
        "start",
        "--block",
        f"--address={head.gcs}",
        f"--num-cpus={cpus}",
        f"--node-ip-address={host}",
        "--disable-usage-stats",
    ]
    process = _started(command, head, folder, env)
    try:
        yield process
    finally:
        ended(process)
        shutil.rmtree(folder, ignore_errors=True)


def _started(
    command: Sequence[str], head: RayHead, folder: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    path = f"{RAY.parent}:{os.environ['PATH']}"  # jobs call python by name
    own = {name: value for name, value in os.environ.items() if name != EMBEDDED}
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**own, "PATH": path, **QUICK, **head.environment, **env},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )


def _wait_for(head: RayHead, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, (folder / "stderr").read_text()
        with contextlib.suppress(urllib.error.URLError, OSError):
            head.open("/api/jobs/")
            return
        assert time.monotonic() < deadline, (folder / "stderr").read_text()
        time.sleep(0.5)
