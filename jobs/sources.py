"""Sources: the user's images as they lie, file by file. Parquet with encoded bytes, today."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, LatentlakeError
from jobs.schema import images_spec
from jobs.storage import attempt, explain, filesystem, local_path, open_input, resolve_uri

IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "png", "data")
BATCH_ROWS = 512

log = logging.getLogger("latentlake")


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source, pinned by its etag (size and time where the store has none)."""

    uri: str
    etag: str


@dataclasses.dataclass(frozen=True)
class SourceShape:
    """What a Parquet footer tells: rows, the image column, and the columns to pass through."""

    rows: int
    image_column: str
    passthrough: pa.Schema


def list_source(source: str) -> list[SourceFile]:
    """The Parquet files of a source (a file, a folder, or a glob pattern), sorted by URI.

    Raises InputError where there is none.
    """
    uri = resolve_uri(source)
    fs, path = filesystem(uri)

    def action() -> dict[Any, Any]:
        if any(mark in path for mark in "*?["):
            found = fs.glob(path, detail=True)
            assert isinstance(found, dict)
            return found
        info = fs.info(path)
        if info["type"] == "file":
            return {str(info["name"]): info}
        inside = fs.find(path, detail=True)
        assert isinstance(inside, dict)
        return {n: i for n, i in inside.items() if str(n).endswith((".parquet", ".pq"))}

    try:
        entries = attempt(action, uri, "read the source")
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputError(f"the source {source} does not exist") from error
        raise
    files = [
        SourceFile(_file_uri(uri, name), _etag(info))
        for name, info in entries.items()
        if info["type"] == "file"
    ]
    if not files:
        raise InputError(f"the source {source} has no Parquet files (.parquet, .pq)")
    return sorted(files, key=lambda file: file.uri)


def _file_uri(base: str, name: str) -> str:
    return Path(name).as_uri() if local_path(base) is not None else f"s3://{name}"


def _etag(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    return f"{info['size']}-{info.get('mtime', 0):.6f}"


def current_etag(uri: str) -> str | None:
    """The etag of a file as it is now; None where it is gone."""
    fs, path = filesystem(uri)

    def action() -> str | None:
        try:
            return _etag(fs.info(path))
        except FileNotFoundError:
            return None

    return attempt(action, uri, "read")


def read_shape(uri: str, image_column: str | None) -> SourceShape:
    """Raises InputError where the file is no Parquet or has no image column."""

    def action() -> tuple[pa.Schema, int]:
        with open_input(uri) as file:
            try:
                parquet = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise InputError(f"{uri} is not a readable Parquet file: {error}") from error
            return parquet.schema_arrow, parquet.metadata.num_rows

    schema, rows = attempt(action, uri, "read")
    column = _image_column(schema, image_column, uri)
    return SourceShape(rows, column, _passthrough(schema, column, uri))


def _image_column(schema: pa.Schema, wanted: str | None, uri: str) -> str:
    candidates = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    if wanted is not None:
        if wanted in candidates:
            return wanted
    else:
        named = [name for name in IMAGE_COLUMNS if name in candidates]
        if named or len(candidates) == 1:
            return (named or candidates)[0]
    listed = ", ".join(f"{f.name}: {f.type}" for f in schema)
    asked = f"no image column {wanted!r}" if wanted else "no image column to be recognised"
    raise InputError(
        f"{uri} has {asked}; name one of struct<bytes, …> or binary type with --image-column. "
        f"Its columns: {listed}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that a passthrough column is kept in: one that Delta and every reader share.

    None where there is none: nested values, and times without a zone.
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_unsigned_integer(kind):
        return None if pa.types.is_uint64(kind) else pa.int64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC") if kind.tz is not None else None
    kept = (
        pa.types.is_boolean,
        pa.types.is_floating,
        pa.types.is_signed_integer,
        pa.types.is_date32,
    )
    return kind if any(is_kind(kind) for is_kind in kept) else None


RESERVED = frozenset((*images_spec((1, 1, 1), pa.schema([])).schema.names, "dataset", "model"))


def _passthrough(schema: pa.Schema, image_column: str, uri: str) -> pa.Schema:
    """The columns that go along with the images; those that cannot are named in the log."""
    kept, left = [], []
    for field in schema:
        if field.name == image_column:
            continue
        kind = None if field.name in RESERVED else plain_type(field.type)
        if kind is None:
            left.append(f"{field.name}: {field.type}")
        else:
            kept.append(pa.field(field.name, kind))
    if left:
        log.info("%s: columns not passed through: %s", uri, ", ".join(left))
    return pa.schema(kept)


@dataclasses.dataclass(frozen=True)
class SourceBatch:
    """Consecutive rows of one file: `start` is the first one's number; bytes may be None."""

    start: int
    data: list[bytes | None]
    passthrough: pa.Table


def read_rows(
    uri: str, start: int, stop: int, image_column: str, passthrough: list[str]
) -> Iterator[SourceBatch]:
    """Rows [start, stop) of a file in batches, without passthrough columns that it lacks.

    Raises InputError where the file is damaged, StorageError where it could not be read; what
    was yielded before is then to be thrown away.
    """
    try:
        yield from _rows(uri, start, stop, image_column, passthrough)
    except LatentlakeError:
        raise
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri} is damaged: {error}") from error
    except Exception as error:
        # Whatever the storage client raises in the middle of a file.
        raise explain(error, uri, "read") from error


def _rows(
    uri: str, start: int, stop: int, image_column: str, passthrough: list[str]
) -> Iterator[SourceBatch]:
    with open_input(uri) as file:
        parquet = pq.ParquetFile(file)
        present = [name for name in passthrough if name in parquet.schema_arrow.names]
        groups, first = _row_groups(parquet.metadata, start, stop)
        position = first
        for batch in parquet.iter_batches(
            batch_size=BATCH_ROWS, row_groups=groups, columns=[image_column, *present]
        ):
            low, high = max(start, position), min(stop, position + batch.num_rows)
            if low < high:
                piece = batch.slice(low - position, high - low)
                yield SourceBatch(
                    low,
                    _bytes(piece.column(image_column)),
                    pa.Table.from_batches([piece]).select(present),
                )
            position += batch.num_rows


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows [start, stop), and the number of their first row."""
    groups, first, position = [], 0, 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if position < stop and position + rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += rows
    return groups, first


def _bytes(column: pa.Array) -> list[bytes | None]:
    if pa.types.is_struct(column.type):
        nulls = column.is_null().to_pylist()
        inner = column.field("bytes").to_pylist()
        return [None if null else value for null, value in zip(nulls, inner, strict=True)]
    return column.to_pylist()
