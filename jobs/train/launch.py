"""Runs a training on Ray Train, and shows how far it is."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster import connect as cluster_connect
from jobs.cluster.settings import RaySettings
from jobs.cluster.status_actor import StatusActor
from jobs.engine.interruptible import apart
from jobs.engine.progress import TrainingProgress
from jobs.errors import JobError, LatentlakeError
from jobs.telemetry.mlflow import MLFLOW
from jobs.train.process_group import ProcessGroup
from jobs.train.task import TrainTask

log = logging.getLogger("latentlake")

MAX_FAILURES = 20  # worker groups that are started again; each goes on from the newest checkpoint
CONTROLLERS = 3  # of Ray Train, one after the other failed
# What a worker of Ray Train's and ours import; making an optimizer brings torch._dynamo, whatever
# is compiled.
TRAINING = (
    "pandas",
    "fsspec",
    "pyarrow.dataset",
    "torch._dynamo",
    "jobs.train.finalize",
    "jobs.telemetry.listeners",
)
POLL_S = 1.0
ABORT_S = 2.0
# What workers on other machines need of the driver's environment.
PASSED_ON = (
    MLFLOW,
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


class _Trainer(DataParallelTrainer):
    """Without two actors of Ray Train's that have nothing to do here (2.60).

    Each is an interpreter that imports Ray Train. One hands out Ray datasets, and there are none;
    the other removes what a controller leaves in a cluster that outlives it, and an embedded one
    does not.
    """

    def __init__(self, *arguments: Any, embedded: bool, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.idle = (DatasetsCallback, *([PlacementGroupCleanerCallback] if embedded else []))

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, self.idle)]


def fit(order: TrainTask, ray_settings: RaySettings) -> None:
    """Trains until the bundle is written. Raises the workers' own error."""
    from jobs.train.worker import train_loop

    run, workers = order.train_settings.run, order.train_settings.workers
    least = run.min_workers or workers
    gpus = least if run.device == "cuda" else 0
    cluster_connect.ensure(ray_settings, least * run.threads, gpus=gpus)
    cluster_connect.import_first(*TRAINING)
    # Beside the driver: a node that is lost takes no more than its workers. Not soft: without CPUs,
    # Ray then takes any node (2.60).
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = StatusActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    config = {"order": order, "started": time.time(), "board": board, "environment": passed}
    on_gpus = cluster_connect.on_gpus(run.device, least)
    scaling = ScalingConfig(
        num_workers=workers if least == workers else (least, workers),
        use_gpu=on_gpus,
        resources_per_worker={"CPU": run.threads},
    )

    def trainer() -> DataParallelTrainer:
        return _Trainer(
            train_loop,
            embedded=ray_settings.address is None,
            # Sums of losses and positions are on the CPU, gradients where the model is.
            backend_config=ProcessGroup("cpu:gloo,cuda:nccl" if on_gpus else "gloo"),
            train_loop_config=config,
            scaling_config=scaling,
            run_config=RunConfig(
                # Unique: Ray resumes a run of a known name.
                name=f"{order.model}-{order.version}-{uuid.uuid4().hex[:8]}",
                storage_path=str(cluster_connect.temporary_folder("ll-fit-")),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )

    try:
        with _shown(order, board):
            apart(lambda: _until_done(trainer), lambda: _abort(board))
        failure = ray.get(board.failure.remote(), timeout=60)
        if isinstance(failure, LatentlakeError):
            raise failure
    except TrainingFailedError as error:
        raise _own_error(error) from error
    finally:
        ray.kill(board)


def _abort(board: Any) -> None:
    """End the training, which goes on elsewhere: nobody waits for it any more."""
    with contextlib.suppress(RayError):
        controller: Any = ray.get(board.controller.remote(), timeout=ABORT_S)
        if controller is not None:
            ray.get(controller.abort.remote(), timeout=ABORT_S)  # which ends by its own death


def _until_done(trainer: Callable[[], DataParallelTrainer]) -> None:
    """Trains, with a new controller where Ray Train's own failed.

    Seen on a machine under heavy load: Ray took a living controller for dead and removed its
    workers. The next one goes on from the newest checkpoint, as after any other loss.
    """
    for left in reversed(range(CONTROLLERS)):
        try:
            trainer().fit()
            return
        except ControllerError as error:
            if not left:
                raise
            log.warning("Ray Train's controller failed (%s); starting another one", error)


def _own_error(error: TrainingFailedError) -> LatentlakeError:
    """Return the workers' own error, where they had one."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)  # as Ray wraps what a worker raised
        if isinstance(cause, LatentlakeError):
            return cause
    return JobError(f"training failed: {error}")


@contextlib.contextmanager
def _shown(order: TrainTask, board: Any) -> Iterator[None]:
    """Show a line of progress now and then, from what the first rank tells."""
    progress = TrainingProgress(f"train {order.model}@{order.version}")
    over = threading.Event()
    life, received = "", 0

    def listen() -> None:
        nonlocal life, received
        with contextlib.suppress(RayError):  # a slow answer is one of them
            told_by, values, notes = ray.get(board.read.remote(life, received), timeout=POLL_S)
            received = len(notes) + (received if told_by == life else 0)
            life = told_by
            for note in notes:
                log.info("%s", note)
            if values:
                progress.tell(values)

    def poll() -> None:
        while not over.wait(POLL_S):
            listen()
        listen()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=[poll], name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10 * POLL_S)
        progress.finished()
