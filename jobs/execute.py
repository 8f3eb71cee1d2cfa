"""Execute: units on a pool of Ray actors, in bounded waves, with bounded waits."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from jobs import cluster
from jobs.config import RaySettings
from jobs.errors import JobError, LatentlakeError, StorageError
from jobs.job import WorkerFactory
from jobs.lake import Lake
from jobs.progress import Progress
from jobs.records import save_completion
from jobs.units import JobContext, Plan, Unit

log = logging.getLogger("latentlake")

IN_FLIGHT = 2  # units handed to an actor at once, so that it never waits for the driver
MAX_ATTEMPTS = 4
NO_PROGRESS_S = 1800.0
WAIT_SLICE_S = 0.5

_begun: set[tuple[str, int | None]] = set()  # jobs of this process, and the workers they got


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)
class _UnitActor:
    def __init__(
        self, factory: WorkerFactory, lake: Lake, context: JobContext, device: str
    ) -> None:
        context = dataclasses.replace(context, settings=context.settings | {"device": device})
        self.lake = lake
        self.job_id = context.job_id
        # Made with the first unit: an error in here would only tell that the actor died.
        self.make = functools.cache(functools.partial(factory, lake, context))

    def ping(self) -> None:
        """Answers once the actor has a place to run."""

    def run(self, unit: Unit) -> dict[str, int]:
        completion = self.make().execute(unit, uuid.uuid4().hex[:8])
        save_completion(self.lake, self.job_id, completion)
        return completion.counts


def run_units(
    factory: WorkerFactory,
    lake: Lake,
    plan: Plan,
    units: Iterable[Unit],
    *,
    workers: int | None,
    ray_settings: RaySettings,
    report_count: str,
    device: str = "cpu",
) -> None:
    """Runs units as they come on `workers` actors, by default one a CPU.

    device: of each actor: cpu; cuda, a GPU each, by default one actor a GPU; auto, which is cuda
    where there are enough GPUs. A worker finds it among its job's settings.

    Raises the first unit's error. A unit whose actor dies is handed out again, at most
    MAX_ATTEMPTS times in all.
    """
    coming = iter(units)
    # A job's first units are refused where there is too little to run them; later ones go on with
    # what nodes are left.
    begun = (plan.job_id, workers) in _begun
    limit = (cluster.still if begun else cluster.ensure)(ray_settings, workers)
    _begun.add((plan.job_id, workers))
    on_gpus = device != "cpu" and cluster.on_gpus(device, workers or 1)
    if on_gpus:
        limit = min(limit, int(ray.cluster_resources()["GPU"]))
        log.info("%s %s: on %d GPUs, in float32", plan.job, plan.target, limit)
    elif device == "auto":
        log.warning(
            "%s %s: too few GPUs for what was calibrated on one; on CPUs, with results that are "
            "marked so",
            plan.job,
            plan.target,
        )
    first = list(itertools.islice(coming, limit))
    make = _UnitActor.options(num_gpus=int(on_gpus))  # type: ignore[attr-defined]
    kind = "cuda" if on_gpus else "cpu"
    actors = [make.remote(factory, lake, plan.context, kind) for _ in first]
    progress = Progress(f"{plan.job} {plan.target}", report_count)
    try:
        _drain(actors, itertools.chain(first, coming), progress)
    finally:
        for actor in actors:
            ray.kill(cast(Any, actor))


def _drain(actors: Sequence[Any], coming: Iterator[Unit], progress: Progress) -> None:
    again: deque[Unit] = deque()
    running: dict[ray.ObjectRef, tuple[Unit, Any]] = {}
    attempts: dict[str, int] = {}
    load = dict.fromkeys(range(len(actors)), 0)
    # An actor gets no work until it answers, at first and when it was lost: what waits for an
    # actor that never came up, because its node is gone, would wait for ever.
    resting = {index: actor.ping.remote() for index, actor in enumerate(actors)}
    last_done = time.monotonic()
    while True:
        resting = _still_resting(resting, actors)
        for index, actor in enumerate(actors):
            while (
                index not in resting
                and load[index] < IN_FLIGHT
                and (unit := _next(again, coming)) is not None
            ):
                progress.planned += unit.unit_id not in attempts
                running[actor.run.remote(unit)] = (unit, index)
                load[index] += 1
        if not running and not again and len(resting) < len(actors):
            progress.finished()
            return
        # Fewer than those at work could take: nothing more is coming.
        working = [count for index, count in load.items() if index not in resting]
        progress.all_planned = any(count < IN_FLIGHT for count in working)
        watched = [*running, *(() if running else resting.values())]
        ready, _ = ray.wait(watched, num_returns=1, timeout=WAIT_SLICE_S)
        for ref in ready:
            if ref not in running:
                continue  # an actor that rested has answered
            unit, index = running.pop(ref)
            load[index] -= 1
            try:
                counts = _result(ref, unit, attempts)
            except _WorkerLost:
                resting.setdefault(index, actors[index].ping.remote())
                counts = None
            if counts is None:
                again.append(unit)
                continue
            last_done = time.monotonic()
            progress.add(counts)
        progress.report()
        if time.monotonic() - last_done > NO_PROGRESS_S:
            raise JobError(
                f"{progress.title}: no unit finished in {NO_PROGRESS_S:.0f} s; run it again"
            )


class _WorkerLost(Exception):
    """The unit's worker died; the unit may be tried again, elsewhere for now."""


def _still_resting(
    resting: dict[int, ray.ObjectRef], actors: Sequence[Any]
) -> dict[int, ray.ObjectRef]:
    still: dict[int, ray.ObjectRef] = {}
    for index, ref in resting.items():
        answered, _ = ray.wait([ref], timeout=0)
        if not answered:
            still[index] = ref
            continue
        try:
            ray.get(ref, timeout=60)
        except RayError:
            still[index] = actors[index].ping.remote()  # lost once more
    return still


def _next(again: deque[Unit], coming: Iterator[Unit]) -> Unit | None:
    return again.popleft() if again else next(coming, None)


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
        raise _WorkerLost from error
    return None


def _may_try_again(unit: Unit, attempts: dict[str, int], why: str) -> bool:
    attempts[unit.unit_id] = attempts.get(unit.unit_id, 1) + 1
    if attempts[unit.unit_id] > MAX_ATTEMPTS:
        return False
    log.warning("unit %s: %s; attempt %d", unit.unit_id, why, attempts[unit.unit_id])
    time.sleep(0.2)
    return True
