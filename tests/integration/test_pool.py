"""A pool of workers on a cluster that grows: it begins with few, and ends without those idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import executor
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import Workers
from jobs.engine.plan import Completion, JobContext, Plan, Unit
from jobs.lake.paths import LakePaths
from tests.helpers import ROOT
from tests.limits import RUN_S, SOON_S

pytestmark = pytest.mark.integration


def plan_of(count: int) -> Plan:
    units = [Unit.of("fingerprint", {"number": number}) for number in range(count)]
    return Plan(
        job="embed",
        target="m",
        fingerprint="fingerprint",
        night="2026-01-01",
        base={},
        settings={},
        units=units,
    )


class Noted:
    """Each unit takes a while, and leaves a file that names it and its process."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        self.folder = Path(lake.uri.removeprefix("file://"))

    def execute(self, unit: Unit, attempt: str) -> Completion:
        time.sleep(0.5)
        (self.folder / f"{os.getpid()}-{unit.unit_id}").touch()
        return done(unit, attempt)


def done(unit: Unit, attempt: str) -> Completion:
    return Completion(unit_id=unit.unit_id, attempt=attempt, outputs=[], counts={}, seconds=0.0)


RUN = """
    import sys
    import ray
    from jobs.cluster import executor
    from jobs.cluster.settings import RaySettings
    from jobs.cluster.worker import Workers
    from jobs.lake.paths import LakePaths
    from tests.integration.test_pool import Noted, plan_of
    plan = plan_of(30)
    executor.run_units(Noted, LakePaths("file://" + sys.argv[2]), plan, plan.units,
        workers=Workers(3, least=1), ray_settings=RaySettings(address=sys.argv[1]),
        report_count="embedded")
"""


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield made
    finally:
        made.shutdown()


def noted(folder: Path) -> dict[str, list[str]]:
    """Units by process."""
    found: dict[str, list[str]] = {}
    for path in folder.glob("*-*"):
        process, unit = path.name.split("-", 1)
        found.setdefault(process, []).append(unit)
    return found


def test_workers_join_as_a_cluster_grows_and_none_is_waited_for(
    cluster: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RUN), cluster.address, str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + RUN_S
        while sum(map(len, noted(tmp_path).values())) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(noted(tmp_path)) == 1  # with the one that there was room for
        cluster.add_node(num_cpus=1)
        assert process.wait(RUN_S) == 0  # although the third never found room
    finally:
        process.kill()
    by_process = noted(tmp_path)
    assert len(by_process) == 2
    assert len({unit for units in by_process.values() for unit in units}) == 30


class Paired:
    """Ends no unit before another one has begun."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        self.both = threading.Barrier(2)

    def execute(self, unit: Unit, attempt: str) -> Completion:
        self.both.wait(SOON_S)
        return done(unit, attempt)


def test_a_worker_may_have_two_units_in_hand(tmp_path: Path) -> None:
    plan = plan_of(6)
    executor.run_units(
        Paired,
        LakePaths(tmp_path.as_uri()),
        plan,
        plan.units,
        workers=Workers(1, units_at_once=2),
        ray_settings=RaySettings(cpus=2),
        report_count="embedded",
    )


class Endless:
    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        pass

    def execute(self, unit: Unit, attempt: str) -> Completion:
        time.sleep(3 * RUN_S)
        return done(unit, attempt)


class Alarm(BaseException):
    """As Prefect's timeout and its cancel are."""


def test_an_alarm_is_heard_while_units_are_at_work(tmp_path: Path) -> None:
    """Ray's own waits drop it, whenever they are the ones to hear it."""

    def ring(*_: Any) -> None:
        raise Alarm

    plan = plan_of(3)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 12.0)
    started = time.monotonic()
    try:
        with pytest.raises(Alarm):
            executor.run_units(
                Endless,
                LakePaths(tmp_path.as_uri()),
                plan,
                plan.units,
                workers=Workers(1),
                ray_settings=RaySettings(cpus=2),
                report_count="embedded",
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < RUN_S
