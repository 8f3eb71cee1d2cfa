"""query: anomalies, neighbours and SQL over the published tables. Needs neither ray nor torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import catalog
from jobs.errors import InputError, unknown_name
from jobs.lake import Lake
from jobs.schema import (
    ALIASES,
    MODEL_TABLES,
    QUARANTINE,
    RUNS,
    SOURCES,
    TableSpec,
    embeddings_spec,
    images_spec,
)
from jobs.storage import attempt, filesystem, local_path
from jobs.tables import Snapshot, open_snapshot
from vae_core.score_names import SCORES

RANKED = (*SCORES, "p_value")
METRICS = ("cosine", "euclidean")


def _empty_specs() -> dict[str, TableSpec]:
    specs = [
        images_spec((1, 1, 1), pa.schema([])),
        SOURCES,
        QUARANTINE,
        embeddings_spec(1),
        *MODEL_TABLES.values(),
        ALIASES,
        RUNS,
    ]
    return {spec.name: spec for spec in specs}


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
    for name, spec in _empty_specs().items():
        parts = [
            _select(snapshot, owner)
            for snapshot, owner in _snapshots(lake, name, versions)
            if snapshot.paths()
        ]
        if parts:
            body = " UNION ALL BY NAME ".join(parts)
            connection.execute(f'CREATE VIEW "{name}" AS {body}')
        else:
            connection.register(name, _empty(spec))
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


def _answer(lake: Lake, ask: Callable[[duckdb.DuckDBPyConnection], pa.Table]) -> pa.Table:
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

    return _answer(lake, ask)


def anomalies(
    lake: Lake,
    model: str,
    *,
    score: str | None = None,
    top: int = 20,
    night: str | None = None,
    dataset: str | None = None,
) -> pa.Table:
    """The most anomalous images of a bundle, worst first.

    score: one of RANKED; the bundle's decision score if None. p_value ranks ascending.
    Raises InputError for an unknown model or score.
    """
    from jobs.bundle_about import read_about

    name, version = catalog.resolve_model(lake, model)
    score = score or str(read_about(lake, name, version)["decision_score"])
    if score not in RANKED:
        raise unknown_name("score", score, list(RANKED))
    if dataset is not None:
        catalog.require_dataset(lake, dataset)
    order = "ASC" if score == "p_value" else "DESC"
    filters = {"e.model": name, "e.model_version": version, "e.night": night, "e.dataset": dataset}
    given = {column: value for column, value in filters.items() if value is not None}
    where = " AND ".join([f"{column} = ?" for column in given] + [f"e.{score} IS NOT NULL"])

    def ask(connection: duckdb.DuckDBPyConnection) -> pa.Table:
        labels = [row[0] for row in connection.execute("DESCRIBE images").fetchall()]
        label = "i.label, " if "label" in labels else ""
        # Rank on narrow columns first, then fetch the rest for the few that are shown.
        statement = f"""
            WITH ranked AS (
                SELECT e.image_id, e.dataset, e.night, e.{score} AS score, e.p_value
                FROM embeddings e WHERE {where}
                ORDER BY e.{score} {order}, e.image_id LIMIT ?
            )
            SELECT r.image_id, r.dataset, r.night, {label}r.score AS {score},
                   {"" if score == "p_value" else "r.p_value, "}i.source_uri, i.source_row
            FROM ranked r JOIN images i ON i.image_id = r.image_id AND i.dataset = r.dataset
            ORDER BY r.score {order}, r.image_id
        """
        return connection.sql(statement, params=[*given.values(), top]).to_arrow_table()

    return _answer(lake, ask)


def neighbours(
    lake: Lake, model: str, image_id: str, *, k: int = 10, metric: str = "cosine"
) -> pa.Table:
    """The k images nearest to one by embedding, nearest first, itself left out; exact.

    image_id: the whole id, or a beginning of it that fits one image only.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, list(METRICS))
    name, version = catalog.resolve_model(lake, model)
    statement = (
        "SELECT image_id, dataset, embedding FROM embeddings "
        "WHERE model = ? AND model_version = ? ORDER BY image_id"
    )
    params = [name, version]
    rows = _answer(lake, lambda views: views.sql(statement, params=params).to_arrow_table())
    query = _row_of(rows["image_id"], image_id)
    vectors = rows["embedding"].combine_chunks()
    dimension = len(vectors[query])
    matrix = vectors.flatten().to_numpy().reshape(-1, dimension).astype(np.float64)
    distance = _distances(matrix, query, metric)
    distance[query] = np.inf
    k = min(k, len(distance) - 1)
    nearest = np.argsort(distance, kind="stable")[:k]
    found = rows.select(["image_id", "dataset"]).take(nearest)
    return found.append_column(f"{metric}_distance", pa.array(distance[nearest]))


def _row_of(ids: pa.ChunkedArray, image_id: str) -> int:
    matches = pc.indices_nonzero(pc.starts_with(ids, image_id)).to_pylist()  # type: ignore[attr-defined]
    found = {ids[row].as_py() for row in matches}
    if not found:
        raise InputError(f"no embedded image has an id that starts with {image_id!r}")
    if len(found) > 1:
        raise InputError(
            f"{len(found)} images have an id that starts with {image_id!r}; add digits"
        )
    return matches[0]  # in several datasets, perhaps, with one and the same embedding


def _distances(matrix_ND: np.ndarray, query: int, metric: str) -> np.ndarray:
    vector = matrix_ND[query]
    if metric == "euclidean":
        return np.linalg.norm(matrix_ND - vector, axis=1)
    lengths = np.linalg.norm(matrix_ND, axis=1) * np.linalg.norm(vector)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(1.0 - matrix_ND @ vector / lengths, nan=1.0)


def to_records(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values: bytes as their length, times as text."""
    return [{k: _json_value(v) for k, v in row.items()} for row in table.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    return str(value)
