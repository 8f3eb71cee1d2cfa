"""A cluster that grows: Ray's own autoscaler, which makes raylets of this machine its nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from tests.limits import COMMAND_S
from tests.ray_head import RayHead, running_head

pytestmark = pytest.mark.integration
# Not ray.cluster_utils.AutoscalingCluster: it ends every Ray of the machine first.
LISTS = [
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
]
GROWING = {
    **{f"{name}_commands": [] for name in LISTS},
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "upscaling_speed": 1.0,
    "cluster_name": "growing",
    "max_workers": 4,
    "idle_timeout_minutes": 10,
    "provider": {"type": "fake_multinode"},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "plain": {"resources": {"CPU": 2, "plain": 1}, "node_config": {}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "max_workers": 2},
    },
}
PORT = 6379  # where such nodes look for their head
RUN = """
    import json, sys
    import ray
    from jobs.cluster import connect
    from jobs.cluster.settings import RaySettings
    settings = RaySettings(address=sys.argv[1], autoscaling=True, resource_timeout_s=300)
    gpus, cpus = int(sys.argv[2]), int(sys.argv[3])
    room = connect.ensure(settings, cpus, gpus=gpus)
    kinds = sorted(sorted(set(node["Resources"]) & {"GPU", "plain"}) for node in ray.nodes())
    print(json.dumps([room, connect.on_gpus("cuda" if gpus else "cpu", gpus), kinds]))
"""


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head without CPUs; nodes with a GPU and nodes without one come when they are requested."""
    with socket.socket() as tried:
        if not tried.connect_ex(("127.0.0.1", PORT)):
            pytest.skip(f"something listens on port {PORT}")
    config = tmp_path_factory.mktemp("growing") / "config.yaml"
    config.write_text(json.dumps(GROWING))
    env = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with running_head(0, env, port=PORT, options=[f"--autoscaling-config={config}"]) as head:
        yield head


def asked(head: RayHead, gpus: int, cpus: int) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), head.gcs, str(gpus), str(cpus)],
        env=os.environ | head.environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=COMMAND_S,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_gpus_are_asked_for_and_their_cpus_are_enough(growing: RayHead) -> None:
    room, on_gpus, kinds = asked(growing, gpus=1, cpus=2)
    assert (room, on_gpus) == (2, True)
    assert kinds == [[], ["GPU"]]  # no node came that would have no work
