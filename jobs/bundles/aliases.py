"""What an alias has named so far: who moved it when, why and from where; and the next row of it."""

from __future__ import annotations

import getpass
import itertools
import os
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jobs.engine.plan import Plan
from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import ALIASES
from jobs.tables import catalog
from jobs.tables.data_file import Output
from jobs.tables.delta import Snapshot
from jobs.tables.shards import write_shard

AliasRows = Sequence[dict[str, Any]]

ROLLBACK = "rollback"  # the job that takes a move back; its ids start so


def moves(lake: LakePaths, model: str, alias: str) -> list[dict[str, Any]]:
    """Rows of the aliases table that gave this alias, oldest first; nothing is ever taken out.

    Columns that the table has not had yet are null.
    """
    rows = catalog.catalog_rows(lake, ALIASES.name)
    mine = [row for row in rows if (row["model"], row["alias"]) == (model, alias)]
    known = dict.fromkeys(ALIASES.schema.names)
    return [known | row for row in sorted(mine, key=lambda row: row["sequence"])]


def before(rows: AliasRows) -> str | None:
    """Return the version that a rollback goes to; None where there is none.

    Like undo: a move is put on top of what the alias named, a rollback takes it off again. So
    rollbacks one after another go further and further back, what was rolled back does not come up
    again, and a version that was promoted twice is there twice.

    rows: as `moves` gives them.
    """
    named: list[str] = []
    for row in rows:
        if _is_rollback(row):
            named = named[:-1]
        if not named or named[-1] != row["version"]:
            named.append(row["version"])
    return named[-2] if len(named) > 1 else None


def was_taken_back(rows: AliasRows, version: str) -> bool:
    """Whether the last move away from the version was a rollback."""
    away = [b for a, b in itertools.pairwise(rows) if a["version"] == version]
    return bool(away) and _is_rollback(away[-1])


def _is_rollback(row: dict[str, Any]) -> bool:
    return (row["job_id"] or "").startswith(f"{ROLLBACK}-")


def last_move_text(rows: AliasRows) -> str:
    """Who moved the alias to what, in words. rows: at least one."""
    last = rows[-1]
    return f"moved to {last['version']} by {last['moved_by'] or 'somebody'} (job {last['job_id']})"


def next_row(
    lake: LakePaths, head: Snapshot, plan: Plan, *, alias: str, version: str, reason: str, by: str
) -> Output:
    """Write a file with the row that gives the alias of the plan's target to a version.

    head: of the aliases table. A row that another job publishes meanwhile makes the commit
    raise CommitConflict, so that no sequence comes twice.
    """
    rows = catalog.catalog_rows(lake, ALIASES.name)
    row = {
        "sequence": 1 + max((row["sequence"] for row in rows), default=0),
        "model": plan.target,
        "alias": alias,
        "version": version,
        "reason": reason,
        "moved_by": by,
        "night": plan.night,
        "job_id": plan.job_id,
    }
    table = pa.Table.from_pylist([row], schema=ALIASES.schema)
    return write_shard(head.uri, ALIASES, table, f"{plan.job_id}-{uuid.uuid4().hex[:8]}")


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def history(lake: LakePaths, model: str, alias: str | None = None) -> list[dict[str, Any]]:
    """Every move of one alias, or of all of the model's, oldest first, for people.

    at: wall clock of the commit; null where its job was killed before it could tell, and has not
    been run again.
    """
    at = {row["job_id"]: row["finished_at"] for row in catalog.runs(lake)}
    found = [
        {
            "sequence": row["sequence"],
            "alias": name,
            "from": earlier["version"] if earlier is not None else None,
            "to": row["version"],
            "by": row["moved_by"],
            "at": at.get(row["job_id"]),
            "night": row["night"],
            "reason": row["reason"],
            "job_id": row["job_id"],
        }
        for name in ([alias] if alias is not None else sorted(catalog.aliases(lake, model)))
        for earlier, row in _pairs(moves(lake, model, name))
    ]
    return sorted(found, key=lambda row: row["sequence"])


def _pairs(rows: AliasRows) -> list[tuple[dict[str, Any] | None, dict[str, Any]]]:
    return list(zip([None, *rows[:-1]], rows, strict=True))
