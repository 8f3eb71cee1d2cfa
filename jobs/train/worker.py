"""What Ray Train calls on every training worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train.v2._internal.execution.context import get_train_context

from jobs.errors import LatentlakeError, StorageError
from jobs.lake.storage import begin
from jobs.telemetry.listeners import RayMetrics, Screen, listeners
from jobs.telemetry.metrics import Telemetry
from jobs.train.finalize import complete_publication, find_published, publish
from jobs.train.loop import Training
from jobs.train.rank import Rank
from jobs.train.task import TrainTask


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. config: order, started, board (an actor), environment.

    What a new attempt cannot mend ends all attempts: Ray starts a worker group again whatever its
    error was, and the board tells it that there is nothing to do.
    """
    board = config["board"]
    if ray.get(board.failure.remote(), timeout=60) is not None:
        return
    try:
        _train(config["order"], config["started"], config["environment"], board)
    except StorageError:
        raise
    except LatentlakeError as error:
        ray.get(board.fail.remote(error), timeout=60)
        raise
    except Exception as error:
        # A lost peer comes as many errors, with addresses in them; a mistake is always the same.
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RayError):  # the error itself tells more than a board that is away
            ray.get(board.crash.remote(Rank.here().index, text), timeout=60)
        raise


def _train(order: TrainTask, started: float, environment: dict[str, str], board: Any) -> None:
    begin(order.lake.uri)
    torch.set_num_threads(order.train_settings.run.threads)
    os.environ.update(environment)
    rank = Rank.here()
    if rank.is_first:
        board.follow.remote(get_train_context().controller_actor)
    # Ray starts a worker group again with what the first one was given; names are each one's own.
    order = dataclasses.replace(order, attempt=rank.agree(uuid.uuid4().hex[:8]))
    if rank.agree(find_published(order) if rank.is_first else None):
        if rank.is_first:
            complete_publication(order)
        rank.wait()
        return  # a worker was lost after the bundle was there
    telemetry = _telemetry(order, rank, board)
    try:
        training = Training(order, rank, telemetry)
        training.restore()
        if rank.is_first:
            board.begin.remote(training.position.step)
        training.run()
        publish(training, started)
    finally:
        telemetry.close()


def _telemetry(order: TrainTask, rank: Rank, board: Any) -> Telemetry:
    if not rank.is_first:
        return Telemetry([])
    made = listeners(order.run_folder, order.attempt, order.model, order.version, order.settings)
    screen = Screen(lambda values: board.tell.remote(values), lambda text: board.say.remote(text))
    return Telemetry([*made, RayMetrics(order.model, order.version), screen])
