"""What every command of the command line takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flows.nightly.settings import tonight, valid_night
from jobs.cluster.settings import RaySettings
from jobs.errors import InputError
from jobs.settings import Settings, build

if TYPE_CHECKING:
    from jobs.dispatch.request import JobRequest
    from jobs.engine.job import Job
    from jobs.lake.paths import LakePaths

DEFAULT_LAKE = "./lake"
OF_WORKERS = ("workers", "autoscaling", "resource_timeout")


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --lake and --json."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="One JSON result on stdout; logs go to stderr."
    )(function)
    return click.option(
        "--lake",
        envvar="LATENTLAKE_LAKE",
        default=DEFAULT_LAKE,
        show_default=True,
        metavar="URI",
        help="Root of the lake: a folder or s3://BUCKET/PREFIX; also $LATENTLAKE_LAKE.",
    )(function)


def lake_of(uri: str) -> LakePaths:
    """Return the lake at a path or URI as a user writes it."""
    from jobs.lake.paths import LakePaths
    from jobs.lake.storage import resolve_uri

    return LakePaths(resolve_uri(uri))


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every job takes."""
    options = [
        click.option("--workers", type=int, metavar="N", help="Workers of one CPU each."),
        click.option("--night", metavar="DATE", help="Logical night, YYYY-MM-DD; today if none."),
        click.option(
            "--ray-address",
            metavar="ADDRESS",
            help="http://HEAD:8265, or HOST:6379 on a node; embedded if none.",
        ),
        click.option("--wheel", metavar="FILE", help="Of latentlake, brought to http://HEAD:8265."),
        click.option("--autoscaling", is_flag=True, help="The cluster adds nodes on demand."),
        click.option(
            "--resource-timeout",
            type=float,
            metavar="S",
            help="Seconds to wait for an autoscaling cluster.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan; do nothing."),
    ]
    for option in reversed(options):
        function = option(function)
    return common(function)


def drop_none(**values: Any) -> dict[str, Any]:
    """Return the options that a user gave."""
    return {name: value for name, value in values.items() if value is not None}


def parse_fraction(option: str, text: str) -> float:
    """Of a percentage or a fraction. Raises InputError."""
    try:
        return float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: write 5% or 0.05") from error


def ray_settings(options: dict[str, Any]) -> RaySettings:
    """Of the options that job_options added."""
    return build(
        RaySettings,
        drop_none(
            address=options["ray_address"],
            wheel=options["wheel"],
            autoscaling=options.get("autoscaling"),
            resource_timeout_s=options.get("resource_timeout"),
        ),
    )


def night_of(options: dict[str, Any]) -> str:
    """Return the logical night, tonight if none is given."""
    return valid_night(options["night"] or tonight())


def run_job(request: JobRequest, options: dict[str, Any]) -> None:
    """Run a job, or print its plan, and say what it did."""
    from flows.output import emit, report_text
    from jobs.dispatch.run import job_of, run
    from jobs.engine.report import JobReport

    if options["dry_run"]:
        _print_plan(job_of(request), options["as_json"])
        return
    report = JobReport(**run(request))
    emit(report.to_dict(), options["as_json"], report_text(report))


def request_of(settings: Settings, options: dict[str, Any], *, fresh: bool = False) -> JobRequest:
    """With what job_options added. Raises InputError for those that this job has no use for."""
    from jobs.dispatch.registry import JOBS, kind_of
    from jobs.dispatch.request import JobRequest

    ray, name = ray_settings(options), kind_of(settings)
    if not JOBS[name].workers:
        _require_one_process(name, ray, options)
    lake = lake_of(options["lake"]).uri
    return JobRequest.of(settings, lake, night_of(options), ray, fresh=fresh)


def _require_one_process(name: str, ray: RaySettings, options: dict[str, Any]) -> None:
    given = [name for name in OF_WORKERS if options.get(name) is not None]
    # A flag is there either way.
    useless = [f"--{n.replace('_', '-')}" for n in given if options[n] is not False]
    instead = ""
    if ray.address is not None and not ray.takes_jobs:
        useless.append(f"--ray-address {ray.address}")
        instead = "; --ray-address http://HEAD:8265 runs it as a job there"
    if useless:
        raise InputError(
            f"{name} runs in one process, without Ray workers: leave out {', '.join(useless)}"
            f"{instead}"
        )


def _print_plan(job: Job, as_json: bool) -> None:
    from flows.output import emit
    from jobs.engine.runner import planned

    plan = planned(job)
    units = [{"unit_id": u.unit_id, **u.inputs} for u in job.planned_units(plan)]
    lines = [f"{plan.job} {plan.target}: {len(units)} units to do"]
    lines += [json.dumps(unit) for unit in units]
    gone = job.planned_removals()
    lines += [f"leaves: {uri}" for uri in gone]
    values = {"job": plan.job, "target": plan.target, "units": units, "leaves": gone}
    emit(values, as_json, "\n".join(lines))
