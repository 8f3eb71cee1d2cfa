"""Whether the night's images come from where the reference came from."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.report.blocks import (
    NONE,
    Block,
    Chart,
    FoldedRows,
    Missing,
    Rows,
    Say,
    Section,
    counted,
    number,
    p_text,
)
from jobs.report.figures import p_values_figure
from jobs.report.night import ReportNight, Row

NIGHTS = 60


TESTS = {
    "combined": "all tests together",
    "hotelling": "difference of means (Hotelling)",
    "mmd": "maximum mean discrepancy",
    "classifier": "classifier two-sample test",
    "ks": "Kolmogorov–Smirnov",
    "fisher": "share refused (Fisher)",
}


def drift_section(night: ReportNight) -> Section:
    """Return the night's verdict, its tests, and the nights before. Raises Missing."""
    _ = night.name
    if night.verdict is None:
        raise Missing(f"Drift was not tested on this night: latentlake drift {_target(night)}.")
    blocks: list[Block] = [_verdict(night, row) for row in night.verdicts]
    others = [row for row in night.drift if row["test"] != "combined"]
    if others:
        blocks.append(_tests(others))
    tested = [row for row in night.drift_by_night if row["p_value"] is not None][-NIGHTS:]
    if tested:
        blocks += _over_nights(tested)
    return Section("drift", "Drift", blocks)


def _target(night: ReportNight) -> str:
    return f"--dataset {night.dataset} --model {night.model}"


def _verdict(night: ReportNight, row: Row) -> Say:
    note = f" {row['note']}" if row["note"] else ""
    if row["drifted"] is None:
        return Say(f"Not tested.{note or ' No reason was given.'}", "bad")
    sizes = f"{number(row['arrivals'])} arrivals against {number(row['reference'])} of the model's"
    sentence = f"{p_text(row['p_value'])}; the night may spend {number(row['alpha'], 2)}; {sizes}"
    by = ""
    if night.was_judged_before:
        by = f" by {night.model}@{row['model_version']}, the {night.alias} before"
    if row["drifted"]:
        invalid = " The p-values of the night's anomalies are not valid."
        if by:
            invalid = f" {night.name} was trained with these images."
        return Say(f"Drift{by} ({sentence}).{invalid}{note}", "bad")
    return Say(f"No drift{by} ({sentence}).{note}", "good")


def _tests(rows: Sequence[Row]) -> Rows:
    columns = ("test", "on", "of", "p-value", "effect", "note")
    ordered = sorted(rows, key=lambda r: (list(TESTS).index(r["test"]), *map(str, _place(r))))
    rows_shown = [
        (
            TESTS[row["test"]],
            row["sample"] or "all",
            row["of"] or NONE,
            number(row["p_value"], 2),
            f"{number(row['effect'], 3)} {row['effect_unit'] or ''}".strip(),
            row["note"] or "",
        )
        for row in ordered
    ]
    return Rows("The tests and the size of what they found", columns, rows_shown)


def _place(row: Row) -> tuple[str | None, tuple[int, str]]:
    of = row["of"] or ""
    return row["sample"], (len(of), of)  # dimension 2 before dimension 10


def _over_nights(rows: Sequence[Row]) -> list[Block]:
    nights = [row["night"] for row in rows]
    p_values = [row["p_value"] for row in rows]
    levels = [row["alpha"] for row in rows]
    alarms = sum(bool(row["drifted"]) for row in rows)
    sentence = (
        f"The combined p-value of {counted(len(rows), 'night')}, {alarms} of them with drift (red "
        "diamonds); below the dashed line a night counts as drifted."
    )
    chart = p_values_figure(nights, p_values, levels)
    columns = ("night", "p-value", "level", "drift")
    table = [
        (r["night"], number(r["p_value"], 2), number(r["alpha"], 2), _yes(r["drifted"]))
        for r in rows
    ]
    return [
        Chart("drift", "p-value by night", sentence, chart),
        FoldedRows("The same as a table", Rows("p-value by night", columns, table)),
    ]


def _yes(value: bool | None) -> str:
    return NONE if value is None else ("yes" if value else "no")
