"""`latentlake drift`. Imports neither prefect nor ray nor torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from flows.cli.options import common, drop_none, lake_of, parse_fraction, request_of
from jobs.drift.settings import DriftSettings
from jobs.settings import build

SHOWN = ("sample", "test", "of", "p_value", "effect", "effect_unit")
SETTINGS = "dataset model nights block_by block_images max_images least_images relabellings seed"


def small_job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a job of one process takes."""
    for option in reversed(
        [
            click.option("--night", metavar="DATE", help="Logical night; today if none."),
            click.option(
                "--ray-address", metavar="ADDRESS", help="http://HEAD:8265, to run it there."
            ),
            click.option("--wheel", metavar="FILE", help="Of latentlake, brought to that cluster."),
            click.option("--dry-run", is_flag=True, help="Say what would be tested; do nothing."),
        ]
    ):
        function = option(function)
    return common(function)


@click.command()
@click.option("--dataset", required=True, metavar="NAME", help="Whose arrivals are tested.")
@click.option("--model", required=True, metavar="NAME[@VERSION|@ALIAS]", help="The bundle.")
@click.option(
    "--alpha", metavar="SHARE", help="Chance of any false alarm in --nights: 5% (default) or 0.05."
)
@click.option("--nights", type=int, metavar="N", help="That share alpha; 30 if none.")
@click.option("--block-by", metavar="COLUMN", help="Equal values are moved together: lens, say.")
@click.option(
    "--block-images", type=int, metavar="N", help="Neighbours that are moved together; 16 if none."
)
@click.option("--max-images", type=int, metavar="N", help="A side at most; 3000 if none.")
@click.option("--least-images", type=int, metavar="N", help="A side at least; 50 if none.")
@click.option("--relabellings", type=int, metavar="N", help="Of the tests; 1999 if none.")
@click.option("--seed", type=int, metavar="N", help="Of samples and permutations.")
@small_job_options
def drift(alpha: str | None, **options: Any) -> None:
    """Compare the newest images with the model's own test split: do they come from elsewhere?

    What has come since the last judgement is tested: embeddings, scores, pixels and sources, with
    one p-value for all. Where drift is found, the anomalies of these images are marked: their
    p-values are not valid.

    Example: latentlake drift --dataset photos --model photos --block-by camera
    """
    values = drop_none(
        alpha=parse_fraction("--alpha", alpha) if alpha else None,
        **{name: options[name] for name in SETTINGS.split()},
    )
    work = request_of(build(DriftSettings, values), options)
    from flows.output import emit, records_text
    from jobs.dispatch.run import job_of, run
    from jobs.engine.runner import planned

    if options["dry_run"]:
        units = [{"unit_id": unit.unit_id, **unit.inputs} for unit in planned(job_of(work)).units]
        text = "\n".join(f"would test what {', '.join(u['embed_jobs'])} embedded" for u in units)
        emit(units, options["as_json"], text or "nothing has come since the last judgement")
        return
    report = run(work)
    rows = _latest(options)
    shown = [{name: row[name] for name in SHOWN} for row in rows if row["test"] != "combined"]
    lines = [_sentence(report, rows), *([records_text(shown)] if shown else [])]
    emit({**report, "rows": rows}, options["as_json"], "\n".join(lines))


def _latest(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the last judgement, whoever made it."""
    from jobs.drift import results as drift_results
    from jobs.tables import catalog

    lake = lake_of(options["lake"])
    model, version = catalog.resolve_model(lake, options["model"])
    return drift_results.latest(lake, model, version, options["dataset"])


def _sentence(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the decision, for people."""
    new = "" if report["job_ids"] else "nothing has come since the last judgement"
    if not rows:
        return f"drift {report['target']}: {new}, and there was none"
    row = rows[0]
    before = f"{new}, of {row['night']}: " if new else ""
    return f"drift {report['target']}: {before}{decision_text(row)}{_marked(report)}"


def decision_text(row: dict[str, Any]) -> str:
    """row: a combined one."""
    if row["drifted"] is None:
        return f"{row['note']}"
    found = "drift was found" if row["drifted"] else "no drift was found"
    sizes = f"{row['arrivals']:,} arrivals against {row['reference']:,} of the model's test split"
    return f"{found} (p = {row['p_value']:.2g}, level {row['alpha']:.2g}; {sizes}). {row['note']}"


def _marked(report: dict[str, Any]) -> str:
    counts = report["counts"]
    if not counts.get("drifted"):
        return ""
    return f" The p-values of {counts['marked']:,} flagged anomalies are not valid."
