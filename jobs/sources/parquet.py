"""Parquet as a source: encoded images or pixel arrays in a column, which may be nested."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import LatentlakeError, RejectedInput
from jobs.imaging.pixel_arrays import NotPixels, is_array_type, needs_shape, pixels_of
from jobs.lake.storage_errors import explain
from jobs.schemas.dataset import RESERVED
from jobs.sources.base import (
    FileProbe,
    FileRange,
    Image,
    Layout,
    SourceBatch,
    hive_arrays,
    hive_columns,
    plain_type,
)
from jobs.sources.listing import SourceFile
from jobs.sources.pinned_read import open_pinned

LOOKS_INSIDE = True
IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "png", "data", "pixels")
BATCH_ROWS = 512
BATCH_BYTES = 32 << 20
LARGE_GROUP_BYTES = 64 << 20
# A footer is trusted only within what its file can hold.
MAX_ROWS_A_BYTE = 64
MAX_EXPANSION = 1000

log = logging.getLogger("latentlake")


def look(file: SourceFile, layout: Layout) -> FileProbe:
    """From the footer alone."""
    with _opened(file.uri, file.etag) as parquet:
        _require_honest(parquet.metadata, file.size)
        schema = parquet.schema_arrow
        column = _image_column(schema, layout)
        return FileProbe(
            rows=parquet.metadata.num_rows,
            passthrough=_passthrough(schema, column, file.uri),
            image_column=column,
            whole=_large_groups(parquet.metadata),
        )


def read(part: FileRange, layout: Layout, columns: list[str]) -> Iterator[SourceBatch]:
    """Rows [start, stop) of the file."""
    assert part.image_column is not None
    assert part.stop is not None
    with _opened(part.uri, part.etag) as parquet:
        schema = parquet.schema_arrow
        inside = [name for name in columns if name in schema.names]
        groups, position = _row_groups(parquet.metadata, part.start, part.stop)
        batches = parquet.iter_batches(
            batch_size=_batch_rows(parquet.metadata, groups),
            row_groups=groups,
            columns=[_leaf(schema, part.image_column), *inside],
        )
        for batch in batches:
            low, high = max(part.start, position), min(part.stop, position + batch.num_rows)
            if low < high:
                piece = batch.slice(low - position, high - low)
                yield _source_batch(piece, low, part, layout, inside)
            position += batch.num_rows
            if position >= part.stop:
                break
        if position < part.stop:
            raise RejectedInput(
                "schema", f"the footer claims rows up to {part.stop}, there are {position}"
            )


def _source_batch(
    piece: pa.RecordBatch, start: int, part: FileRange, layout: Layout, inside: list[str]
) -> SourceBatch:
    assert part.image_column is not None
    brought = {name: piece.column(name) for name in inside}
    for name, values in hive_arrays(part.uri, piece.num_rows).items():
        brought.setdefault(name, values)
    images = _images(_reach(piece, part.image_column), layout)
    rows = range(start, start + piece.num_rows)
    return SourceBatch.of(part, rows, images, _table(brought, piece.num_rows))


def _table(columns: dict[str, pa.Array], rows: int) -> pa.Table:
    # A table without columns forgets how many rows it has.
    return pa.table(columns) if columns else pa.table({"": pa.nulls(rows)}).select([])


class _opened:
    """A pinned Parquet file; what is wrong with its bytes comes out as RejectedInput."""

    def __init__(self, uri: str, etag: str) -> None:
        self.uri = uri
        self.opened = open_pinned(uri, etag)

    def __enter__(self) -> pq.ParquetFile:
        file = self.opened.__enter__()
        try:
            return pq.ParquetFile(file, buffer_size=1 << 20)
        except BaseException as error:
            self._leave(error)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        if error is None:
            self.opened.__exit__(None, None, None)
            return
        if not self.opened.__exit__(type(error), error, error.__traceback__):
            _raise_told(error, self.uri)


def _raise_told(error: BaseException, uri: str) -> None:
    if isinstance(error, LatentlakeError | RejectedInput) or not isinstance(error, Exception):
        return
    text = " ".join(str(error).split())[:300]
    # Arrow's own complaints about bytes carry no errno; those of a disk or a client do.
    if isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and not error.errno):
        raise RejectedInput("schema", f"{uri} is not a readable Parquet file: {text}") from error
    raise explain(error, uri, "read") from error


def _require_honest(metadata: Any, size: int) -> None:
    """Raise RejectedInput where the footer claims more than the file can hold."""
    rows = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        rows += group.num_rows
        for column in range(group.num_columns):
            chunk = group.column(column)
            start = min(
                o for o in (chunk.data_page_offset, chunk.dictionary_page_offset or size) if o
            )
            end = start + chunk.total_compressed_size
            lies = (
                group.num_rows < 0
                or chunk.total_compressed_size < 0
                or not 0 < start <= end <= size
                or chunk.total_uncompressed_size
                > MAX_EXPANSION * max(chunk.total_compressed_size, 1)
            )
            if lies:
                raise RejectedInput(
                    "schema", f"the footer's row group {index} does not fit the file"
                )
    if rows != metadata.num_rows or rows > MAX_ROWS_A_BYTE * size:
        raise RejectedInput(
            "schema", f"the footer claims {metadata.num_rows} rows, its row groups hold {rows}"
        )


def _batch_rows(metadata: Any, groups: list[int]) -> int:
    """Rows a batch, so that no batch is much larger than BATCH_BYTES.

    A value of a dictionary counts once in the sizes and comes back in every row that has it: each
    row may then be as large as the dictionary.
    """
    rows = sum(metadata.row_group(g).num_rows for g in groups)
    size = sum(metadata.row_group(g).total_byte_size for g in groups)
    largest = [size // max(rows, 1), 1]
    for index in groups:
        group = metadata.row_group(index)
        for chunk in (group.column(i) for i in range(group.num_columns)):
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                # As it lies; packed, it may be larger by what compression saves of the chunk.
                packed = max(0, chunk.data_page_offset - chunk.dictionary_page_offset)
                grows = chunk.total_uncompressed_size / max(chunk.total_compressed_size, 1)
                largest.append(int(packed * grows) // 2)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(largest)))


def _large_groups(metadata: Any) -> tuple[tuple[int, int], ...]:
    """First and last row of the row groups that are too large to be read twice."""
    found, position = [], 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.total_byte_size > LARGE_GROUP_BYTES:
            found.append((position, position + group.num_rows))
        position += group.num_rows
    return tuple(found)


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold rows [start, stop), and the number of their first row."""
    groups, first, position = [], 0, 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if position < stop and position + rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += rows
    return groups, first


def _image_column(schema: pa.Schema, layout: Layout) -> str:
    """Return the image column, a dotted name where it is nested.

    Raises RejectedInput, which lists the columns.
    """
    wanted = layout.image_column
    if wanted is not None:
        kind = _type_at(schema, wanted)
        if kind is not None and (_holds_bytes(kind) or is_array_type(kind)):
            _require_shape(wanted, kind, layout)
            return wanted
    else:
        once = [f for f in schema if schema.names.count(f.name) == 1]
        encoded = [f.name for f in once if _holds_bytes(f.type)]
        named = [name for name in IMAGE_COLUMNS if name in encoded]
        if named or len(encoded) == 1:
            return (named or encoded)[0]
        arrays = [f.name for f in once if is_array_type(f.type)]
        named = [name for name in IMAGE_COLUMNS if name in arrays]
        if not encoded and (named or len(arrays) == 1):
            found = (named or arrays)[0]
            _require_shape(found, schema.field(found).type, layout)
            return found
    listed = ", ".join(f"{f.name}: {f.type}" for f in schema)
    problem = f"no image column {wanted!r}" if wanted else "no image column to be recognised"
    raise RejectedInput(
        "schema",
        f"{problem}; name one of struct<bytes, …>, binary or pixel type with --image-column "
        f"(nested ones as a.b). Its columns: {listed}",
    )


def _require_shape(name: str, kind: pa.DataType, layout: Layout) -> None:
    if not _holds_bytes(kind) and needs_shape(kind) and layout.array_shape is None:
        raise RejectedInput(
            "schema",
            f"column {name!r} is {kind}: pixels without height and width; name them with "
            "--array-shape HxWxC",
        )


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, by dotted name; a column whose own name has dots goes first."""
    if schema.names.count(name) == 1:
        return schema.field(name).type
    head, _, rest = name.partition(".")
    if schema.names.count(head) != 1:
        return None
    kind = schema.field(head).type
    for part in rest.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _leaf(schema: pa.Schema, name: str) -> str:
    """Return what to read for an image column: of a struct, its bytes only."""
    kind = _type_at(schema, name)
    assert kind is not None
    return f"{name}.bytes" if pa.types.is_struct(kind) else name


def _reach(piece: pa.RecordBatch, name: str) -> pa.Array:
    """Return the image column's values, null where any struct around them is."""
    if name in piece.schema.names:
        column = piece.column(name)
    else:
        head, *rest = name.split(".")
        column = piece.column(head)
        for part in rest:
            column = column.flatten()[column.type.get_field_index(part)]
    if pa.types.is_struct(column.type):
        # flatten carries the struct's own nulls down.
        column = column.flatten()[column.type.get_field_index("bytes")]
    return column


def _images(column: pa.Array, layout: Layout) -> list[Image]:
    if _is_binary(column.type):
        return column.to_pylist()
    found: list[Image] = []
    for value in pixels_of(column, layout.array_shape):
        found.append(RejectedInput("schema", str(value)) if isinstance(value, NotPixels) else value)
    return found


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _passthrough(schema: pa.Schema, image_column: str, uri: str) -> pa.Schema:
    """Return the columns that go along with the images; those that cannot are named in the log."""
    kept, left = [], []
    # To Delta, names that differ in their case only are the same.
    names = Counter(name.casefold() for name in schema.names)
    for field in schema:
        if field.name in (image_column, image_column.split(".")[0]):
            continue
        usable = names[field.name.casefold()] == 1 and field.name.casefold() not in RESERVED
        kind = plain_type(field.type) if usable else None
        if kind is None:
            left.append(f"{field.name}: {field.type}")
        else:
            kept.append(pa.field(field.name, kind))
    if left:
        log.info("%s: columns not passed through: %s", uri, ", ".join(left))
    kept += [pa.field(k, pa.string()) for k in hive_columns(uri) if not names[k.casefold()]]
    return pa.schema(kept)
