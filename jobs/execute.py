"""Execute: units on a pool of Ray actors, in bounded waves, with bounded waits."""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import ray
from ray.exceptions import RayError, RayTaskError

from jobs import cluster
from jobs.config import RaySettings
from jobs.errors import JobError, LatentlakeError, StorageError
from jobs.lake import Lake
from jobs.records import save_completion
from jobs.units import Completion, JobContext, Plan, Unit

log = logging.getLogger("latentlake")

IN_FLIGHT = 2  # units handed to an actor at once, so that it never waits for the driver
MAX_ATTEMPTS = 4
NO_PROGRESS_S = 1800.0
WAIT_SLICE_S = 0.5
REPORT_EVERY_S = 5.0


class Worker(Protocol):
    """Does a job's units, one at a time; made once an actor."""

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Reads the unit's inputs, writes its outputs under names that carry the attempt."""
        ...


WorkerFactory = Callable[[Lake, JobContext], Worker]


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)
class _UnitActor:
    def __init__(self, factory: WorkerFactory, lake: Lake, context: JobContext) -> None:
        self.lake = lake
        self.job_id = context.job_id
        # Made with the first unit: an error in here would only tell that the actor died.
        self.make = functools.cache(functools.partial(factory, lake, context))

    def run(self, unit: Unit) -> dict[str, int]:
        completion = self.make().execute(unit, uuid.uuid4().hex[:8])
        save_completion(self.lake, self.job_id, completion)
        return completion.counts


def run_units(
    factory: WorkerFactory,
    lake: Lake,
    plan: Plan,
    units: Sequence[Unit],
    *,
    workers: int | None,
    ray_settings: RaySettings,
    report_count: str,
) -> None:
    """Runs every unit on `workers` actors, by default one a CPU. Raises the first unit's error.

    A unit whose actor dies is handed out again, at most MAX_ATTEMPTS times in all.
    """
    count = min(cluster.ensure(ray_settings, workers), len(units))
    actors = [_UnitActor.remote(factory, lake, plan.context) for _ in range(count)]
    try:
        _drain(actors, deque(units), len(units), f"{plan.job} {plan.target}", report_count)
    finally:
        for actor in actors:
            ray.kill(cast(Any, actor))


def _drain(actors: Sequence[Any], waiting: deque[Unit], total: int, title: str, count: str) -> None:
    running: dict[ray.ObjectRef, tuple[Unit, Any]] = {}
    attempts: dict[str, int] = {}
    load = dict.fromkeys(range(len(actors)), 0)
    done, rows, started = 0, 0, time.monotonic()
    last_progress = last_report = started
    while waiting or running:
        for index, actor in enumerate(actors):
            while waiting and load[index] < IN_FLIGHT:
                unit = waiting.popleft()
                running[actor.run.remote(unit)] = (unit, index)
                load[index] += 1
        ready, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SLICE_S)
        now = time.monotonic()
        for ref in ready:
            unit, index = running.pop(ref)
            load[index] -= 1
            counts = _result(ref, unit, attempts)
            if counts is None:
                waiting.append(unit)
                continue
            done, rows, last_progress = done + 1, rows + counts.get(count, 0), now
        if now - last_report > REPORT_EVERY_S:
            last_report = now
            log.info(
                "%s: %d of %d units, %.0f %s/s", title, done, total, rows / (now - started), count
            )
        if now - last_progress > NO_PROGRESS_S:
            raise JobError(f"{title}: no unit finished in {NO_PROGRESS_S:.0f} s; run it again")


def _result(ref: ray.ObjectRef, unit: Unit, attempts: dict[str, int]) -> dict[str, int] | None:
    """The unit's counts; None where its worker or storage failed and it has attempts left."""
    try:
        return ray.get(ref, timeout=60)
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, LatentlakeError):
            raise
        if not isinstance(cause, StorageError) or not _may_try_again(unit, attempts, str(cause)):
            raise cause from None
    except RayError as error:
        if not _may_try_again(unit, attempts, "its worker was lost"):
            raise JobError(
                f"unit {unit.unit_id} lost its worker {MAX_ATTEMPTS} times: {error}"
            ) from error
    return None


def _may_try_again(unit: Unit, attempts: dict[str, int], why: str) -> bool:
    attempts[unit.unit_id] = attempts.get(unit.unit_id, 1) + 1
    if attempts[unit.unit_id] > MAX_ATTEMPTS:
        return False
    log.warning("unit %s: %s; attempt %d", unit.unit_id, why, attempts[unit.unit_id])
    time.sleep(0.2)
    return True
