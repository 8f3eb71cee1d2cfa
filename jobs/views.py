"""SQL over the published tables: DuckDB views of them. Needs neither ray nor torch."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pyarrow as pa

from jobs import catalog
from jobs.errors import InputError
from jobs.lake import Lake
from jobs.schema import (
    ALIASES,
    MODEL_TABLES,
    RUNS,
    TableSpec,
    every_spec,
)
from jobs.storage import attempt, filesystem, local_path
from jobs.tables import Snapshot, open_snapshot


def open_views(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view of each kind of table, as finished jobs published it.

    Views over all datasets or models carry `dataset` or `model` as a column.
    """
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    fs, _ = filesystem(lake.uri)
    if local_path(lake.uri) is None:
        connection.register_filesystem(fs)
    versions = catalog.published_versions(lake)
    for spec in every_spec():
        name = spec.name
        parts = [
            _select(snapshot, owner)
            for snapshot, owner in _snapshots(lake, name, versions)
            if snapshot.paths()
        ]
        # Its columns come first, and are there although no file has them yet.
        connection.register(f"no_{name}", _empty(spec))
        body = " UNION ALL BY NAME ".join([f'SELECT * FROM "no_{name}" WHERE false', *parts])
        connection.execute(f'CREATE VIEW "{name}" AS {body}')
    return connection


def _empty(spec: TableSpec) -> pa.Table:
    owner = {"images": "dataset", "sources": "dataset", "quarantine": "dataset"}.get(
        spec.name, "model"
    )
    fields = [f.with_type(pa.binary()) if f.name == "image" else f for f in spec.schema]
    if spec.name not in (ALIASES.name, RUNS.name):
        fields.append(pa.field(owner, pa.string()))
    return pa.schema(fields).empty_table()


def _snapshots(
    lake: Lake, name: str, versions: dict[str, int]
) -> list[tuple[Snapshot, dict[str, str]]]:
    """Every published table of a kind, with the column that tells whose it is."""
    places: list[tuple[str, dict[str, str]]] = [(lake.catalog(name), {})]
    if name in ("images", "sources", "quarantine"):
        places = [(lake.dataset(d, name), {"dataset": d}) for d in catalog.datasets(lake)]
    elif name == "embeddings" or name in MODEL_TABLES:
        places = [(lake.model(m, name), {"model": m}) for m in catalog.models(lake)]
    found = []
    for uri, owner in places:
        version = versions.get(uri.removeprefix(lake.uri + "/"))
        if version is None and owner:
            continue  # no finished job has published it
        snapshot = open_snapshot(uri, version)
        if snapshot is not None:
            found.append((snapshot, owner))
    return found


def _select(snapshot: Snapshot, owner: dict[str, str]) -> str:
    files = ", ".join(_quoted(_duckdb_path(uri)) for uri in snapshot.file_uris())
    constants = "".join(f", {_quoted(value)} AS {key}" for key, value in owner.items())
    return (
        f"SELECT *{constants} FROM read_parquet([{files}], hive_partitioning = true, "
        "hive_types_autocast = false, union_by_name = true)"
    )


def _duckdb_path(uri: str) -> str:
    path = local_path(uri)
    return str(path) if path is not None else uri


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def answer(lake: Lake, ask: Callable[[duckdb.DuckDBPyConnection], pa.Table]) -> pa.Table:
    """What `ask` gets from a connection with our views; asked again where storage fails."""

    def action() -> pa.Table:
        try:
            return ask(open_views(lake))
        except duckdb.Error as error:
            fault = _fault_below(error)
            if fault is None:
                raise InputError(f"SQL: {error}") from error
            raise OSError(fault) from error

    return attempt(action, lake.uri, "read")


def _fault_below(error: duckdb.Error) -> str | None:
    """What a file that DuckDB reads through fsspec ran into; None where SQL is at fault.

    DuckDB passes it on as the text of Python's traceback.
    """
    if "Traceback (most recent call last)" not in str(error):
        return None
    lines = str(error).partition("Traceback (most recent call last)")[2].splitlines()
    told = [line for line in lines[1:] if line and not line.startswith(" ")]
    return told[0] if told else "a file could not be read"


def sql(lake: Lake, statement: str) -> pa.Table:
    """Runs a SQL statement over the views. Raises InputError with DuckDB's own words."""

    def ask(connection: duckdb.DuckDBPyConnection) -> pa.Table:
        relation = connection.sql(statement)
        if relation is None:
            raise InputError("the statement returns no rows; write a SELECT")
        return relation.to_arrow_table()

    return answer(lake, ask)
