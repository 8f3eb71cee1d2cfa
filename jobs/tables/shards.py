"""Shards: Parquet files of our tables, written so that every engine reads them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.lake.atomic_file import Draft
from jobs.lake.storage import attempt, create, join, local_name, local_path, open_input
from jobs.lake.storage_errors import explain
from jobs.schemas.dataset import TableSpec
from jobs.tables.data_file import Output
from jobs.tables.image_ids import HALVES, digests

T = TypeVar("T")

ROW_GROUP_ROWS = 8192
# Of pixels: small enough to shuffle by, large enough to be one request.
ROW_GROUP_BYTES = 16 << 20
# What compression must save of the pixels to be worth reading through it.
WORTH_COMPRESSING = 0.1
SAMPLE_ROWS = 64
FALSE_HITS = 0.01  # of a row group's bloom filter
FOOTERS = 256  # that a process keeps
DIGESTED = 1 << 16  # ids at once


def row_group_rows(spec: TableSpec) -> int:
    """Rows a row group: by their bytes for pixels, a fixed number for narrow tables."""
    widths = [f.type.byte_width for f in spec.file_schema if pa.types.is_fixed_size_binary(f.type)]
    return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // sum(widths))) if widths else ROW_GROUP_ROWS


class ShardWriter:
    """A shard that grows by row groups; it appears, whole, when it is closed."""

    def __init__(
        self,
        table_uri: str,
        spec: TableSpec,
        name: str,
        partition: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """name: unique to this attempt, without ending. metadata: of the file, key by key."""
        self.table_uri = table_uri
        self.spec = spec
        self.partition = dict(partition or {})
        self.metadata = dict(metadata or {})
        folders = (f"{key}={value}" for key, value in self.partition.items())
        self.path = "/".join([*folders, f"{name}.parquet"])
        self.rows = 0
        self.group_rows = row_group_rows(spec)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._statistics = _Statistics(spec.stats)
        self._uri = join(table_uri, self.path)
        local = local_path(self._uri)
        # Straight to local disk; to a store as one object, once it is whole.
        self._draft = self._attempt(lambda: Draft(local)) if local is not None else None
        self._sink: pa.NativeFile = (
            self._attempt(lambda: pa.OSFile(str(draft.temporary), "wb"))
            if (draft := self._draft) is not None
            else pa.BufferOutputStream()
        )
        self._writer: pq.ParquetWriter | None = None

    @property
    def size(self) -> int:
        """Bytes so far, without the rows that wait for their row group to fill."""
        return self._sink.tell()

    def write(self, rows: pa.Table) -> None:
        """Add rows, in the spec's file schema; full row groups are encoded at once.

        Columns that the rows lack, because an older release wrote them, are null.
        """
        rows = with_all_columns(rows, self.spec.file_schema)
        _require_dimensions(self.spec, rows)
        self._statistics.add(rows)
        self.rows += rows.num_rows
        self._waiting.append(rows)
        self._waiting_rows += rows.num_rows
        if self._waiting_rows >= self.group_rows:
            waiting = pa.concat_tables(self._waiting)
            full = self._waiting_rows - self._waiting_rows % self.group_rows
            self._encode(waiting.slice(0, full))
            self._waiting = [waiting.slice(full)]
            self._waiting_rows -= full

    def _encode(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = self._attempt(lambda: _parquet_writer(self._sink, self.spec, rows))
        writer = self._writer
        self._attempt(lambda: writer.write_table(rows, row_group_size=self.group_rows))

    def _flush(self) -> None:
        if self._waiting_rows or self._writer is None:
            schema = self.spec.file_schema
            self._encode(pa.concat_tables([schema.empty_table(), *self._waiting]))
            self._waiting, self._waiting_rows = [], 0

    def close(self) -> Output:
        """Put the file, create-only. The table does not hold it until a commit names it.

        Raises AlreadyThere where the name is taken.
        """
        self._flush()
        writer, draft = self._writer, self._draft
        assert writer is not None
        writer.add_key_value_metadata({"latentlake.table": self.spec.name, **self.metadata})
        self._attempt(writer.close)
        size = self._sink.tell()
        if draft is None:
            assert isinstance(self._sink, pa.BufferOutputStream)
            # Arrow's buffers are of signed bytes, which equal no unsigned ones.
            create(self._uri, memoryview(self._sink.getvalue()).cast("B"))
        else:
            self._attempt(self._sink.close)
            self._attempt(draft.publish)
        return Output(
            table=self.spec.name,
            path=self.path,
            size=size,
            rows=self.rows,
            partition=self.partition,
            stats=self._statistics.to_dict(),
        )

    def _attempt(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise explain(error, self._uri, "write") from error


def with_all_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns that they lack, because an older release wrote them."""
    for field in schema:
        if field.name not in rows.column_names and field.nullable:
            older = (field.metadata or {}).get(b"older")
            value = pa.scalar(older.decode() if older is not None else None, field.type)
            rows = rows.append_column(field, pa.repeat(value, len(rows)))
    return rows.select(schema.names).cast(schema)


def write_shard(
    table_uri: str,
    spec: TableSpec,
    rows: pa.Table,
    name: str,
    partition: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Output:
    """Write `rows` as a new file of the table; see ShardWriter."""
    writer = ShardWriter(table_uri, spec, name, partition, metadata)
    writer.write(rows)
    return writer.close()


def _parquet_writer(buffer: pa.NativeFile, spec: TableSpec, first: pa.Table) -> pq.ParquetWriter:
    schema = spec.file_schema
    plain_strings = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in ("image_id", "pixels_hash")
    ]
    codecs = {
        field.name: "zstd" if _worth_compressing(first[field.name], field.type) else "none"
        for field in schema
    }
    # store_schema=False: a fixed-size type in the Arrow schema makes some readers fail.
    return pq.ParquetWriter(
        buffer,
        schema,
        compression=_by_leaf(schema, codecs),  # pyright: ignore[reportArgumentType]
        compression_level=_by_leaf(schema, {n: 1 for n, c in codecs.items() if c == "zstd"}),
        use_dictionary=plain_strings,  # pyright: ignore[reportArgumentType]
        # Ids are spread evenly, so that ranges alone tell little of where one is.
        bloom_filter_options=(
            {"image_id": {"ndv": row_group_rows(spec), "fpp": FALSE_HITS}}
            if "image_id" in schema.names
            else None
        ),
        store_schema=False,
    )


def _by_leaf(schema: pa.Schema, values: dict[str, Any]) -> dict[str, Any]:
    """By the name that Parquet gives a column; a list's values lie below it."""
    return {
        f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name: value
        for name, value in values.items()
    }


def _worth_compressing(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """Photographs are not: decided by a try on the first rows. Everything else is."""
    if not pa.types.is_fixed_size_binary(kind) or not len(column):
        return True
    sample = column.slice(0, SAMPLE_ROWS).combine_chunks()
    start = sample.offset * kind.byte_width
    data = sample.buffers()[1].slice(start, len(sample) * kind.byte_width)
    packed = pa.Codec("zstd", compression_level=1).compress(data)
    return packed.size < (1.0 - WORTH_COMPRESSING) * data.size


def _require_dimensions(spec: TableSpec, rows: pa.Table) -> None:
    for field in spec.file_schema:
        dimension = (field.metadata or {}).get(b"dimension")
        if dimension is None:
            continue
        lengths = pc.unique(pc.list_value_length(rows[field.name])).to_pylist()  # type: ignore[attr-defined]
        # Only where a family may have no such vector is a null one of the right length.
        allowed = {int(dimension)} | ({None} if field.name == "embedding_log_var" else set())
        assert set(lengths) <= allowed, f"{field.name}: lengths {lengths}"


class _Statistics:
    """Delta's per-file statistics for the columns that queries filter by."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.rows = 0
        self.nulls = dict.fromkeys(columns, 0)
        self.ends: dict[str, tuple[Any, Any] | None] = {}

    def add(self, rows: pa.Table) -> None:
        self.rows += rows.num_rows
        for name in self.nulls:
            column = rows[name]
            self.nulls[name] += column.null_count
            extremes = pc.min_max(column).as_py()  # type: ignore[attr-defined]
            low, high = extremes["min"], extremes["max"]
            if low is None:
                continue
            bounds = self.ends.get(name, (low, high))
            # JSON carries no NaN, and a bound that is not finite helps no reader.
            if bounds is None or not (_finite(low) and _finite(high)):
                self.ends[name] = None
            else:
                self.ends[name] = (min(low, bounds[0]), max(high, bounds[1]))

    def to_dict(self) -> dict[str, Any]:
        known = {name: ends for name, ends in self.ends.items() if ends is not None}
        return {
            "numRecords": self.rows,
            "minValues": {name: ends[0] for name, ends in known.items()},
            "maxValues": {name: ends[1] for name, ends in known.items()},
            "nullCount": self.nulls,
        }


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def read_shard(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard's rows; partition columns are not inside the file."""
    return _with_file(uri, lambda file: file.read(columns=_listed(columns)))


def read_digests(uri: str) -> np.ndarray:
    """Of a shard's image ids, as jobs.tables.image_ids has them; never all ids at once."""

    def read(file: pq.ParquetFile) -> np.ndarray:
        batches = file.iter_batches(DIGESTED, columns=["image_id"])
        return np.concatenate([np.zeros(0, HALVES), *(digests(b["image_id"]) for b in batches)])

    return _with_file(uri, read)


def read_row_group(uri: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of one row group of a shard; its footer is read once a process."""
    return _with_file(
        uri, lambda file: file.read_row_group(index, columns=_listed(columns)), _footer(uri)
    )


def row_groups(uri: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield a shard's rows, a row group at a time."""
    for index in range(_footer(uri).num_row_groups):
        yield read_row_group(uri, index, columns)


def read_span(uri: str, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a shard from one to another; other row groups are not read."""
    footer, first, parts = _footer(uri), 0, []
    for index in range(footer.num_row_groups):
        count = footer.row_group(index).num_rows
        low, high = max(start - first, 0), min(stop - first, count)
        if low < high:
            parts.append(read_row_group(uri, index, columns).slice(low, high - low))
        first += count
    return pa.concat_tables(parts)


def shard_metadata(uri: str) -> dict[str, str]:
    """Return the key-value metadata of a shard's footer."""
    found = _with_file(uri, lambda file: file.metadata.metadata or {})
    return {key.decode(): value.decode() for key, value in found.items()}


# A shard never changes under its name.
@functools.lru_cache(maxsize=FOOTERS)
def _footer(uri: str) -> pq.FileMetaData:
    return _with_file(uri, lambda file: file.metadata)


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return list(columns) if columns is not None else None


def _with_file(
    uri: str, action: Callable[[pq.ParquetFile], T], footer: pq.FileMetaData | None = None
) -> T:
    name = local_name(uri)

    def run() -> T:
        if name is not None:
            # Arrow's own file: reads without holding up other threads.
            with pq.ParquetFile(name, metadata=footer) as file:
                return action(file)
        with open_input(uri) as opened:
            return action(pq.ParquetFile(opened, metadata=footer))

    return attempt(run, uri, "read")
