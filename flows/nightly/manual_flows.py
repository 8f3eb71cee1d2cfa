"""Flows that a person starts: each is one job of a nightly config."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from flows.prefect_env import prepare_prefect

prepare_prefect()

from prefect import flow  # noqa: E402

from flows.nightly import tasks  # noqa: E402
from flows.nightly.artifacts import OF_FLOWS  # noqa: E402
from flows.nightly.run_context import Night, Uri, named, opened  # noqa: E402
from flows.nightly.steps import Steps  # noqa: E402
from jobs.engine.report import JobReport  # noqa: E402
from jobs.maintain.settings import MaintainSettings  # noqa: E402
from jobs.settings import build  # noqa: E402


@flow(name="train", flow_run_name=named("train"), **OF_FLOWS)
def train(
    config: Uri,
    night: Night | None = None,
    promote: bool = True,
    lake: Uri | None = None,
) -> list[JobReport]:
    """Train on the dataset as it is now.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        night: Logical night; the day on which the run is due if none.
        promote: Let the new model become the champion, if it passes the config's gate.
        lake: Root URI of the lake; the config's if none.

    Returns:
        What each job reports.
    """
    run = opened(config, night, lake)
    with Steps(run) as steps:
        steps.train(promote=promote)
    return steps.end()


@flow(name="embed", flow_run_name=named("embed"), **OF_FLOWS)
def embed(
    config: Uri,
    night: Night | None = None,
    lake: Uri | None = None,
) -> list[JobReport]:
    """Embed what the champion has not seen yet.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        night: Logical night; the day on which the run is due if none.
        lake: Root URI of the lake; the config's if none.

    Returns:
        What each job reports.
    """
    run = opened(config, night, lake)
    with Steps(run) as steps:
        steps.run_required(tasks.embed, run.settings.embed, run.settings.timeouts.embed_s)
    return steps.end()


@flow(name="backfill", flow_run_name=named("backfill"), **OF_FLOWS)
def backfill(
    config: Uri,
    since: Night | None = None,
    until: Night | None = None,
    model: str | None = None,
    night: Night | None = None,
    lake: Uri | None = None,
) -> list[JobReport]:
    """Embed history: images of a range of nights, or all, by a model version.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        since: First night whose images are embedded; from the first one if none.
        until: Last night whose images are embedded; up to the last one if none.
        model: NAME, NAME@VERSION or NAME@ALIAS; the config's if none.
        night: Logical night; the day on which the run is due if none.
        lake: Root URI of the lake; the config's if none.

    Returns:
        What each job reports.
    """
    run = opened(config, night, lake)
    request = {"backfill": True, "since": since, "until": until}
    if model is not None:
        request["model"] = model
    settings = build(type(run.settings.embed), run.settings.embed.model_dump() | request)
    with Steps(run, model=settings.model) as steps:
        steps.run_required(tasks.embed, settings, run.settings.timeouts.backfill_s)
    return steps.end()


@flow(name="maintain", flow_run_name=named("maintain"), **OF_FLOWS)
def maintain(
    config: Uri,
    keep_days: Annotated[float, Field(ge=0, le=3650)] = 7.0,
    night: Night | None = None,
    lake: Uri | None = None,
) -> dict[str, Any]:
    """Merge small shards and remove files that nothing needs any more.

    Args:
        config: YAML of the nightly settings: a file where the worker runs, or a URI.
        keep_days: Keep snapshots that were the newest within as many days.
        night: Logical night; the day on which the run is due if none.
        lake: Root URI of the lake; the config's if none.

    Returns:
        What was merged and removed.
    """
    run = opened(config, night, lake)
    settings = MaintainSettings(
        dataset=run.dataset,
        model=run.settings.embed.model.partition("@")[0],
        keep_days=keep_days,
    )
    task = tasks.limited(tasks.maintain, run.settings.timeouts.maintain_s)
    return task(settings, *run.at)
