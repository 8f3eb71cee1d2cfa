from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from jobs.cluster import connect as cluster_connect
from jobs.cluster.settings import RaySettings
from jobs.errors import ClusterError, InputError
from tests.helpers import ROOT
from tests.limits import COMMAND_S


def test_an_autoscaling_cluster_is_asked_for_cpus_and_waited_for(monkeypatch) -> None:
    """The cluster has one CPU until somebody asks it for more."""
    asked: list[int] = []
    cpus = {"now": 1.0}

    def request(num_cpus: int) -> None:
        asked.append(num_cpus)
        cpus["now"] = max(cpus["now"], num_cpus)

    monkeypatch.setattr(cluster_connect, "request_resources", request)
    monkeypatch.setattr(cluster_connect.ray, "available_resources", lambda: {"CPU": cpus["now"]})
    monkeypatch.setattr(cluster_connect.ray, "cluster_resources", lambda: {"CPU": cpus["now"]})
    monkeypatch.setattr(cluster_connect.ray, "is_initialized", lambda: True)
    with pytest.raises(InputError, match=r"4 workers requested.*1 CPUs, 1 of them free"):
        cluster_connect.ensure(RaySettings(), 4)
    assert asked == []
    assert cluster_connect.ensure(RaySettings(autoscaling=True, resource_timeout_s=600), 4) == 4
    assert asked == [4, 0]  # the request is taken back once it is met


@pytest.mark.slow
def test_an_autoscaling_cluster_that_does_not_grow_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(cluster_connect, "request_resources", lambda num_cpus: None)
    monkeypatch.setattr(cluster_connect.ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(cluster_connect.ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(cluster_connect.ray, "is_initialized", lambda: True)
    started = time.monotonic()
    with pytest.raises(ClusterError, match="4 workers requested"):
        cluster_connect.ensure(RaySettings(autoscaling=True, resource_timeout_s=1), 4)
    assert time.monotonic() - started >= 1.0


def test_cpus_that_others_use_may_be_free_the_next_time(monkeypatch) -> None:
    """More than there are is a mistake; more than are free now is a fault that passes."""
    monkeypatch.setattr(cluster_connect.ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(cluster_connect.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(cluster_connect.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster_connect, "GRACE_S", 0.0)
    with pytest.raises(ClusterError, match=r"4 workers requested.*1 of them free"):
        cluster_connect.ensure(RaySettings(), 4)
    with pytest.raises(InputError, match="5 workers requested"):
        cluster_connect.ensure(RaySettings(), 5)


def test_without_a_number_the_free_cpus_are_used(monkeypatch) -> None:
    monkeypatch.setattr(cluster_connect.ray, "available_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(cluster_connect.ray, "cluster_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(cluster_connect.ray, "is_initialized", lambda: True)
    assert cluster_connect.ensure(RaySettings(), None) == 3


def test_folders_of_killed_processes_are_swept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cluster_connect.tempfile, "gettempdir", lambda: "/tmp")
    gone = subprocess.Popen(["true"])
    gone.wait()
    prefix = "ll-sweep-"
    stale = cluster_connect.Path(f"/tmp/{prefix}{gone.pid}-abc")
    stale.mkdir()
    mine = cluster_connect.temporary_folder(prefix)
    again = cluster_connect.temporary_folder(prefix)
    assert not stale.exists()
    assert mine.exists()
    assert again.exists()
    assert len(str(mine)) < cluster_connect.SOCKET_PATH_LIMIT
    mine.rmdir()
    again.rmdir()


def test_a_job_that_has_begun_goes_on_with_what_nodes_are_left(monkeypatch, caplog) -> None:
    cpus = {"now": 1.0}
    monkeypatch.setattr(cluster_connect.ray, "available_resources", lambda: {"CPU": cpus["now"]})
    monkeypatch.setattr(cluster_connect.ray, "cluster_resources", lambda: {"CPU": cpus["now"]})
    with caplog.at_level("WARNING", "latentlake"):
        assert cluster_connect.still(RaySettings(), 2) == 1
    assert "1 CPUs are left of the 2 requested" in caplog.text
    assert cluster_connect.still(RaySettings(), None) == 1
    cpus["now"] = 0.0
    monkeypatch.setattr(cluster_connect, "GRACE_S", 0.0)
    with pytest.raises(ClusterError, match="1 workers requested"):
        cluster_connect.still(RaySettings(), 2)


FAILS_AT_FIRST = """
import os, sys, ray
from ray._private import node as ray_node
from jobs.cluster import connect
from jobs.cluster.settings import RaySettings
from tests.serving import command_of, descendants
failures = int(sys.argv[1])
start, tries = ray_node.Node.start_raylet, []
def start_raylet(self, *arguments, **more):
    tries.append(1)
    if len(tries) <= failures:
        raise Exception("The current node timed out\\nduring startup")
    start(self, *arguments, **more)
ray_node.Node.start_raylet = start_raylet
try:
    connect.ensure(RaySettings(cpus=1), 1)
    print(ray.get(ray.remote(lambda: 41).remote()) + 1)
finally:
    print("gcs", sum("gcs/gcs_server" in command_of(pid) for pid in descendants(os.getpid())))
"""


@pytest.mark.slow
def test_ray_that_does_not_start_is_started_again() -> None:
    """And what had begun of it is ended."""

    def told(failures: int) -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, "-c", FAILS_AT_FIRST, str(failures)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return done.stdout.split(), done.stderr

    assert told(1)[0] == ["42", "gcs", "1"]
    out, err = told(9)
    assert out == ["gcs", "0"]
    last = err.strip().splitlines()[-1]
    assert "ClusterError: Ray did not start within" in last
    assert "in 3 tries (Exception: The current node timed out during startup)" in last
    assert "run it again when there is room" in last
