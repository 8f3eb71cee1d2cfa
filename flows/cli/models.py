"""The commands that say which bundle an alias names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import common, drop_none, lake_of, night_of
from jobs.engine import runner
from jobs.errors import InputError, JobError
from jobs.promote.settings import PromoteSettings
from jobs.settings import build, load_yaml

if TYPE_CHECKING:
    from jobs.promote.job import PromoteJob

PASSES = {True: "passed", False: "failed", None: "not checked"}


def _move_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--alias", metavar="NAME", help="The alias; champion if none."),
        click.option("--reason", metavar="TEXT", help="Why, for the alias's history."),
        click.option("--by", metavar="NAME", help="Who, for its history; you if none."),
        click.option("--night", metavar="DATE", help="Logical night, YYYY-MM-DD; today if none."),
        click.option("--dry-run", is_flag=True, help="Print what would be done; move nothing."),
    ):
        function = option(function)
    return common(function)


@click.command()
@click.argument("bundle", metavar="MODEL@VERSION")
@click.option("--dataset", metavar="NAME", help="Whose evaluations decide; the bundle's if none.")
@click.option("--config", metavar="FILE", help="Nightly YAML whose gate is the rule.")
@click.option("--force", is_flag=True, help="Without the gate; say why with --reason.")
@_move_options
def promote(
    bundle: str, dataset: str | None, config: str | None, force: bool, **options: Any
) -> None:
    """Make a bundle champion, if it shows on the test split that it should be; exit 1 if not.

    Both bundles have to be evaluated on the same images first.

    Example: latentlake promote photos@3f7a09c1d2e4
    """
    if force and not options["reason"]:
        raise click.UsageError("--force: say why with --reason TEXT")
    values = drop_none(model=bundle, dataset=dataset, **_told(options))
    if force:
        values["rule"] = None
    elif config is not None:
        values |= _rule(config)
    _move(build(PromoteSettings, values), options)


@click.command()
@click.argument("model")
@click.option(
    "--from",
    "back_from",
    metavar="VERSION",
    help="Only if the alias names it: run again after a crash, it goes back once.",
)
@_move_options
def rollback(model: str, back_from: str | None, **options: Any) -> None:
    """Give an alias back to the bundle that it named before; again, to the one before that.

    Nothing is checked of that bundle, and what was rolled back does not come up again.

    Example: latentlake rollback photos --reason "flags every image since Tuesday"
    """
    values = drop_none(model=model, back=True, back_from=back_from, **_told(options))
    _move(build(PromoteSettings, values), options)


@click.command()
@click.argument("model")
@click.option("--alias", metavar="NAME", help="Only this one; all of the model's if none.")
@common
def aliases(model: str, alias: str | None, lake: str, as_json: bool) -> None:
    """List what a model's aliases have named: from, to, who, when and why; the last one holds.

    Example: latentlake aliases photos
    """
    from flows.output import emit, records_text
    from jobs.bundles.aliases import history
    from jobs.errors import unknown_name
    from jobs.tables import catalog

    opened = lake_of(lake)
    known = catalog.models(opened)
    if model not in known:
        raise unknown_name("model", model, known, f"; {opened.uri} has no models")
    named = catalog.aliases(opened, model)
    if alias is not None and alias not in named:
        raise unknown_name(f"alias of model {model!r}:", alias, list(named))
    rows = history(opened, model, alias)
    shown = ("alias", "from", "to", "by", "at", "reason")
    emit(rows, as_json, records_text([_cells({n: row[n] for n in shown}) for row in rows]))


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    at = row["at"]
    return {**row, "at": at.isoformat(" ", "seconds") if at is not None else None}


def _told(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("alias", "reason", "by")}


def _rule(config: str) -> dict[str, Any]:
    """Return the gate of a nightly config; the default one where it has none."""
    values = load_yaml(config)
    if "gate" not in values:
        return {}
    if not isinstance(values["gate"], dict | None):
        raise InputError(f"{config}: gate is no mapping of settings, such as gain_nats: 0.5")
    return {"rule": values["gate"]}


def _move(settings: PromoteSettings, options: dict[str, Any]) -> None:
    from flows.output import emit
    from jobs.promote.job import PromoteJob

    moving = PromoteJob(lake_of(options["lake"]), settings, night_of(options))
    if options["dry_run"]:
        outcome = _foretold(moving)
        emit(outcome, options["as_json"], _text(moving, outcome))
        return
    report = runner.run(moving)
    outcome = report.counts
    emit(report.to_dict(), options["as_json"], _text(moving, outcome))
    if not outcome["promoted"] and "checks" in outcome:
        raise JobError(f"{outcome['why']}\n{_override(moving, outcome)}")


def _foretold(moving: PromoteJob) -> dict[str, Any]:
    """Return what a run would come to; nothing is written."""
    from jobs.engine.runner import planned

    plan = planned(moving)
    if plan.is_empty:
        return moving.idle(plan)[1]
    judged = moving.verdict(plan)
    values = {name: plan.settings[name] for name in ("version", "held", "alias", "by")}
    would = {"promoted": False, "would_promote": judged is None or judged.passes}
    if judged is None:
        return {**would, **values, "why": "nothing is required"}
    checks = [vars(check) for check in judged.checks]
    return {**would, **values, "checks": checks, "why": judged.why}


def _text(moving: PromoteJob, done: dict[str, Any]) -> str:
    """Return what was or would be done, and what each check says."""
    name = f"{moving.target}@{done['version']}"
    checks = [f"  {PASSES[check['passes']]}: {check['told']}" for check in done.get("checks", [])]
    before = f", after {done['held']}" if done["held"] else ""
    if done["promoted"] or done.get("would_promote"):
        verb = "is now" if done["promoted"] else "would be"
        lines = checks or [f"  {done['why']}"]
        return "\n".join([f"{moving.name}: {moving.alias} {verb} {name}{before}", *lines])
    if checks:
        return "\n".join([f"{moving.name}: {name} does not pass the gate", *checks])
    return f"{moving.name}: {done['why']}; nothing to do"


def _override(moving: PromoteJob, done: dict[str, Any]) -> str:
    alias = f" --alias {moving.alias}" if moving.alias != "champion" else ""
    bundle = f"{moving.target}@{done['version']}"
    return f"to move it all the same: latentlake promote {bundle}{alias} --force --reason TEXT"
