"""Execute: units on a pool of Ray actors, as many as there is room for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import threading
import uuid
from collections.abc import Iterable

import ray

from jobs.cluster import actor_pool
from jobs.cluster import connect as cluster_connect
from jobs.cluster.metrics import UnitMetrics
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import ImportedWorker, WorkerFactory, Workers
from jobs.engine.plan import JobContext, Plan, Unit
from jobs.engine.progress import Progress
from jobs.engine.records import save_completion
from jobs.lake.paths import LakePaths
from jobs.lake.storage import begin

log = logging.getLogger("latentlake")

_begun: set[tuple[str, int | None]] = set()  # jobs of this process, and the workers they got


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)
class _UnitActor:
    def __init__(
        self,
        factory: WorkerFactory,
        lake: LakePaths,
        context: JobContext,
        device: str,
        metrics: tuple[str, str],
    ) -> None:
        """metrics: job and target, of what it counts."""
        context = dataclasses.replace(context, settings=context.settings | {"device": device})
        begin(lake.uri)
        self.lake = lake
        self.job_id = context.job_id
        # Made with the first unit: an error in here would only tell that the actor died.
        self.make = functools.cache(functools.partial(factory, lake, context))
        self.making = threading.Lock()
        self.metrics = UnitMetrics(*metrics)

    def ping(self) -> None:
        """Answers once the actor has a place to run."""

    def run(self, unit: Unit) -> dict[str, int]:
        with self.making:
            worker = self.make()
        completion = worker.execute(unit, uuid.uuid4().hex[:8])
        save_completion(self.lake, self.job_id, completion)
        self.metrics.add(completion)
        return completion.counts


def run_units(
    factory: WorkerFactory,
    lake: LakePaths,
    plan: Plan,
    units: Iterable[Unit],
    *,
    workers: Workers,
    ray_settings: RaySettings,
    report_count: str,
) -> None:
    """Run units as they come, each on one of the workers, which begin as they find room.

    A worker finds its device among its job's settings. Raises InputError where there is no room
    for the least of them, and the first unit's error. A unit whose actor dies is handed out again,
    at most pool.MAX_ATTEMPTS times in all.
    """
    coming = iter(units)
    least = workers.most if workers.least is None else workers.least
    # A job's first units are refused where there is too little to run them; later ones go on with
    # what nodes are left.
    begun = (plan.job_id, least) in _begun
    if begun:
        room = cluster_connect.still(ray_settings, least)
    else:
        # Auto means a model that was calibrated on a GPU.
        gpus = (least or 1) if workers.device != "cpu" else 0
        room = cluster_connect.ensure(ray_settings, least, gpus=gpus)
    _begun.add((plan.job_id, least))
    if isinstance(factory, ImportedWorker):
        cluster_connect.import_first(factory.module)
    wanted = 1 if begun else least or 1
    on_gpus = workers.device != "cpu" and cluster_connect.on_gpus(workers.device, wanted)
    if on_gpus:
        room = min(room, int(ray.cluster_resources()["GPU"]))
        log.info("%s %s: on GPUs, %d to begin with", plan.job, plan.target, room)
    elif workers.device == "auto":
        log.warning(
            "%s %s: too few GPUs for what was calibrated on one; on CPUs, with results that are "
            "marked so",
            plan.job,
            plan.target,
        )
    # Beyond those that have room now, actors wait in Ray's queue, which is what it scales up by.
    most = room if workers.least is None else max(room, workers.most or room)
    first = list(itertools.islice(coming, most))
    make = _UnitActor.options(  # type: ignore[attr-defined]
        num_gpus=int(on_gpus), max_concurrency=workers.units_at_once
    )
    kind = "cuda" if on_gpus else "cpu"
    context = plan.context  # its job id is a digest of all units: once, not once a worker
    actor_pool.drain(
        [make.remote(factory, lake, context, kind, (plan.job, plan.target)) for _ in first],
        itertools.chain(first, coming),
        Progress(f"{plan.job} {plan.target}", report_count),
        keep=len(first) if workers.least is None else workers.least,
    )
