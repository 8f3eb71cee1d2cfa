"""Commit: the files of a job become visible, table by table, in a fixed order, exactly once.

The order is the job's: the table that readers start from comes last. A commit record, saved
before the first table is touched, lets anyone complete a commit that was cut short. Whoever
commits to the first table has completed the one before, so at most one is ever half-done.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from jobs.engine.plan import Plan
from jobs.engine.records import CommitRecord, load_commit, save_commit
from jobs.errors import JobError, StorageError
from jobs.lake.documents import damaged, json_column
from jobs.lake.paths import LakePaths
from jobs.lake.storage import ATTEMPTS, join
from jobs.lake.uri import is_plain
from jobs.schemas.catalog import RUNS
from jobs.tables.conflicts import CommitConflict, CommitStateUnknown
from jobs.tables.delta import Snapshot, Table, open_snapshot, still_there
from jobs.tables.shards import write_shard
from jobs.tables.sync import sync_commit

ROUNDS = 30


def retrying(action: Callable[[], Any], what: str, table: str) -> Any:
    """Run an optimistic commit again after a CommitConflict, with jitter, bounded.

    A commit whose answer was lost may have landed: it is tried again a few times, too.
    table: URI of the one that is competed for. Raises JobError that names who won.
    """
    unanswered = 0
    for round_ in range(ROUNDS):
        try:
            return action()
        except CommitConflict as error:
            unanswered += isinstance(error, CommitStateUnknown)
            if unanswered == ATTEMPTS and error.__cause__ is not None:
                raise error.__cause__ from None
            back_off(round_)
    raise JobError(
        f"{what}: {ROUNDS} commits in a row met another writer{winner(table)}; run it again"
    )


def back_off(round_: int) -> None:
    """Before what another job has overtaken is tried again, so that two do not go on meeting."""
    time.sleep(random.uniform(0.0, min(2.0, 0.05 * 2**round_)))


def winner(table: str) -> str:
    """Who committed to a table last, for a message; empty where that is no job of ours."""
    snapshot = open_snapshot(table)
    job_id = snapshot.last_commit().get("job_id") if snapshot is not None else None
    return f", the last of them {job_id}" if isinstance(job_id, str) and is_plain(job_id) else ""


def completed_head(lake: LakePaths, tables: Sequence[Table]) -> Snapshot:
    """Return the newest snapshot of the first table, every commit up to it complete in all
    tables."""
    head = tables[0].ensure()
    for table in tables[1:]:
        table.ensure()
    _complete_last(lake, head)
    return head


def recover(lake: LakePaths, first_table: str) -> None:
    """Completes the commit that a killed job may have left half-done."""
    head = open_snapshot(first_table)
    if head is not None:
        _complete_last(lake, head)


def _complete_last(lake: LakePaths, head: Snapshot) -> None:
    last = head.last_commit()
    if "commit" not in last:
        return
    job_id = str(last.get("job_id"))
    record = load_commit(lake, job_id, str(last["commit"]))
    if record is not None:
        complete(lake, job_id, record)


def commit(lake: LakePaths, plan: Plan, head: Snapshot, record: CommitRecord) -> None:
    """Publish the record's files on top of `head`, the newest snapshot of the first table.

    Raises CommitConflict where another job, or this one in another process, came first: nothing is
    published then.
    """
    if head.has(plan.job_id):
        raise CommitConflict(f"{plan.job_id} is committed already")
    save_commit(lake, plan.job_id, record)
    first = next(iter(record.files))
    assert head.uri == join(lake.uri, first)
    metadata = {"commit": record.name, "night": plan.night}
    gone = record.removed.get(first, [])
    head.commit(
        plan.job_id,
        record.files[first],
        metadata,
        gone,
        same_rows=record.same_rows,
        schema=record.schemas.get(first),
    )
    complete(lake, plan.job_id, record)


def complete(lake: LakePaths, job_id: str, record: CommitRecord) -> None:
    """Commit a job's files to every table that does not have them yet."""
    for table in record.files:
        uri = join(lake.uri, table)
        retrying(lambda u=uri, t=table: _commit_one(u, t, job_id, record), uri, uri)


def _commit_one(uri: str, table: str, job_id: str, record: CommitRecord) -> None:
    snapshot = open_snapshot(uri)
    if snapshot is None:  # it is created before the first commit
        raise StorageError(f"{uri} has gone, and {job_id} has files for it; restore it")
    if not snapshot.has(job_id):
        snapshot.commit(
            job_id,
            record.files[table],
            {"commit": record.name},
            record.removed.get(table, []),
            same_rows=record.same_rows,
            schema=record.schemas.get(table),
        )


def is_published(plan: Plan, tables: Sequence[Table]) -> bool:
    """Whether every table has the job's commit."""
    snapshots = [table.snapshot() for table in tables]
    return all(s is not None and s.has(plan.job_id) for s in snapshots)


def published_versions(job_id: str, lake: LakePaths, tables: Sequence[str]) -> dict[str, int]:
    """By table, as named in the lake: the version that the job published, and that lasts now."""
    versions = {}
    for table in tables:
        uri = join(lake.uri, table)
        version = versions[table] = still_there(open_snapshot(uri), uri).version_of(job_id)
        sync_commit(uri, version)  # which another process may have made, that was killed
    return versions


def append_rows(table: Table, job_id: str, rows: list[dict[str, Any]]) -> None:
    """Publish a few rows in a catalog table, once a job id; where it numbers them, in order."""

    def action() -> int:
        snapshot = table.ensure()
        if snapshot.has(job_id):
            return snapshot.version_of(job_id)
        # The commit fails where another one takes this version: no two have the same number.
        numbered = [{"sequence": snapshot.version + 1, **row} for row in rows]
        batch = pa.Table.from_pylist(numbered, schema=table.spec.schema)
        output = write_shard(table.uri, table.spec, batch, f"{job_id}-{uuid.uuid4().hex[:8]}")
        return snapshot.commit(job_id, [output], {})

    sync_commit(table.uri, retrying(action, table.uri, table.uri))


def published_counts(
    lake: LakePaths, plan: Plan, first_table: Table
) -> tuple[dict[str, Any], float]:
    """Return counts and seconds of a job whose tables are published, by another process or before a
    crash: from its row in `catalog/runs`, else from its commit record."""
    runs = open_snapshot(lake.catalog(RUNS.name))
    if runs is not None and runs.has(plan.job_id):
        rows = runs.read(["job_id", "counts", "seconds"])
        matching = rows.to_pylist() if rows is not None else []
        row = next((row for row in matching if row["job_id"] == plan.job_id), None)
        if row is None:
            raise damaged(runs.uri, f"the row of {plan.job_id} has left it")
        return json_column(row, "counts"), row["seconds"]
    name = first_table.now().commit_of(plan.job_id).get("commit")
    record = load_commit(lake, plan.job_id, str(name)) if name is not None else None
    return (record.counts, record.seconds) if record is not None else ({}, 0.0)


def record_run(
    lake: LakePaths, plan: Plan, versions: dict[str, int], counts: dict[str, Any], seconds: float
) -> None:
    """Write the job's row in `catalog/runs`: from here on our own views read what it published."""
    from importlib.metadata import version

    row = {
        "job_id": plan.job_id,
        "job": plan.job,
        "target": plan.target,
        "night": plan.night,
        "finished_at": dt.datetime.now(dt.UTC),
        "seconds": seconds,
        "counts": json.dumps(counts, sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        "config": json.dumps(plan.settings, sort_keys=True),
        "code": version("latentlake"),
    }
    append_rows(Table(lake.catalog(RUNS.name), RUNS), plan.job_id, [row])
