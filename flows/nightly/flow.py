"""The nightly flow, from what is new in the source to a page about the night."""

from __future__ import annotations

from flows.prefect_env import prepare_prefect

prepare_prefect()

from prefect import flow  # noqa: E402

from flows.nightly import tasks  # noqa: E402
from flows.nightly.artifacts import OF_FLOWS  # noqa: E402
from flows.nightly.retrain import reason_to_train  # noqa: E402
from flows.nightly.run_context import Night, Uri, named, opened  # noqa: E402
from flows.nightly.steps import Steps  # noqa: E402
from jobs.engine.report import JobReport  # noqa: E402


@flow(name="nightly", flow_run_name=named("nightly"), **OF_FLOWS)
def nightly(
    config: Uri,
    night: Night | None = None,
    retrain: bool = False,
    lake: Uri | None = None,
) -> list[JobReport]:
    """Stage what is new, train where it is time to, evaluate, embed, look for drift, report.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        night: Logical night; the day on which the run is due if none.
        retrain: Train a new champion although the rule in the config does not ask for one.
        lake: Root URI of the lake; the config's if none.

    Returns:
        What each job reports.
    """
    run = opened(config, night, lake)
    settings, limit = run.settings, run.settings.timeouts
    with Steps(run) as steps:
        steps.run_required(tasks.stage, settings.stage, limit.stage_s)
        why = reason_to_train(run.lake, settings.training, settings.retrain, run.night, retrain)
        if why is not None:
            # A model that has been trained with tonight's images cannot tell that they differ.
            steps.look_for_drift(only_by_a_champion=True)
            steps.train(promote=True, why=why)
        steps.run_advisory(
            tasks.evaluate, settings.evaluation(settings.embed.model), limit.evaluate_s
        )
        steps.look_for_drift()
        steps.report()
    return steps.end()
