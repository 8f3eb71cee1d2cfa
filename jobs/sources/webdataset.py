"""WebDataset tars as a source: an image with its `.cls`, `.txt` and `.json` is a row.

Members with the same path up to the first dot of their name belong together, and follow each
other. Nothing is ever extracted. Reading streams, so a compressed tar may claim what it likes: a
member costs memory only up to the bound, an archive only what it holds.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Any, BinaryIO

import pyarrow as pa

from jobs.errors import RejectedInput
from jobs.sources.base import (
    MAX_BYTES,
    FileProbe,
    FileRange,
    Image,
    Layout,
    SourceBatch,
    hive_arrays,
    hive_columns,
)
from jobs.sources.format_names import FORMATS
from jobs.sources.listing import SourceFile
from jobs.sources.pinned_read import open_pinned

LOOKS_INSIDE = False
BATCH_ROWS = 256
BATCH_BYTES = 32 << 20
SIDE_BYTES = 1 << 20  # of a .cls, .txt or .json
# A gzip stream rarely shrinks images at all; one that grows a thousand-fold is a bomb.
MAX_EXPANSION = 200
SLACK_BYTES = 64 << 20

COLUMNS = {
    "cls": ("label", pa.int64()),
    "txt": ("text", pa.string()),
    "json": ("json", pa.string()),
}


def look(file: SourceFile, layout: Layout) -> FileProbe:
    """Every archive has the same columns, null where a sample has no such member."""
    fields = [pa.field(name, kind) for name, kind in COLUMNS.values()]
    own = {field.name for field in fields}
    fields += [pa.field(key, pa.string()) for key in hive_columns(file.uri) if key not in own]
    return FileProbe(rows=None, passthrough=pa.schema(fields))


def read(part: FileRange, layout: Layout, columns: list[str]) -> Iterator[SourceBatch]:
    """Yield the samples of an archive in its order."""
    batch, size, row = [], 0, 0
    for sample in _samples(part):
        batch.append(sample)
        size += len(sample.image) if isinstance(sample.image, bytes) else 0
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield _source_batch(part, row, batch)
            row, batch, size = row + len(batch), [], 0
    if batch:
        yield _source_batch(part, row, batch)
    elif not row:
        raise RejectedInput("no_images", "the archive has no image")


@dataclasses.dataclass
class _Sample:
    key: str
    member: str | None = None
    image: Image = None
    side: dict[str, Any] = dataclasses.field(default_factory=dict)


def _source_batch(part: FileRange, start: int, samples: list[_Sample]) -> SourceBatch:
    brought = {
        name: pa.array([sample.side.get(ending) for sample in samples], kind)
        for ending, (name, kind) in COLUMNS.items()
    }
    brought = hive_arrays(part.uri, len(samples)) | brought
    return SourceBatch.of(
        part,
        rows=range(start, start + len(samples)),
        images=[sample.image for sample in samples],
        passthrough=pa.table(brought),
        members=[_text(sample.member or sample.key) for sample in samples],
    )


def _samples(part: FileRange) -> Iterator[_Sample]:
    current: _Sample | None = None
    with open_pinned(part.uri, part.etag) as file:
        for member, stream in _members(part, file):
            key, ending = _key_and_ending(member.name)
            if current is None or key != current.key:
                if current is not None and current.member is not None:
                    yield current
                current = _Sample(key)
            _take(current, member, ending, stream)
        if current is not None and current.member is not None:
            yield current


def _key_and_ending(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _take(sample: _Sample, member: tarfile.TarInfo, ending: str, stream: IO[bytes]) -> None:
    last = ending.rsplit(".", 1)[-1]
    if last in FORMATS["files"].endings:
        if sample.member is not None:
            return  # a second picture of the sample, such as a mask: the first one counts
        sample.member = member.name
        sample.image = _image(member, stream, sample.image)
    elif last in COLUMNS and last not in sample.side:
        try:
            sample.side[last] = _side(last, member, stream)
        except RejectedInput as refusal:
            sample.image = refusal


def _image(member: tarfile.TarInfo, stream: IO[bytes], judged: Image) -> Image:
    if isinstance(judged, RejectedInput):
        return judged
    if _climbs(member.name):
        return RejectedInput("unsafe_path", f"the member's path {member.name!r} leaves the archive")
    if member.size > MAX_BYTES:
        return RejectedInput("too_many_bytes", f"{member.size} bytes, the bound is {MAX_BYTES}")
    return stream.read()


def _text(name: str) -> str:
    """Return a member's name as text: what is not UTF-8 comes as surrogates, which no table
    holds."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _climbs(name: str) -> bool:
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")


def _side(ending: str, member: tarfile.TarInfo, stream: IO[bytes]) -> Any:
    if member.size > SIDE_BYTES:
        raise RejectedInput(
            "schema", f"{member.name} has {member.size} bytes, the bound is {SIDE_BYTES}"
        )
    try:
        text = stream.read().decode("utf-8")
        if ending != "cls":
            return text
        number = int(text)
        if not -(2**63) <= number < 2**63:
            raise ValueError
        return number
    except ValueError as error:
        wanted = "a whole number" if ending == "cls" else "UTF-8 text"
        raise RejectedInput("schema", f"{member.name} is not {wanted}") from error


def _members(part: FileRange, file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Regular members with a stream of each. Raises RejectedInput where the archive is damaged."""
    packed = not part.uri.lower().endswith(".tar")
    source = _Unpacked(file, part.size) if packed else file
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_Header) as archive:
            for member in archive:
                # Links and devices are not read; hidden names are passed over, as in folders.
                base = member.name.rsplit("/", 1)[-1]
                if member.isreg() and not member.issparse() and not base.startswith("."):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield member, stream
                archive.members = []  # type: ignore[assignment]  # else it keeps every header
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = "truncated" if "end of" in str(error) or isinstance(error, EOFError) else "schema"
        raise RejectedInput(reason, f"{part.uri} is a damaged archive: {error}") from error


_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Header(tarfile.TarInfo):
    """A member whose absence is noticed: tarfile takes a broken or missing header for the end."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # What tarfile would hold in memory: long headers, and the holes of sparse members.
        if self.type in _HEADERS and self.size > SIDE_BYTES:
            raise ReadError(f"a header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise ReadError("sparse members are not read")
        return super()._proc_member(archive)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise  # the end mark
        except HeaderError as error:
            raise ReadError("unexpected end of data, or a broken header") from error


class _Unpacked(io.RawIOBase):
    """A gzip stream of bounded expansion."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self.left = MAX_EXPANSION * size + SLACK_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            data = self.gzip.read(size)
        except gzip.BadGzipFile as error:
            raise RejectedInput("schema", f"damaged gzip: {error}") from error
        self.left -= len(data)
        if self.left < 0:
            raise RejectedInput("too_many_bytes", f"unpacks to over {MAX_EXPANSION} times its size")
        return data
