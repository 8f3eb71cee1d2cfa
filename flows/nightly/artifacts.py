"""What a run leaves for people and automations: artifacts in the Prefect UI, and events."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.prefect_env import prepare_prefect

prepare_prefect()

from prefect.artifacts import (  # noqa: E402
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.events import emit_event  # noqa: E402
from prefect.runtime import flow_run as runtime  # noqa: E402

from flows.nightly.cancel_hook import stop_jobs  # noqa: E402
from flows.nightly.run_context import Opened  # noqa: E402
from jobs.engine.report import JobReport  # noqa: E402
from jobs.query.grid import grid  # noqa: E402
from jobs.query.views import Views  # noqa: E402

if TYPE_CHECKING:
    from jobs.report.write import Report

UNTOLD = ("rows_read", "unit_seconds", "fewest_flaggable", "model_version", "batch", "note", "why")
MOST_BYTES = 2 << 20  # of a picture in the Prefect server's database
SHOWN = 20  # rows of an artifact's table
DRIFTED = (
    "**The night's images have drifted from the model's own: its p-values are not valid.** "
    "`calibration_valid` is false for its anomalies."
)
ANOMALIES = """
    SELECT a.rank, a.q_value, a.p_value, a.calibration_valid, a.decision_score, i.source_uri,
           a.image_id
    FROM anomalies a LEFT JOIN images i ON i.image_id = a.image_id AND i.dataset = a.dataset
    WHERE a.dataset = ? AND a.job_id IN (SELECT unnest(?))
    ORDER BY a.rank, a.image_id LIMIT ?
"""
REFUSALS = """
    SELECT reason, count(*) AS rows, min(message) AS example FROM quarantine
    WHERE dataset = ? AND job_id IN (SELECT unnest(?)) GROUP BY reason ORDER BY rows DESC, reason
"""


def show(
    run: Opened,
    reports: Sequence[JobReport],
    notes: Sequence[str] = (),
    model: str | None = None,
    page: Report | None = None,
) -> None:
    """Show a summary in Markdown, and tables of what was refused and of what was flagged.

    model: that embedded; the config's if None. page: about the night.
    """
    jobs = [job_id for report in reports for job_id in report.job_ids]
    refused = _rows(run, REFUSALS, [run.dataset, jobs]) if jobs else []
    flagged = _rows(run, ANOMALIES, [run.dataset, jobs, SHOWN]) if jobs else []
    key = _key(run.dataset)
    create_markdown_artifact(
        summary(run, reports, refused, notes, model or run.settings.embed.model, page),
        key=f"summary-{key}",
        description="What the run did",
    )
    if refused:
        create_table_artifact(refused, key=f"refused-{key}", description="Refused, by reason")
    if flagged:
        about = "Flagged anomalies, most certain first"
        create_table_artifact(flagged, key=f"anomalies-{key}", description=about)
        about = "The flagged anomalies, most certain first, with their q-values"
        _show_picture(grid(run.lake, flagged), f"pictures-{key}", about)
    if page is not None:
        about = f"The night's report: {page.headline.word}"
        create_link_artifact(
            link=page.uri, link_text=page.uri, key=f"report-{key}", description=about
        )
    for name, png in (page.pictures if page is not None else {}).items():
        if name != "anomalies":  # shown above, with more of them
            _show_picture(png, f"{_key(name)}-{key}", f"From the night's report: {name}")
    _tell(run, reports)


def _show_picture(png: bytes | None, key: str, about: str) -> None:
    if png is None or len(png) > MOST_BYTES:
        return
    # In the text itself: the page could not read the lake.
    data = base64.b64encode(png).decode()
    create_markdown_artifact(
        f"![{about}](data:image/png;base64,{data})", key=key, description=about
    )


def _key(name: str) -> str:
    """As artifacts have them: small letters, digits and hyphens."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def _rows(run: Opened, statement: str, parameters: list[Any]) -> list[dict[str, Any]]:
    rows = Views(run.lake).sql(statement, parameters).to_pylist()
    return [{name: _short(value) for name, value in row.items()} for row in rows]


def _short(value: Any) -> Any:
    # 17 digits would push the columns that follow off the page.
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary(
    run: Opened,
    reports: Sequence[JobReport],
    refused: Sequence[dict[str, Any]],
    notes: Sequence[str],
    model: str,
    page: Report | None = None,
) -> str:
    """Return a run in Markdown."""
    lines = [f"# {run.dataset}, night {run.night}", ""]
    if page is not None:
        lines += [f"**{page.headline.word}.** {' '.join(page.headline.sentences)}", ""]
        lines += [f"Report: `{page.uri}`", ""]
    lines += [line for report in reports if _drifted(report) for line in (DRIFTED, "")]
    told_too = [report.counts["note"] for report in reports if report.counts.get("note")]
    lines += [line for note in (*told_too, *notes) for line in (note, "")]
    # No table: the page breaks no line in one, and cuts what is too long.
    lines += [f"- **{report.job} {report.target}**: {report_line(report)}" for report in reports]
    if refused:
        lines += ["", "## Refused", "", "| reason | rows |", "|---|---|"]
        lines += [f"| {row['reason']} | {row['rows']:,} |" for row in refused]
    lines += ["", f"Lake: `{run.lake.uri}`. To dig further:", "", "```"]
    lines += [
        f"latentlake query anomalies --model {model} --flagged --night {run.night}",
        f"latentlake describe --dataset {run.dataset}",
        f"latentlake report --dataset {run.dataset} --model {model} --night {run.night} --open",
        "latentlake list",
        "```",
    ]
    return "\n".join(lines)


def _drifted(report: JobReport) -> bool:
    return report.job == "drift" and bool(report.counts.get("drifted"))


def report_line(report: JobReport) -> str:
    """Return a report in a line: every count that is not zero and not shown elsewhere, then the
    time."""
    if not report.job_ids:
        return "nothing to do"
    parts = []
    for name, value in report.counts.items():
        # Reasons have a table, and sentences are notes.
        if name in UNTOLD or name.startswith("refused_") or isinstance(value, list | None):
            continue
        if isinstance(value, float):
            shown = f"{value:,.1f}" if abs(value) >= 1 else f"{value:.3g}"
            parts.append(f"{name.replace('_', ' ')} {shown}")
        elif isinstance(value, str):
            parts.append(f"{name.replace('_', ' ')} {value}")
        elif isinstance(value, bool):
            parts.append(name if value else f"not {name}")
        elif value:
            parts.append(f"{name.replace('_', ' ')} {value:,}")
    rate = f", {report.rows_per_s:,.0f} rows/s" if report.rows_per_s else ""
    return f"{', '.join(parts)} in {report.seconds:.1f} s{rate}"


def _tell(run: Opened, reports: Sequence[JobReport]) -> None:
    for report in reports:
        found = report.counts.get("anomalies")
        if report.job == "embed" and report.job_ids and found:
            count = {"anomalies": found, "model": report.target}
            event("latentlake.anomalies.found", run.dataset, night=run.night, **count)
        if _drifted(report):
            found = {name: report.counts.get(name) for name in ("p_value", "alpha")}
            event(
                "latentlake.drift.found",
                run.dataset,
                night=run.night,
                model=report.target,
                **found,
            )
        bundle = {"model": report.target, "version": report.counts.get("version")}
        if report.job == "train" and report.job_ids:
            event("latentlake.model.trained", run.dataset, night=run.night, **bundle)
        # The first bundle of a model has its alias from the training itself.
        alias = report.counts.get("alias") if report.job_ids else None
        if alias is not None and report.counts.get("promoted", True):
            moved = {**bundle, "alias": alias}
            event("latentlake.model.promoted", run.dataset, night=run.night, **moved)


def event(name: str, dataset: str, **payload: Any) -> None:
    """Something that automations may act on; its resource is the dataset."""
    resource = {"prefect.resource.id": f"latentlake.dataset.{dataset}"}
    resource["prefect.resource.name"] = dataset
    related = []
    if runtime.id:
        related = [
            {"prefect.resource.id": f"prefect.flow-run.{runtime.id}"}
            | {"prefect.resource.role": "flow-run"}
        ]
    emit_event(name, resource, payload=payload, related=related)


def _tell_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Emit the event of a run that failed or crashed: a flow's hook."""
    config = str(flow_run.parameters.get("config", "unknown"))
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
    resource["prefect.resource.name"] = flow_run.name
    payload = {"config": config, "message": state.message, "state": state.name}
    emit_event("latentlake.run.failed", resource, payload=payload)


# Of every flow. A report is for whoever called it; what lasts is in the lake.
OF_FLOWS: dict[str, Any] = {
    "on_failure": [_tell_failure],
    "on_crashed": [_tell_failure],
    "on_cancellation": [stop_jobs],
    "persist_result": False,
}
