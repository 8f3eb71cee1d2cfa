"""Shards: Parquet files of our tables, written so that every engine reads them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.schema import TableSpec
from jobs.storage import attempt, create, join, open_input
from jobs.units import Output

ROW_GROUP_ROWS = 8192


def write_shard(
    table_uri: str,
    spec: TableSpec,
    rows: pa.Table,
    name: str,
    partition: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Output:
    """Writes `rows` (in the spec's file schema) as a new file of the table, create-only.

    name: unique to this attempt, without ending. The table does not hold it until a commit
    names it. Raises AlreadyThere where the name is taken.
    """
    partition = dict(partition or {})
    rows = rows.select(spec.file_schema.names).cast(spec.file_schema)
    _require_dimensions(spec, rows)
    data = _encode(spec, rows, metadata or {})
    path = "/".join([*(f"{key}={value}" for key, value in partition.items()), f"{name}.parquet"])
    create(join(table_uri, path), data)
    return Output(
        table=spec.name,
        path=path,
        size=len(data),
        rows=rows.num_rows,
        partition=partition,
        stats=_statistics(spec, rows),
    )


def _encode(spec: TableSpec, rows: pa.Table, metadata: Mapping[str, str]) -> bytes:
    plain_strings = [
        field.name
        for field in rows.schema
        if pa.types.is_string(field.type) and field.name not in ("image_id", "pixels_hash")
    ]
    buffer = io.BytesIO()
    # store_schema=False: a fixed-size type in the Arrow schema makes some readers fail.
    with pq.ParquetWriter(
        buffer,
        rows.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=plain_strings,  # pyright: ignore[reportArgumentType]
        store_schema=False,
    ) as writer:
        writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({"latentlake.table": spec.name, **metadata})
    return buffer.getvalue()


def _require_dimensions(spec: TableSpec, rows: pa.Table) -> None:
    for field in spec.file_schema:
        dimension = (field.metadata or {}).get(b"dimension")
        if dimension is None:
            continue
        lengths = pc.unique(pc.list_value_length(rows[field.name])).to_pylist()  # type: ignore[attr-defined]
        # Only where a family may have no such vector is a null one of the right length.
        allowed = {int(dimension)} | ({None} if field.name == "embedding_log_var" else set())
        assert set(lengths) <= allowed, f"{field.name}: lengths {lengths}"


def _statistics(spec: TableSpec, rows: pa.Table) -> dict[str, Any]:
    """Delta's per-file statistics for the columns that queries filter by."""
    low, high, nulls = {}, {}, {}
    for name in spec.stats:
        column = rows[name]
        nulls[name] = column.null_count
        extremes = pc.min_max(column).as_py()  # type: ignore[attr-defined]
        ends = (extremes["min"], extremes["max"])
        # JSON carries no NaN, and a bound that is not finite helps no reader.
        if all(e is not None and not (isinstance(e, float) and not math.isfinite(e)) for e in ends):
            low[name], high[name] = ends
    return {
        "numRecords": rows.num_rows,
        "minValues": low,
        "maxValues": high,
        "nullCount": nulls,
    }


def read_shard(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows; partition columns are not inside the file."""
    wanted = list(columns) if columns is not None else None

    def action() -> pa.Table:
        with open_input(uri) as file:
            return pq.ParquetFile(file).read(columns=wanted)

    return attempt(action, uri, "read")
