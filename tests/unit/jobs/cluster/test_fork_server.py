"""Workers that are forked: what they get, what they do not share, and what is done without."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import forked_worker
from jobs.cluster.fork_server import FIRST, ForkServer
from jobs.cluster.worker import ImportedWorker
from jobs.embed.job import EmbedJob
from jobs.evaluate.job import EvaluateJob
from jobs.maintain.compact import CompactJob
from jobs.stage.job import StageJob
from tests.helpers import ROOT
from tests.limits import END_S, SOON_S, until

# In the place of Ray's worker: writes what it is to the file that it is told.
WORKER = """
import json, os, random, signal, sys
import numpy
told = {
    "arguments": sys.argv[1:], "cwd": os.getcwd(), "secret": os.environ.get("SECRET"),
    "parent": os.getppid(), "group": os.getpgid(0) == os.getpid(), "name": __name__,
    "before": "jobs.engine.plan" in sys.modules,
    "numbers": [random.random(), numpy.random.random()],
    "child_signal": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "interrupts": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
}
print("to stdout")
print("to stderr", file=sys.stderr)
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(told, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    monkeypatch.setenv(forked_worker.RAYS_WORKER, str(path))
    monkeypatch.setenv(forked_worker.SERVER, "none yet")
    return path


@pytest.fixture
def server(worker: Path, tmp_path: Path) -> Iterator[ForkServer]:
    made = ForkServer(tmp_path)
    yield made
    made.end()


def start(folder: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """As a raylet starts a worker."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, forked_worker.__file__, str(folder / name), *more]
    piped = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"SECRET": name},
        stdout=piped,
        stderr=piped,
        text=True,
    )


def told(path: Path) -> dict[str, Any]:
    until(path.exists, every_s=0.05)
    return json.loads(path.read_text())


def test_a_forked_worker_is_what_a_started_one_would_be(server: ForkServer, tmp_path: Path) -> None:
    server.import_first("jobs.engine.plan")
    folder = tmp_path / "elsewhere"
    asked = start(folder, "one", "--option=a b", "ü")
    out, err = asked.communicate(timeout=SOON_S)
    found = told(folder / "one")
    assert found["parent"] == server.process.pid
    assert found["before"]  # it was imported before the fork
    assert found["arguments"] == [str(folder / "one"), "--option=a b", "ü"]
    assert (found["cwd"], found["secret"], found["name"]) == (str(folder), "one", "__main__")
    assert (found["group"], found["child_signal"], found["interrupts"]) == (True, True, True)
    assert (out, err) == ("to stdout\n", "to stderr\n")


def test_workers_that_are_forked_at_once_draw_other_numbers(
    server: ForkServer, tmp_path: Path
) -> None:
    asked = [start(tmp_path, str(number)) for number in range(6)]
    for process in asked:
        process.communicate(timeout=SOON_S)
    found = [told(tmp_path / str(number)) for number in range(6)]
    assert {one["secret"] for one in found} == {str(number) for number in range(6)}
    drawn = [number for one in found for number in one["numbers"]]
    assert len(set(drawn)) == len(drawn) == 12


@pytest.mark.parametrize("how", ["it was killed", "it imported Ray", "there is none"])
def test_without_the_server_a_worker_starts_by_itself(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "it was killed":
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(END_S)
    elif how == "it imported Ray":
        server.import_first("ray")
        assert server.process.wait(SOON_S) == 0
    else:
        monkeypatch.setenv(forked_worker.SERVER, str(tmp_path / "nowhere"))
    server.import_first("jobs.engine.plan")  # which is of no use any more, and no error
    asked = start(tmp_path, "alone", "--option")
    out, _ = asked.communicate(timeout=SOON_S)
    found = told(tmp_path / "alone")
    assert asked.returncode == 0
    assert found["parent"] == os.getpid()
    assert found["arguments"] == [str(tmp_path / "alone"), "--option"]
    assert out == "to stdout\n"


def test_a_module_that_cannot_be_imported_costs_nothing(server: ForkServer, tmp_path: Path) -> None:
    server.import_first("no.such.module", "jobs.engine.plan")
    start(tmp_path, "one").communicate(timeout=SOON_S)
    assert told(tmp_path / "one")["before"]


def test_who_asks_and_goes_harms_nobody(server: ForkServer, tmp_path: Path) -> None:
    for message in (
        b"",
        b"\0\0",
        (1 << 20).to_bytes(8, "big") + b"{",
        (2).to_bytes(8, "big") + b"no",
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.connect(os.environ[forked_worker.SERVER])
            asking.sendall(message)
    start(tmp_path, "one").communicate(timeout=SOON_S)
    assert told(tmp_path / "one")["parent"] == server.process.pid


def test_the_server_ends_with_its_owner(worker: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from jobs.cluster.fork_server import ForkServer\n"
        "print(ForkServer(Path(sys.argv[1])).process.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    number = int(owner.stdout.readline())
    owner.kill()
    owner.wait(END_S)
    until(lambda: not Path(f"/proc/{number}").exists(), END_S, every_s=0.05)


def all_told() -> list[str]:
    """Every module that the fork server is requested."""
    from jobs.train.launch import TRAINING

    made = [
        StageJob.worker(object.__new__(StageJob)),
        EmbedJob.worker(object.__new__(EmbedJob)),
        EvaluateJob.worker(object.__new__(EvaluateJob)),
        CompactJob.worker(object.__new__(CompactJob)),
    ]
    modules = [one.module for one in made if isinstance(one, ImportedWorker)]
    assert len(modules) == len(made)
    return [*FIRST, *modules, *TRAINING]


def test_what_is_imported_before_a_fork_brings_no_ray_and_no_thread() -> None:
    """Ray draws names from a state that forks would share, and threads are not forked."""
    code = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'ray' not in sys.modules and 'grpc' not in sys.modules, name\n"
        "    assert threading.active_count() == 1, (name, threading.enumerate())\n"
        "assert not sys.modules['torch'].cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *all_told()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
