"""Sources: the user's images as they lie. What every format offers, and how one is recognised.

A format lists nothing and plans nothing: it looks into a file, and reads rows of it in batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote

import pyarrow as pa

from jobs.errors import RejectedInput
from jobs.imaging.pixel_arrays import Pixels
from jobs.schemas.dataset import RESERVED
from jobs.sources.format_names import FormatName
from jobs.sources.listing import SourceFile

MAX_BYTES = 512 << 20  # of one encoded image


WHOLE_FILE = -1  # the row number of a refusal that is about a file as such


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a user says about a source; None: found out."""

    image_column: str | None = None
    array_shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class FileProbe:
    """What a look into a file tells. rows: None where only reading it to the end would tell.

    whole: ranges of rows that are read in one go, and not to be cut.
    """

    rows: int | None
    passthrough: pa.Schema
    image_column: str | None = None
    whole: tuple[tuple[int, int], ...] = ()


Image = bytes | Pixels | RejectedInput | None


@dataclasses.dataclass(frozen=True)
class SourceBatch:
    """Rows of a source. uris, etags, rows: where each was read. passthrough: columns as they lie.

    members: names inside the file, for archives.
    """

    uris: list[str]
    etags: list[str]
    rows: Sequence[int]
    images: list[Image]
    passthrough: pa.Table
    members: list[str | None] | None = None

    def slice(self, start: int, stop: int) -> SourceBatch:
        """Its rows [start, stop)."""
        return SourceBatch(
            self.uris[start:stop],
            self.etags[start:stop],
            self.rows[start:stop],
            self.images[start:stop],
            self.passthrough.slice(start, stop - start),
            self.members[start:stop] if self.members is not None else None,
        )

    @classmethod
    def of(
        cls,
        part: FileRange,
        rows: Sequence[int],
        images: list[Image],
        passthrough: pa.Table,
        members: list[str | None] | None = None,
    ) -> SourceBatch:
        """Rows of one file."""
        count = len(images)
        uris, etags = [part.uri] * count, [part.etag] * count
        return cls(uris, etags, rows, images, passthrough, members)


@dataclasses.dataclass(frozen=True)
class FileRange:
    """The rows [start, stop) of a file that one unit reads; stop None: to its end.

    replaces: the sources table knows another version of the file. refused: why the file as a
    whole cannot be read, (reason, message).
    """

    uri: str
    etag: str
    size: int
    format: FormatName
    start: int = 0
    stop: int | None = None
    image_column: str | None = None
    replaces: bool = False
    refused: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without those that are as usual."""
        # A source may have millions of them: dataclasses.asdict takes twenty times as long.
        given = vars(self).items()
        return {key: value for key, value in given if value is not None and value is not False}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> FileRange:
        """Read what `to_json` gave."""
        refused = raw.get("refused")
        return cls(**{**raw, "refused": tuple(refused) if refused else None})


class Format(Protocol):
    """One way in which images lie: a module. Raises RejectedInput, SourceChanged or StorageError.

    LOOKS_INSIDE: whether a look opens the file; else its name tells all, and the same for all
    names without columns in them.
    """

    LOOKS_INSIDE: bool

    def look(self, file: SourceFile, layout: Layout) -> FileProbe:
        """Rows, columns and the image column of a file."""
        ...

    def read(self, part: FileRange, layout: Layout, columns: list[str]) -> Iterator[SourceBatch]:
        """Rows of a file in batches of bounded size; `columns` it lacks are left out.

        After RejectedInput or SourceChanged, what was yielded before is to be thrown away.
        """
        ...


@runtime_checkable
class ReadsMany(Protocol):
    """A format whose files are one row each, so that many are read together."""

    def read_many(self, parts: Sequence[FileRange]) -> Iterator[SourceBatch | list[FileRange]]:
        """Rows of files in order; between them, files that have changed since they were listed.

        A file that is bad is a row with its RejectedInput, and costs no other one.
        """
        ...


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that a passthrough column is kept in: one that Delta and every reader share.

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


def hive_columns(uri: str) -> dict[str, str]:
    """Columns in the folders of a URI, `…/key=value/…`; text, as a folder's name is."""
    found = {}
    for folder in uri.split("/")[:-1]:
        key, mark, value = folder.partition("=")
        if mark and key.isidentifier() and key.casefold() not in RESERVED:
            found[key] = unquote(value)
    return found


def hive_arrays(uri: str, count: int) -> dict[str, pa.Array]:
    """Return the hive columns of a file for `count` rows."""
    return {key: pa.repeat(value, count) for key, value in hive_columns(uri).items()}
