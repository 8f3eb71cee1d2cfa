"""sweep: trainings with settings drawn at random; bad ones are given up, the best is published.

Trials are ordinary trainings of one worker, with ordinary checkpoints: a sweep that was killed
goes on where its trials were, and the winner's training is finished by the train job itself.
Successive halving is asynchronous (ASHA): Li et al. 2020, "A system for massively parallel
hyperparameter tuning".
"""

from __future__ import annotations

import dataclasses
import math

from jobs.cluster.settings import RaySettings
from jobs.engine import runner
from jobs.engine.report import JobReport
from jobs.lake.paths import LakePaths
from jobs.lake.storage import delete_tree
from jobs.sweep.settings import SweepSettings
from jobs.sweep.trial import Tried, draw
from jobs.tables import catalog
from jobs.train.job import TrainJob


def sweep(
    lake: LakePaths, settings: SweepSettings, night: str, ray_settings: RaySettings
) -> tuple[JobReport, list[Tried]]:
    """Run the trials; return the winner's train report, and all trials, the best one first.

    Raises InputError for settings that cannot be trained, JobError where every trial failed.
    """
    drawn = draw(settings)
    # One snapshot for all of them, whatever is staged meanwhile.
    images = catalog.images_snapshot(lake, settings.train.dataset, settings.train.images_version)
    pinned = {"images_version": images.version}
    trials = [
        dataclasses.replace(trial, settings=trial.settings.model_copy(update=pinned))
        for trial in drawn
    ]
    jobs = [TrainJob(lake, trial.settings, night, ray_settings) for trial in trials]
    plans = [runner.planned(one) for one in jobs]  # refuses what cannot be trained before any work
    from jobs.sweep.launch import run_trials  # brings Ray: only where there is work

    tried = run_trials(lake, settings, trials, night, ray_settings)
    tried.sort(key=lambda one: math.inf if one.validation_nats is None else one.validation_nats)
    winner = tried[0].trial
    report = runner.run(TrainJob(lake, winner.settings, night, ray_settings))
    for trial, plan in zip(trials, plans, strict=True):
        if trial is not winner:
            delete_tree(lake.run(f"{plan.target}-{plan.fingerprint}") + "/checkpoints")
    return report, tried
