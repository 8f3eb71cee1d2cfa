"""Ray workers of an embedded cluster, forked from a process that has imported what they need.

A worker is an interpreter that imports numpy, pyarrow and mostly torch: two to four seconds of a
CPU each, and the demo's two nights have some twenty. Forked from one that has imported them, it
imports Ray and no more, and shares their memory (`make bench-starts`). The server has one thread of
Python, opens no file and no connection, and computes nothing: what a fork copies is modules. Ray
itself is not one of them: it draws the names of its objects from a state that forks would share.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.cluster.forked_worker import FORKED, RAYS_WORKER, SERVER

# Threads of a library that are started when it is imported would not be there after a fork.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# What Ray imports for any worker.
FIRST = ("asyncio", "google.protobuf.json_format", "jsonschema", "requests", "yaml", "numpy")
ASKING_S = 10.0


class ForkServer:
    """The driver's side: starts the process, which ends with its owner, and tells it modules."""

    def __init__(self, folder: Path) -> None:
        """folder: a private one, for the socket."""
        self.requested: set[str] = set()
        path = str(folder / "forks")
        # Bound here, so that a worker that asks while the server still starts waits for it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(path)
            listening.listen(64)
            with _no_interrupts():
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "jobs.cluster.fork_server",
                        str(listening.fileno()),
                    ],
                    stdin=subprocess.PIPE,
                    pass_fds=[listening.fileno()],
                    env=os.environ | ONE_THREAD,
                )
        os.environ[SERVER] = path

    def import_first(self, *modules: str) -> None:
        """Asks for modules that the workers to come will need; does not wait.

        None may import Ray: the server gives up where one does, and workers start as Ray does it.
        """
        assert self.process.stdin is not None
        new = [name for name in modules if name not in self.requested]
        self.requested.update(new)
        with contextlib.suppress(OSError):  # where it has ended, workers start as Ray starts them
            self.process.stdin.write("".join(f"{name}\n" for name in new).encode())
            self.process.stdin.flush()

    def end(self) -> None:
        """End the server, and with it whatever waits for a worker."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C is the driver's, as for all of Ray's processes; children inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(listening: socket.socket) -> dict[str, Any] | None:
    """Import and fork until its owner is gone. In a forked process, what the worker is to be."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    gc.disable()  # modules are no garbage
    waits = selectors.DefaultSelector()
    waits.register(listening, selectors.EVENT_READ)
    waits.register(0, selectors.EVENT_READ)
    pending, rest = deque[str](FIRST), b""
    while "ray" not in sys.modules:
        ready = {key.fileobj for key, _ in waits.select(0 if pending else None)}
        if 0 in ready:
            read = os.read(0, 1 << 16)
            if not read:
                return None
            *names, rest = (rest + read).split(b"\n")
            pending.extend(name.decode() for name in names)
        elif pending:
            # Before a fork that waits: else both would import it.
            with contextlib.suppress(Exception):  # the worker that needs it says so
                importlib.import_module(pending.popleft())
        else:
            worker = _forked(listening)
            if worker is not None:
                waits.close()
                listening.close()
                return worker
    return None


def _forked(listening: socket.socket) -> dict[str, Any] | None:
    """None in the server."""
    asking, _ = listening.accept()
    with asking:
        files: list[int] = []
        try:
            asking.settimeout(ASKING_S)
            size, files, _, _ = socket.recv_fds(asking, 8, 3)
            length, request = int.from_bytes(size, "big"), b""
            while len(request) < length:
                part = asking.recv(length - len(request))
                if not part:
                    return None
                request += part
            worker = json.loads(request.decode("utf-8", "surrogateescape"))
            gc.freeze()  # nor in the workers, whose collector would copy their pages
            if os.fork():
                asking.sendall(FORKED)
                return None
        except (OSError, ValueError):
            return None  # the raylet's script has gone, and starts the worker itself
        else:
            for number, file in enumerate(files):
                os.dup2(file, number)
            return worker
        finally:
            for file in files:
                os.close(file)


def become(worker: dict[str, Any]) -> None:
    """In the forked process: Ray's worker, as if it had been started by itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.enable()
    os.setpgid(0, 0)  # as the raylet does it: a worker is ended with its group
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    os.environ.clear()
    os.environ.update(worker["environment"])
    os.chdir(worker["cwd"])
    script = os.environ[RAYS_WORKER]
    sys.argv = [script, *worker["arguments"]]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    made = serve(socket.socket(fileno=int(sys.argv[1])))
    if made is not None:
        become(made)
