"""A night over several hosts: each with its address and raylet, the S3 server on one of its own.

Two of them lose their network, one in mid-training and one in mid-embedding.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml

from tests.helpers import LATENTLAKE, S3Server, image_ids, write_source
from tests.hosts import Hosts, entered, hosts, why_not
from tests.limits import RUN_S, START_S, until
from tests.ray_head import RayHead, running_head, running_node
from tests.s3_server import WEED, running_server

pytestmark = pytest.mark.integration
NIGHT = "2026-01-01"
IMAGES = 6000  # so that each host has some seconds of embedding to do
# A host is missed after some 15 s; a busy machine is none that is lost.
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "20000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture
def net() -> Iterator[Hosts]:
    """Four hosts; the test itself is on the head."""
    reason = why_not() or (None if WEED.exists() else "no S3 server on this platform")
    if reason is not None:
        pytest.skip(reason)
    with hosts(["head", "second", "third", "store"]) as made, entered(made.namespaces["head"]):
        yield made


@pytest.fixture
def store(net: Hosts) -> Iterator[S3Server]:
    with running_server(net.addresses["store"], net.inside("store")) as server:
        yield server


@pytest.fixture
def cluster(net: Hosts, store: S3Server) -> Iterator[RayHead]:
    """A head and two more hosts, of one CPU each."""
    env = {**WATCHFUL, **store.environment()}
    with ExitStack() as ending:
        head = ending.enter_context(running_head(1, env, net.addresses["head"]))
        for count, name in enumerate(("second", "third"), 2):
            for _ in range(3):  # on a busy machine a raylet may give up while it starts
                inside = net.inside(name, own=str(head.folder))
                node = running_node(head, 1, env, net.addresses[name], inside)
                if joined(head, ending.enter_context(node), count):
                    break
            assert nodes(head) == count, told_by_nodes(head)
        yield head


def told_by_nodes(head: RayHead) -> str:
    return "\n".join(path.read_text() for path in head.folder.glob("node-*/stderr"))


def joined(head: RayHead, process: subprocess.Popen[bytes], count: int) -> bool:
    """Whether there are as many nodes then; False where the process has ended."""
    until(lambda: nodes(head) == count or process.poll() is not None, START_S)
    return nodes(head) == count


def nodes(head: RayHead) -> int:
    """Alive."""
    told = json.loads(head.open("/nodes?view=summary"))["data"]["summary"]
    return sum(node["raylet"]["state"] == "ALIVE" for node in told)


def has_actor(head: RayHead, address: str) -> bool:
    """Whether one is alive on the host."""
    told = json.loads(head.open("/nodes?view=summary"))["data"]["summary"]
    (node,) = [node["raylet"]["nodeId"] for node in told if node["ip"] == address]
    held = json.loads(head.open("/api/v0/actors?detail=true"))["data"]["result"]["result"]
    return any(actor["node_id"] == node and actor["state"] == "ALIVE" for actor in held)


class Bucket:
    """As this thread sees it: s3fs asks on a thread of its own, which may be on another host."""

    def __init__(self, server: S3Server) -> None:
        self.client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.pipeline[0],
            aws_secret_access_key=server.pipeline[1],
            region_name="us-east-1",
        )

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="lake", Key=key, Body=data)

    def names(self, prefix: str, part: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix)
        keys = [held["Key"] for page in pages for held in page.get("Contents", [])]
        return [key for key in keys if part in key]


def test_a_night_over_hosts_of_which_two_are_cut_off_ends_correct(
    net: Hosts, store: S3Server, cluster: RayHead, tmp_path: Path
) -> None:
    write_source(tmp_path / "a.parquet", range(IMAGES), broken=[5])
    bucket = Bucket(store)
    bucket.put("source/a.parquet", (tmp_path / "a.parquet").read_bytes())
    settings = {
        "lake": "s3://lake/l",
        "stage": {"source": "s3://lake/source/*.parquet", "dataset": "d", "rows_per_unit": 400}
        | {"height": 28, "width": 28, "channels": 1},
        "train": {"dataset": "d", "model": "d", "epochs": 1, "latent_dim": 8, "workers": 3}
        | {"network": {"kind": "conv", "widths": [32, 64], "hidden": 128}, "batch_size": 96}
        | {"run": {"checkpoint_s": 1, "min_workers": 1}},
        "embed": {"dataset": "d", "model": "d"},
        "evaluate": None,  # minutes of it, and no other way over hosts than embedding
        "gate": None,
        "drift": None,
        "ray": {"address": cluster.address},
    }
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(settings))
    env = os.environ | store.environment() | cluster.environment
    command = [LATENTLAKE, "nightly", "--config", tmp_path / "n.yaml", "--night", NIGHT]
    with (tmp_path / "log").open("wb") as log:
        night = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    told = (tmp_path / "log").read_text

    def checkpoints() -> list[str]:
        """Whole ones."""
        return [name for name in bucket.names("l/runs/", "/checkpoints/") if name.endswith("json")]

    def at_work(what: Any) -> None:
        until(lambda: night.poll() is not None or what(), RUN_S)
        assert night.poll() is None, told()

    try:
        at_work(checkpoints)
        net.cut("second")
        at_work(lambda: nodes(cluster) == 2)
        at_work(lambda: bucket.names("l/units/embed", "/plan"))
        at_work(lambda: has_actor(cluster, net.addresses["third"]))
        time.sleep(0.3)  # it has its units by now, and some seconds to go
        net.cut("third")
        assert night.wait(RUN_S) == 0, told()
    finally:
        night.kill()
    assert "going on from" in told()
    assert "its worker was lost" in told()
    assert "Board" not in told()  # what the driver reads is beside it, not on a host that was lost
    until(lambda: nodes(cluster) == 1)
    query = "SELECT image_id FROM embeddings"
    found = subprocess.run(
        [LATENTLAKE, "query", "sql", query, "--lake", "s3://lake/l", "--json"],
        env=env,
        capture_output=True,
        check=True,
    )

    ids = [row["image_id"] for row in json.loads(found.stdout)]
    good = image_ids([row for row in range(IMAGES) if row != 5])
    assert sorted(ids) == sorted(good)
