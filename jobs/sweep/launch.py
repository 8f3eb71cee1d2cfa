"""Runs a sweep's trials on Ray Tune."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from jobs.bundles.manifest import is_there, read_about
from jobs.cluster import connect as cluster_connect
from jobs.cluster.settings import RaySettings
from jobs.errors import JobError
from jobs.lake.paths import LakePaths
from jobs.sweep.settings import SweepSettings
from jobs.sweep.trial import METRIC, Trial, Tried
from jobs.telemetry.listeners import listeners
from jobs.telemetry.metrics import Telemetry
from jobs.train.job import TrainJob
from jobs.train.launch import TRAINING
from jobs.train.loop import Training
from jobs.train.rank import Rank

MAX_FAILURES = 3  # of a trial's process; it goes on from its newest checkpoint


def run_trials(
    lake: LakePaths,
    settings: SweepSettings,
    trials: list[Trial],
    night: str,
    ray_settings: RaySettings,
) -> list[Tried]:
    """Every trial, as far as ASHA let it go. Raises JobError where all of them failed."""
    run, at_once = settings.train.run, settings.concurrent or 1
    cluster_connect.ensure(ray_settings, at_once * run.threads)
    cluster_connect.import_first(*TRAINING)
    gpus = 1 if cluster_connect.on_gpus(run.device, at_once) else 0
    numbered = {trial.number: trial for trial in trials}

    def one(config: dict[str, Any]) -> None:
        _train(lake, numbered[config["number"]], night)

    tuner = tune.Tuner(
        tune.with_resources(one, {"cpu": run.threads, "gpu": gpus}),
        param_space={"number": tune.grid_search(list(numbered))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            max_concurrent_trials=settings.concurrent,
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=settings.train.epochs,
                grace_period=min(settings.grace_epochs, settings.train.epochs),
                reduction_factor=settings.reduction,
            ),
        ),
        run_config=tune.RunConfig(
            storage_path=str(cluster_connect.temporary_folder("ll-sweep-")),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )
    found = [_tried(result, numbered) for result in tuner.fit()]
    if all(one.validation_nats is None for one in found):
        raise JobError(f"every trial of the sweep failed; the first one: {found[0].error}")
    return found


def _tried(result: Any, numbered: dict[int, Trial]) -> Tried:
    trial = numbered[result.config["number"]]
    epochs = int((result.metrics or {}).get("epoch", 0))
    if result.error is not None or not epochs:
        return Tried(trial, None, epochs, str(result.error))
    frame = result.metrics_dataframe
    best = float(frame[METRIC].min()) if frame is not None else float(result.metrics[METRIC])
    if not math.isfinite(best):
        return Tried(trial, None, epochs, "its validation is not finite")
    return Tried(trial, best, epochs)


def _train(lake: LakePaths, trial: Trial, night: str) -> None:
    """One trial, in its own process; what an earlier attempt reported is reported again first."""
    torch.set_num_threads(trial.settings.run.threads)
    work = TrainJob(lake, trial.settings, night, RaySettings())
    plan = work.plan()
    if is_there(lake, plan.target, plan.fingerprint):
        for entry in read_about(lake, plan.target, plan.fingerprint)["history"]:
            _report(entry)
        return
    order = work.order_of(plan, plan.units[0])
    receivers = listeners(
        order.run_folder, order.attempt, order.model, order.version, order.settings
    )
    telemetry = Telemetry(receivers)
    training = Training(order, Rank(), telemetry, after_epoch=_report)
    try:
        training.restore()
        for entry in training.position.history:
            _report(entry)
        training.run()
    finally:
        telemetry.close()


def _report(entry: dict[str, Any]) -> None:
    tune.report({METRIC: entry[METRIC], "epoch": entry["epoch"]})
