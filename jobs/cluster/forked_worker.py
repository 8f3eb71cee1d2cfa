"""What an embedded Ray's raylet runs to start a worker: asks the fork server for one.

A script of its own that imports nothing but the standard library, so that it takes a moment. Where
no fork server answers, it becomes Ray's own worker, as if it had not been there.
"""

import json
import os
import socket
import sys

SERVER = "LATENTLAKE_FORK_SERVER"  # the path of its socket
RAYS_WORKER = "LATENTLAKE_RAYS_WORKER"  # the path of Ray's own script
FORKED = b"f"


def forked() -> bool:
    """Whether the fork server has started a worker with our arguments, environment and files."""
    request = json.dumps(
        {"arguments": sys.argv[1:], "environment": dict(os.environ), "cwd": os.getcwd()}  # noqa: PTH109
    ).encode("utf-8", "surrogateescape")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.connect(os.environ[SERVER])
            socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(request)
            return server.recv(1) == FORKED
    except OSError:
        return False


if __name__ == "__main__" and not forked():
    os.execv(sys.executable, [sys.executable, os.environ[RAYS_WORKER], *sys.argv[1:]])
