"""The Prefect server of one command, where no other is named; it ends with its command.

Prefect starts one by itself when its client is first used, and for that imports all of its
server into the command (3.8: two seconds of a core). This one is started before the command imports
anything large, so that both go on at once, listens on a port that the system chose, imports nothing
from the working directory, and ends also with a command that was killed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import IO

from flows.prefect_env import NO_SURPRISES, prepare_prefect
from jobs.errors import JobError

# As Prefect starts it: without its page, and with the services of one that soon ends.
OF_A_TEMPORARY_ONE = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
PDEATHSIG = 1  # of prctl(2)
ENDS_S = 10.0

_server: _Server | None = None


class _Server:
    def __init__(self) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # Bound here, so that nobody takes the port in between, and requests wait in its queue.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(128)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            own = [str(os.getpid()), str(listening.fileno())]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.temporary_server", *own],
                pass_fds=[listening.fileno()],
                env=os.environ | OF_A_TEMPORARY_ONE | NO_SURPRISES,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,  # Ctrl-C is the command's
            )
        atexit.register(self.end)

    def wait(self) -> None:
        """Until it answers. Raises JobError where it does not."""
        limit_s = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers(limit_s):
                return
            time.sleep(0.05)
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        why = f": {last[0]}" if last else ""
        raise JobError(
            f"Prefect's temporary server did not start within {limit_s:.0f} s{why}; name a server "
            "in PREFECT_API_URL, or run it again"
        )

    def _answers(self, within_s: float) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=within_s) as answer:
                return answer.status == 200
        except OSError:  # urllib's own are among them
            return False

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def begin() -> None:
    """Start one, unless a server is named, this process has one, or Prefect has read its settings
    already and starts its own. Call `wait` before Prefect is used."""
    global _server
    prepare_prefect()
    wanted = os.environ.get("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE") == "true"
    named = "PREFECT_API_URL" in os.environ
    if _server is None and wanted and not named and "prefect" not in sys.modules:
        _server = _Server()
        os.environ["PREFECT_API_URL"] = _server.url


def wait() -> None:
    """Until the one that was begun answers."""
    if _server is not None:
        _server.wait()


def _serve(owner: int, file: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM)
    if os.getppid() != owner:
        return  # it has gone meanwhile
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=file)])


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
