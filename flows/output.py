"""How results look on a terminal: a table, JSON, or a line."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jobs.control_characters import shown
from jobs.engine.report import JobReport
from jobs.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ADDED_UP = ("rows_in", "staged", "refused", "duplicates")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins with, in a spreadsheet
ID_DIGITS = 12  # of a hash, enough to name a row on a screen
URI_TAIL = 30  # of a URI, whose end differs


def emit(value: Any, as_json: bool, text: str) -> None:
    """One machine-readable value on stdout, or the text for people."""
    click.echo(json.dumps(value, default=str) if as_json else shown(text))


def report_text(report: JobReport) -> str:
    """Return a job's report for people."""
    if not report.job_ids:
        version = report.counts.get("version")
        known = f": {report.target}@{version} is there already" if version else ""
        return f"{report.job} {report.target}: nothing to do{known}"
    lines = [f"{report.job} {report.target}: done in {report.seconds:.1f} s"]
    counts = dict(report.counts)
    if all(name in counts for name in ADDED_UP):
        # What the job has checked itself before it published.
        rows, *parts = (f"{counts.pop(name):,} {name.replace('_', ' ')}" for name in ADDED_UP)
        counts.pop("rows_read", None)
        lines.append(f"  {rows} = {' + '.join(parts)}")
    counts.pop("checks", None)  # of a gate: `why` has the sentence
    lines += [f"  {name.replace('_', ' ')}: {_number(v)}" for name, v in counts.items() if v != 0]
    if report.rows_per_s:
        lines.append(f"  rows/s, start-up included: {report.rows_per_s:,.0f}")
    lines += [f"  {table} is at version {v}" for table, v in report.versions.items()]
    return "\n".join(lines)


def csv_text(table: pa.Table) -> str:
    """With a head; lists and bytes as in JSON, and text as no spreadsheet takes for a formula."""
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for values in (table.column_names, *(record.values() for record in to_records(table))):
        cells = [_csv_cell(value) for value in values]
        # By itself, the writer leaves a carriage return as it is (Python 3.11).
        returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if returns else plain).writerow(cells)
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def write_parquet(table: pa.Table, path: str) -> None:
    """Raise InputError where the file cannot be written."""
    import pyarrow.parquet as pq

    try:
        pq.write_table(table, path)
    except OSError as error:
        raise InputError(f"--parquet {path}: {error}") from error


def records_text(records: list[dict[str, Any]]) -> str:
    """Rows as a table; long hashes and lists are cut."""
    if not records:
        return "no rows"
    records = [_with_patch(record) for record in records]
    table = RichTable(show_edge=False, pad_edge=False)
    for name in records[0]:
        table.add_column(Text(name), overflow="fold")
    for record in records:
        # Text, not markup: what stands in a table may look like a tag.
        table.add_row(*(Text(cell(name, value)) for name, value in record.items()))
    # Without colours and bold: what is shown of a table has no escape in it, whoever wrote it.
    width = None if Console().is_terminal else 160
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")


def _with_patch(record: dict[str, Any]) -> dict[str, Any]:
    """Row, column and side of a patch in one column."""
    if not {f"max_patch_{name}" for name in ("y", "x", "side")} <= record.keys():
        return record
    y, x, side = (record[f"max_patch_{name}"] for name in ("y", "x", "side"))
    kept = {name: v for name, v in record.items() if not name.startswith("max_patch_")}
    return {**kept, "patch at row, column": f"{side}×{side} at {y}, {x}"}


def cell(name: str, value: Any) -> str:
    """Return a value as text; long hashes, URIs and lists are cut."""
    if value is None:
        return "-"
    if isinstance(value, str) and name.endswith(("_id", "_hash")) and len(value) > 40:
        return value[:ID_DIGITS]
    if isinstance(value, str) and name.endswith("_uri") and len(value) > URI_TAIL:
        return f"…{value[-URI_TAIL:]}"
    if isinstance(value, list):
        return ", ".join(map(_number, value)) if len(value) <= 4 else f"[{len(value)} numbers]"
    return shown(_number(value))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def to_records(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values: bytes as their length, times as text, what is not finite as null."""
    return [{k: _json_value(v) for k, v in row.items()} for row in table.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    if isinstance(value, list):
        return [_json_value(each) for each in value]
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
