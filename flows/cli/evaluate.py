"""The commands that judge a model: how good it is, and whether it is better than another."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import common, drop_none, job_options, lake_of, request_of, run_job
from jobs.evaluate.settings import EvaluateSettings
from jobs.settings import build

if TYPE_CHECKING:
    from jobs.evaluate.compare import Comparison


@click.command()
@click.option("--dataset", required=True, metavar="NAME", help="Dataset whose test split judges.")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@click.option("--label", metavar="COLUMN", help="For the linear probe; label if there is one.")
@click.option(
    "--anomaly", metavar="COLUMN[=VALUE]", help="Tells anomalies; is_anomaly if there is one."
)
@click.option("--samples", type=int, metavar="K", help="Posterior samples of log p(x); 64 if none.")
@click.option("--max-images", type=int, metavar="N", help="Of the test split; 10000 if none.")
@click.option("--images-version", type=int, metavar="V", help="Snapshot; the newest if none.")
@job_options
def evaluate(**options: Any) -> None:
    """Judge a model on the test split: likelihood, codes, probe, AUROC, memorisation, calibration.

    Each number comes with an interval, into the table evaluations and into the bundle.

    Example: latentlake evaluate --dataset photos --model photos@champion
    """
    plain = "dataset model label anomaly samples max_images images_version workers"
    settings = build(EvaluateSettings, drop_none(**{name: options[name] for name in plain.split()}))
    work = request_of(settings, options)
    if options["dry_run"]:
        run_job(work, options)
        return
    from flows.output import emit, report_text
    from jobs.dispatch.run import run
    from jobs.engine.report import JobReport
    from jobs.evaluate import results as evaluate_results

    report, lake = JobReport(**run(work)), lake_of(options["lake"])
    if report.job_ids:
        rows = evaluate_results.of_job(lake, report.job_ids[-1])
    else:
        name = (report.target, report.counts["model_version"], settings.dataset)
        rows = evaluate_results.latest(lake, *name, settings.images_version)
    text = f"{report_text(report)}\n\n{metrics_text(rows)}"
    emit({**report.to_dict(), "metrics": rows}, options["as_json"], text)


@click.command()
@click.argument("first", metavar="MODEL_A")
@click.argument("second", metavar="MODEL_B")
@click.option("--dataset", metavar="NAME", help="If none, the one that both were evaluated on.")
@common
def compare(first: str, second: str, dataset: str | None, lake: str, as_json: bool) -> None:
    """Compare two models: what the second gains on the first, in pairs of the same test images.

    Both are NAME, NAME@VERSION or NAME@ALIAS, and have been evaluated.

    Example: latentlake compare photos@champion photos@3f7a09c1d2e4
    """
    from flows.output import emit
    from jobs.evaluate.compare import compare as pair_up

    found = pair_up(lake_of(lake), first, second, dataset)
    rows = [dataclasses.asdict(row) for row in found.differences]
    about = {"first_model": found.first, "second_model": found.second, "dataset": found.dataset}
    text = f"{compared_text(found)}\n\n{differences_text(rows)}"
    emit([{**row, **about} for row in rows], as_json, text)


def metrics_text(rows: list[dict[str, Any]]) -> str:
    """Return the table of an evaluation; what is said of several metrics is said once, below it."""
    from flows.output import records_text

    names = ("metric", "of", "value", "low", "high", "unit", "better", "images")
    # What could not be had of any score is one line below, not a row for each.
    shown = [row for row in rows if row["value"] is not None]
    table = records_text([{name: row[name] for name in names} for row in shown])
    return "\n".join([table, *_notes(rows)])


def compared_text(found: Comparison) -> str:
    """Return what stands in the columns first and second, of which images."""
    on = f"{found.images:,} images" if found.images != 1 else "1 image"
    of = f"the test split of {found.dataset}, {on}"
    if found.first == found.second:
        return (
            f"first and second are both {found.first}: a bundle does not differ from itself ({of})"
        )
    return f"first: {found.first}; second: {found.second}; difference: second less first, on {of}"


def differences_text(rows: list[dict[str, Any]]) -> str:
    """Return the table of a comparison, with its notes."""
    from flows.output import records_text

    table = records_text(
        [{k: v for k, v in row.items() if k not in ("note", "rarer")} for row in rows]
    )
    return "\n".join([table, *_notes(rows)])


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    said: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in (row["note"] or "").split("; "):
            if note:
                said.setdefault(note, {})[row["metric"]] = None
    everywhere = {row["metric"] for row in rows}
    lines = []
    for note, metrics in said.items():
        about = "all" if len(metrics) > len(everywhere) / 2 else ", ".join(metrics)
        lines.append(f"  {about}: {note}")
    return lines
