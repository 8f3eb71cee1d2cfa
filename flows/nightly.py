"""The nightly flow: stage what is new, train where it is time to, embed what is new."""

from __future__ import annotations

from flows.environment import prepare_prefect

prepare_prefect()

from prefect import flow  # noqa: E402

from flows import tasks  # noqa: E402
from flows.opened import Night, named, opened  # noqa: E402
from flows.shown import OF_FLOWS, show  # noqa: E402
from jobs.job_report import JobReport  # noqa: E402
from jobs.retrain import reason_to_train  # noqa: E402


@flow(name="nightly", flow_run_name=named("nightly"), **OF_FLOWS)
def nightly(
    config: str,
    night: Night | None = None,
    retrain: bool = False,
    lake: str | None = None,
) -> list[JobReport]:
    """Stages what is new, trains where it is time to, embeds what is new.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        night: Logical night; the day on which the run is due if none.
        retrain: Train a new champion although the rule in the config does not ask for one.
        lake: Root URI of the lake; the config's if none.
    """
    run = opened(config, night, lake)
    settings, limit = run.settings, run.settings.timeouts
    reports = [tasks.limited(tasks.stage, limit.stage_s)(settings.stage, *run.at)]
    why = reason_to_train(run.lake, settings.train, settings.retrain, run.night, retrain)
    if why is not None:
        training = settings.train.model_copy(update={"promote": True})
        reports.append(tasks.limited(tasks.train, limit.train_s)(training, *run.at))
        why = why if reports[-1].job_ids else None  # these settings and images had a model already
    reports.append(tasks.limited(tasks.embed, limit.embed_s)(settings.embed, *run.at))
    show(run, reports, [f"Trained because {why}."] if why else [])
    return reports
