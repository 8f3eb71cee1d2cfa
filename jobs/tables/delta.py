"""Delta tables: snapshots to read, and the one kind of commit that publishes.

Every commit carries two transactions: ("latentlake", n + 1), with n read from the same handle,
makes it a compare-and-swap; (job_id, 1) marks the job as published, so that it cannot be
published twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from jobs.errors import InputError, JobError, LatentlakeError, StorageError
from jobs.lake.documents import damaged
from jobs.lake.read_ahead import read_ahead
from jobs.lake.storage import ATTEMPTS, attempt, delta_options, exists, join, require_begun
from jobs.lake.storage_errors import is_transient
from jobs.schemas.dataset import TableSpec
from jobs.schemas.spec import CONTRACT_KEYS
from jobs.tables import delta_log
from jobs.tables.conflicts import CommitConflict, commit_once
from jobs.tables.data_file import Output
from jobs.tables.image_ids import IdSet
from jobs.tables.logged_schema import logged_schema, parsed_schema
from jobs.tables.shards import read_digests, read_shard
from jobs.tables.sync import sync_files

APP = "latentlake"
MOST_VERSIONS = 10_000_000  # deltalake counts up to the version that is wanted (1.6.6)
LOOKED_AT = 10  # for the last commit of a job


@dataclasses.dataclass(frozen=True)
class Table:
    """A table at a URI. The spec is used where it has to be created."""

    uri: str
    spec: TableSpec

    def snapshot(self, version: int | None = None) -> Snapshot | None:
        """Return the newest snapshot, or the given one; None where the table does not exist yet."""
        return open_snapshot(self.uri, version)

    def now(self) -> Snapshot:
        """Return the newest snapshot. Raises StorageError where the table has gone."""
        return still_there(self.snapshot(), self.uri)

    def ensure(self) -> Snapshot:
        """Return the newest snapshot, of a table that is created empty where there is none."""
        found = self.snapshot()
        if found is None:
            require_begun(self.uri)
            attempt(self._create, self.uri, "write")
            found = self.now()
        if not found.is_published:
            # One that was only created, for other columns perhaps, binds nobody: the first commit
            # brings its own.
            return found
        self.require_same_schema(found)
        for _ in range(ATTEMPTS):
            new = [f for f in logged_schema(self.spec) if f.name not in found.schema.names]
            if not new:
                return found
            self._add_columns(found, new)
            found = self.now()
        raise JobError(f"{self.uri}: columns keep changing; run it again")

    def _add_columns(self, found: Snapshot, fields: list[pa.Field]) -> None:
        """Columns of a later release: rows of before have null in them."""
        required = [field.name for field in fields if not field.nullable]
        assert not required, f"{self.uri}: {required} have no value in older rows"
        # Another process may be doing the same: whoever comes second finds them there.
        new = list(Schema.from_arrow(pa.schema(fields)).fields)
        with contextlib.suppress(_Added):
            attempt(lambda: _added(found.handle, new), self.uri, "write")

    def _create(self) -> None:
        # Of several that create it at once, one does and the others find it there.
        with contextlib.suppress(CommitFailedError):
            DeltaTable.create(
                self.uri,
                Schema.from_arrow(logged_schema(self.spec)),
                mode="ignore",
                partition_by=list(self.spec.partition_by),
                name=self.spec.name,
                configuration={"delta.enableExpiredLogCleanup": "false"},
                storage_options=delta_options(self.uri),
            )

    def as_published(self) -> Table:
        """With columns that a later release has added, so that no rewrite loses them."""
        found = self.snapshot()
        known = self.spec.schema.names
        more = [f for f in found.schema if f.name not in known] if found is not None else []
        schema = pa.schema([*self.spec.schema, *more])
        return Table(self.uri, dataclasses.replace(self.spec, schema=schema))

    @property
    def delta_schema(self) -> str:
        """Columns, types and field metadata as the log has them, JSON."""
        return Schema.from_arrow(logged_schema(self.spec)).to_json()

    def require_same_schema(self, found: Snapshot) -> None:
        """Raise InputError where the table cannot take this spec's rows."""
        ours = {f.name: f for f in logged_schema(self.spec)}
        theirs = {f.name: f for f in found.schema}
        for name, field in ours.items():
            other = theirs.get(name)
            if other is None:
                continue
            if other.type != field.type:
                raise InputError(
                    f"{self.uri}: column {name!r} would be {field.type}, but the table has "
                    f"{other.type}; use another name"
                )
            for key in CONTRACT_KEYS:
                mine, logged = ((f.metadata or {}).get(key.encode()) for f in (field, other))
                if mine != logged:
                    raise InputError(
                        f"{self.uri}: {name!r} has {key} {(logged or b'none').decode()} in the "
                        f"table, {(mine or b'none').decode()} in this run; use the same "
                        "settings, or another name"
                    )


def still_there(snapshot: Snapshot | None, uri: str) -> Snapshot:
    """Raise StorageError where a table that a job works on is there no more."""
    if snapshot is None:
        gone = f"{uri} has gone while a job was at work on it; look whether its disk is still there"
        raise StorageError(f"{gone}, and run it again")
    return snapshot


class _Added(LatentlakeError):
    """Another process has added the columns."""


def _added(handle: DeltaTable, fields: list[Any]) -> None:
    try:
        handle.alter.add_columns(fields)
    except CommitFailedError as error:
        raise _Added(str(error)) from error


@dataclasses.dataclass(frozen=True)
class TableFile:
    """A file of a snapshot. path: relative to the table. size: in bytes."""

    path: str
    size: int
    rows: int
    partition: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One committed version of a table; immutable."""

    uri: str
    handle: DeltaTable

    @property
    def version(self) -> int:
        """Return the version of the table that it is."""
        return self.handle.version()

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the rows."""
        return pa.schema(self.handle.schema().to_arrow())

    def has(self, job_id: str) -> bool:
        """Whether the job has been published in this table."""
        return self._transaction(job_id) is not None

    @property
    def commits(self) -> int:
        """Of our jobs so far: versions that only created the table or widened it count for none."""
        return self._transaction(APP) or 0

    @property
    def is_published(self) -> bool:
        """Whether any job of ours has committed to it; else it has only been created."""
        return self.commits > 0

    def _transaction(self, name: str) -> int | None:
        # The handle reads the log when it is used.
        return attempt(lambda: self.handle.transaction_version(name), self.uri, "read")

    def history(self, down_to: int = 0) -> Iterator[dict[str, Any]]:
        """Return what the log tells of this version and of those before it, the newest first.

        Ends at version `down_to`, or where the log has been cleaned. Raises InputError for an
        entry that is damaged.
        """
        return delta_log.entries(self.uri, self.version, max(down_to, 0))

    def last_commit(self) -> dict[str, Any]:
        """Return the newest commit's metadata: `job_id` and `commit`, where a job of ours made
        it."""
        newest: dict[str, Any] = {"version": self.version}
        for entry in self.history(down_to=self.version - LOOKED_AT):
            if "job_id" in entry:  # commits that only add a column are nobody's job
                return entry
            newest = newest if len(newest) > 1 else entry
        return newest

    def commit_of(self, job_id: str) -> dict[str, Any]:
        """Return the metadata of the job's commit. Raises InputError where the log tells it no
        more."""
        assert self.has(job_id), f"{job_id} has not committed to {self.uri}"
        found = next((e for e in self.history() if e.get("job_id") == job_id), None)
        if found is None:
            raise damaged(f"the log of {self.uri}", f"the commit of {job_id} has left it")
        return found

    def version_of(self, job_id: str) -> int:
        """Return the version that the job published."""
        return self.commit_of(job_id)["version"]

    def _removals(self, paths: Sequence[str], now_ms: int, same_rows: bool) -> list[RemoveAction]:
        files = {action["path"]: action for action in self._files(None)}
        missing = [path for path in paths if path not in files]
        if missing:
            raise CommitConflict(f"{self.uri} version {self.version} has no {missing[0]}")
        return [
            RemoveAction(
                path,
                not same_rows,
                now_ms,
                files[path]["size_bytes"],
                dict[str, str | None](_partition_of(files[path])),
            )
            for path in paths
        ]

    def files(self, partition: dict[str, str] | None = None) -> list[TableFile]:
        """Return the files with what the log tells of them, sorted by path."""
        found = [
            TableFile(a["path"], a["size_bytes"], a["num_records"], _partition_of(a))
            for a in self._files(partition)
        ]
        return sorted(found, key=lambda file: file.path)

    def read_each(
        self, columns: Sequence[str], partition: dict[str, str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Path and columns of one file after the other, so that memory stays that of a few."""
        return read_ahead(
            self.paths(partition), lambda path: read_shard(join(self.uri, path), columns)
        )

    def digests_each(
        self, partition: dict[str, str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Path and digests of the image ids of one file after the other."""
        return read_ahead(self.paths(partition), lambda path: read_digests(join(self.uri, path)))

    def image_ids(self, partition: dict[str, str] | None = None) -> IdSet:
        """Of all rows, or of those of a partition."""
        return IdSet(ids for _, ids in self.digests_each(partition))

    def _files(self, partition: dict[str, str] | None) -> list[dict[str, Any]]:
        found = attempt(lambda: self.handle.get_add_actions(flatten=True), self.uri, "read")
        actions = pa.table(found).to_pylist()
        for action in actions:
            delta_log.require_ours(self.uri, action)
        wanted = (partition or {}).items()
        return [a for a in actions if all(a[f"partition.{k}"] == v for k, v in wanted)]

    def paths(
        self,
        partition: dict[str, str] | None = None,
        within: tuple[str, Any, Any] | None = None,
    ) -> list[str]:
        """Paths of the files relative to the table, sorted; of one partition where given.

        within: column, least and greatest; files whose statistics say that they have no row in
        between are left out.
        """
        return sorted(a["path"] for a in self._files(partition) if _may_have(a, within))

    def partition_rows(self, partition: dict[str, str]) -> int:
        """Rows of a partition, from the log alone."""
        return sum(action["num_records"] for action in self._files(partition))

    def file_uris(self, partition: dict[str, str] | None = None) -> list[str]:
        """Return the URIs of its files, those of a partition if one is given."""
        return [join(self.uri, path) for path in self.paths(partition)]

    def read(
        self, columns: Sequence[str], partition: dict[str, str] | None = None
    ) -> pa.Table | None:
        """Read the columns (none of them a partition column) of all files; None if there are
        none."""
        tables = [read_shard(uri, columns) for uri in self.file_uris(partition)]
        return pa.concat_tables(tables) if tables else None

    def commit(
        self,
        job_id: str,
        outputs: Sequence[Output],
        metadata: dict[str, str],
        removed: Sequence[str] = (),
        *,
        same_rows: bool = False,
        schema: str | None = None,
    ) -> int:
        """Add and remove files as the version after this one, and return it.

        removed: paths that the snapshot has. same_rows: the rows only moved to other files. schema:
        that of a first commit, as `Table.delta_schema` gives it.
        Raises CommitConflict where that version exists already.
        """
        sequence = self.commits + 1
        properties = CommitProperties(
            custom_metadata={"job_id": job_id, **metadata},
            max_commit_retries=0,
            app_transactions=[Transaction(APP, sequence), Transaction(job_id, 1)],
        )
        now_ms = int(time.time() * 1000)
        adds = [
            AddAction(o.path, o.size, o.partition, now_ms, not same_rows, json.dumps(o.stats))
            for o in outputs
        ]
        removes = self._removals(removed, now_ms, same_rows) if removed else []

        # Until the first commit a table binds nobody: that one brings its own schema, by the same
        # compare-and-swap.
        logged = self.handle.schema()
        brought = schema is not None and schema != logged.to_json() and not self.is_published
        own = parsed_schema(schema, self.uri) if brought and schema is not None else None

        def action() -> None:
            try:
                self.handle.create_write_transaction(
                    [*adds, *removes],
                    "append" if own is None else "overwrite",
                    own or logged,
                    self.handle.metadata().partition_columns,
                    commit_properties=properties,
                )
            except CommitFailedError as error:
                raise CommitConflict(str(error)) from error

        # deltalake would begin a log anew, with this very entry.
        if not exists(delta_log.entry_uri(self.uri, self.version)):
            still_there(None, self.uri)
        sync_files(self.uri, (o.path for o in outputs))
        commit_once(action, self.uri)
        return self.version + 1


def _may_have(action: dict[str, Any], within: tuple[str, Any, Any] | None) -> bool:
    if within is None:
        return True
    column, least, greatest = within
    low, high = (action.get(f"{end}.{column}") for end in ("min", "max"))
    return low is None or high is None or (low <= greatest and high >= least)


def _partition_of(action: dict[str, Any]) -> dict[str, str]:
    mark = "partition."
    return {k.removeprefix(mark): v for k, v in action.items() if k.startswith(mark)}


def open_snapshot(uri: str, version: int | None = None) -> Snapshot | None:
    """Open a table. Raises InputError where it is there, but has not the version yet."""
    if version is not None and not 0 <= version <= MOST_VERSIONS:
        raise InputError(f"{uri} has no version {version}")

    def action() -> DeltaTable | None:
        try:
            return DeltaTable(uri, version=version, storage_options=delta_options(uri))
        except TableNotFoundError:
            return None

    try:
        handle = attempt(action, uri, "read")
    except StorageError as error:
        fault = error.__cause__ or error
        if not is_transient(fault):  # else the store is away, and its log with it
            delta_log.require_readable(uri, str(error))
        newest = open_snapshot(uri) if version is not None else None
        if newest is None or version is None or version <= newest.version:
            raise
        message = f"{uri} has no version {version}; the newest is {newest.version}"
        raise InputError(message) from error
    return None if handle is None else Snapshot(uri, handle)
