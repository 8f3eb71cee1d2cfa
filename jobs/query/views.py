"""SQL over the published tables: DuckDB views of them. Needs neither ray nor torch."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import attempt, filesystem, join, local_path
from jobs.query.immutable_files import ImmutableFiles
from jobs.schemas.registry import SPECS
from jobs.schemas.spec import TableSpec
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot

VIEWS = frozenset(SPECS)
REQUESTS = 16  # to a store at once: DuckDB's threads wait for them
NONE: Mapping[str, pa.Table] = MappingProxyType({})


class Views:
    """A DuckDB connection with a view of each kind of table, as finished jobs published it.

    Views over all datasets or models carry `dataset` or `model` as a column. A view is opened when
    a question first names it, and anew once a job has published since. Threads may share it.
    """

    def __init__(self, lake: LakePaths) -> None:
        self.lake = lake
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._versions: dict[str, int] = {}
        self._opened: set[str] = set()
        self._lock = threading.Lock()
        self._parser = duckdb.connect()  # without views, which it would want to read
        is_remote = local_path(lake.uri) is None
        self._files = ImmutableFiles(filesystem(lake.uri)[0]) if is_remote else None

    def sql(
        self, statement: str, params: Sequence[Any] = (), tables: Mapping[str, pa.Table] = NONE
    ) -> pa.Table:
        """Return what a SELECT gives; tried again where storage fails.

        tables: further ones to ask, by name. Raises InputError with DuckDB's own words.
        """

        def action() -> pa.Table:
            with self._lock:
                try:
                    return self._answer(statement, params, tables)
                except duckdb.Error as error:
                    # It may hold what was half read, or a transaction that was aborted.
                    self._connection = None
                    fault = fault_below(error)
                    if fault is None:
                        raise InputError(f"SQL: {error}") from error
                    raise OSError(fault) from error

        return attempt(action, self.lake.uri, "read")

    def columns(self, name: str) -> list[str]:
        """Of a view."""
        return self.sql(f'SELECT * FROM "{name}" LIMIT 0').column_names

    def named(self, statement: str) -> Collection[str]:
        """Return the views that a statement may need."""
        return _named(self._parser, statement) or VIEWS

    def _answer(
        self, statement: str, params: Sequence[Any], tables: Mapping[str, pa.Table]
    ) -> pa.Table:
        connection = self._fresh()
        for name, table in tables.items():
            connection.register(name, table)
        try:
            self._open(connection, self.named(statement))
            try:
                relation = connection.sql(statement, params=list(params))
            except duckdb.CatalogException:  # one of ours, named where a look at the text misses it
                self._open(connection, VIEWS)
                relation = connection.sql(statement, params=list(params))
            if relation is None:
                raise InputError("the statement returns no rows; write a SELECT")
            return relation.to_arrow_table()
        finally:
            for name in tables:
                connection.unregister(name)
            if not _only_asks(self._parser, statement):
                self._connection = None  # what it changed is nobody else's

    def _fresh(self) -> duckdb.DuckDBPyConnection:
        """Return the connection, with no view that is older than what is published now."""
        versions = catalog.published_versions(self.lake)
        if self._connection is None or versions != self._versions:
            self._connection = _connect(self._files)
            self._versions, self._opened = versions, set()
        return self._connection

    def _open(self, connection: duckdb.DuckDBPyConnection, names: Collection[str]) -> None:
        new = [name for name in SPECS if name in names and name not in self._opened]
        found = {name: _snapshots(self.lake, name, self._versions) for name in new}
        self._prepare(connection, [table for parts in found.values() for table, _ in parts])
        for name, table in found.items():
            parts = [_select(snapshot, owner) for snapshot, owner in table if snapshot.paths()]
            # Its columns come first, and are there although no file has them yet.
            connection.register(f"no_{name}", _empty(SPECS[name]))
            body = " UNION ALL BY NAME ".join([f'SELECT * FROM "no_{name}" WHERE false', *parts])
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {body}')
            if SPECS[name].owner != "catalog":
                self._opened.add(name)

    def _prepare(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Snapshot]) -> None:
        """Before views of these snapshots are opened."""
        if self._files is not None:
            for snapshot in tables:
                self._files.known |= _sizes(snapshot)


def _connect(files: ImmutableFiles | None) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    # Files never change under their names, so footers are read once.
    connection.execute("SET parquet_metadata_cache = true")
    if files is not None:
        connection.register_filesystem(files)
        connection.execute(f"SET threads = {REQUESTS}")
    return connection


def _named(parser: duckdb.DuckDBPyConnection, statement: str) -> set[str]:
    """Our tables that a statement names; none where it is not a SELECT."""
    try:
        # It takes no parameters; which tables are named does not hang on them.
        names = parser.get_table_names(statement.replace("?", "NULL"))
    except duckdb.BinderException:  # JOIN … USING, which it cannot look up without the tables
        return {name for name in VIEWS if re.search(rf"\b{name}\b", statement, re.IGNORECASE)}
    except duckdb.Error:
        return set()
    return {name.lower() for name in names} & VIEWS


def _only_asks(parser: duckdb.DuckDBPyConnection, statement: str) -> bool:
    """Whether it leaves nothing behind in a connection."""
    asking = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    return all(each.type in asking for each in parser.extract_statements(statement))


def _empty(spec: TableSpec) -> pa.Table:
    fields = [f.with_type(pa.binary()) if f.name == "image" else f for f in spec.schema]
    if spec.owner != "catalog":
        fields.append(pa.field(spec.owner, pa.string()))
    return pa.schema(fields).empty_table()


def _snapshots(
    lake: LakePaths, name: str, versions: dict[str, int]
) -> list[tuple[Snapshot, dict[str, str]]]:
    """Every published table of a kind, with the column that tells whose it is."""
    places: list[tuple[str, dict[str, str]]] = [(lake.catalog(name), {})]
    if SPECS[name].owner == "dataset":
        places = [(lake.dataset(d, name), {"dataset": d}) for d in catalog.datasets(lake)]
    elif SPECS[name].owner == "model":
        places = [(lake.model(m, name), {"model": m}) for m in catalog.models(lake)]
    found = []
    for uri, owner in places:
        # The catalog is what it is now; the others, as a finished job published them.
        version = versions.get(lake.name_of(uri)) if owner else None
        if version is None and owner:
            continue  # no finished job has published it
        snapshot = open_snapshot(uri, version)
        if snapshot is not None:
            found.append((snapshot, owner))
    return found


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    """Of the files in a store, by path there."""
    return {filesystem(join(snapshot.uri, f.path))[1]: f.size for f in snapshot.files()}


def _select(snapshot: Snapshot, owner: dict[str, str]) -> str:
    files = ", ".join(quoted(duckdb_path(uri)) for uri in snapshot.file_uris())
    constants = "".join(f", {quoted(value)} AS {key}" for key, value in owner.items())
    return (
        f"SELECT *{constants} FROM read_parquet([{files}], hive_partitioning = true, "
        "hive_types_autocast = false, union_by_name = true)"
    )


def duckdb_path(uri: str) -> str:
    """Write a URI as DuckDB's readers take it."""
    path = local_path(uri)
    return str(path) if path is not None else uri


def quoted(text: str) -> str:
    """Quote a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def fault_below(error: duckdb.Error) -> str | None:
    """Return what a file that DuckDB reads through fsspec ran into; None where SQL is at fault.

    DuckDB passes it on as the text of Python's traceback.
    """
    if "Traceback (most recent call last)" not in str(error):
        return None
    lines = str(error).partition("Traceback (most recent call last)")[2].splitlines()
    messages = [line for line in lines[1:] if line and not line.startswith(" ")]
    return messages[0] if messages else "a file could not be read"


def sql(lake: LakePaths, statement: str) -> pa.Table:
    """Run a SQL statement over the views. Raises InputError with DuckDB's own words."""
    return Views(lake).sql(statement)
