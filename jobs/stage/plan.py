"""Planning of stage: units of a source while its listing comes in, and what has left it.

The first unit is there before the last file is listed. A unit is a run of neighbours in the order
of URIs: many small files, or a range of a large one.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from jobs.engine.plan import Unit, slices
from jobs.errors import InputError, RejectedInput
from jobs.lake.storage import attempt
from jobs.schemas.dataset import passthrough_of
from jobs.sources.base import FileProbe, FileRange, Layout, hive_columns
from jobs.sources.format_names import FormatName, recognise
from jobs.sources.listing import Scope, SourceFile, list_files
from jobs.sources.pinned_read import SourceChanged
from jobs.sources.registry import choose_format, format_of
from jobs.stage.payloads import ReadRanges
from jobs.stage.settings import StageSettings
from jobs.tables.delta import Snapshot

log = logging.getLogger("latentlake")

SHARD_BYTES = 128 << 20  # of staged pixels
MAX_ROWS = 100_000  # a unit, however small its images
MAX_SOURCE_BYTES = 1 << 30  # a unit
FIRST_FILES = 1000  # that a format is recognised by: a page of an S3 listing
LOOKS_AHEAD = 32

Pair = tuple[str, str]  # a source file's URI and etag
Looked = Iterator[tuple[SourceFile, FileProbe | RejectedInput]]


def known_files(sources: Snapshot | None) -> dict[str, str]:
    """Etag by URI of the source files whose rows are in the sources table now."""
    known: dict[str, str] = {}
    if sources is None:
        return known
    for _, rows in sources.read_each(["source_uri", "etag", "removed_night"]):
        live = rows.filter(pc.is_null(rows["removed_night"]))  # type: ignore[attr-defined]
        pairs = live.group_by(["source_uri", "etag"]).aggregate([])
        known.update(zip(pairs["source_uri"].to_pylist(), pairs["etag"].to_pylist(), strict=True))
    return known


class UnitStream:
    """The units of a source, once; `gone` and `passthrough` are known when they have ended.

    passthrough is known from the first unit on.
    """

    def __init__(
        self,
        settings: StageSettings,
        fingerprint: str,
        sources: Snapshot | None,
        images: Snapshot | None,
    ) -> None:
        self.settings = settings
        self.fingerprint = fingerprint
        self.layout = Layout(settings.image_column, settings.array_shape)
        self.known = known_files(sources)
        self.images = images
        self.passthrough = passthrough_of(images.schema) if images is not None else None
        self.gone: list[Pair] = []
        self.unread: set[str] = set()
        self.rows_per_unit = settings.rows_per_unit or shard_rows(settings.image_shape)

    def __iter__(self) -> Iterator[Unit]:
        files = list_files(self.settings.source)
        first = list(itertools.islice(files, FIRST_FILES))
        fmt = self.settings.format or self._recognised(first)
        still: dict[str, str] = {}
        new = self._new(itertools.chain(first, files), fmt, still)
        hive = list(dict.fromkeys(name for file in first for name in hive_columns(file.uri)))
        parts = self._parts(self._looked(new, fmt), fmt, hive)
        yield from _grouped(parts, self.rows_per_unit, self.fingerprint)
        scope = Scope.of(self.settings.source)
        self.gone = sorted(
            (uri, etag)
            for uri, etag in self.known.items()
            if still.get(uri) != etag and scope.has(uri) and uri not in self.unread
        )

    def _recognised(self, first: list[SourceFile]) -> FormatName:
        if not first:
            scope = Scope.of(self.settings.source)
            if not any(map(scope.has, self.known)):
                raise InputError(f"the source {self.settings.source} is empty: it has no files")
            return "parquet"  # nothing to read; what was there has gone
        fmt = choose_format(first, self.settings.source)
        others = sum(recognise(file.uri) != fmt for file in first)
        if others:
            log.info(
                "stage %s: reading the source as %s; %d of its first %d files are something else "
                "and left alone (--format says otherwise)",
                self.settings.dataset,
                fmt,
                others,
                len(first),
            )
        return fmt

    def _new(
        self, files: Iterable[SourceFile], fmt: FormatName, still: dict[str, str]
    ) -> Iterator[SourceFile]:
        """Files that the sources table does not know as they are; the others go to `still`."""
        single = Scope.of(self.settings.source).uri
        for file in files:
            if self.known.get(file.uri) == file.etag:
                still[file.uri] = file.etag
            elif file.uri in self.unread:
                continue
            elif recognise(file.uri) == fmt or file.uri == single:
                yield file
            elif file.uri in self.known:
                still[file.uri] = self.known[file.uri]  # of another format: left alone

    def _looked(self, files: Iterator[SourceFile], fmt: FormatName) -> Looked:
        """Each file with what a look into it tells, a few looks ahead of their use."""
        source_format = format_of(fmt)
        look = source_format.look
        if not source_format.LOOKS_INSIDE:
            plain: FileProbe | None = None
            for file in files:
                if "=" in file.uri or plain is None:
                    seen = look(file, self.layout)
                    plain = plain if "=" in file.uri else seen
                    yield file, seen
                else:
                    yield file, plain
            return

        def judged(file: SourceFile) -> FileProbe | RejectedInput | SourceChanged:
            try:
                return attempt(lambda: look(file, self.layout), file.uri, "read")
            except (RejectedInput, SourceChanged) as verdict:
                return verdict

        waiting: deque[tuple[SourceFile, Future[FileProbe | RejectedInput | SourceChanged]]] = (
            deque()
        )
        with ThreadPoolExecutor(LOOKS_AHEAD // 2) as pool:
            while True:
                for file in itertools.islice(files, LOOKS_AHEAD - len(waiting)):
                    waiting.append((file, pool.submit(judged, file)))
                if not waiting:
                    return
                file, future = waiting.popleft()
                verdict = future.result()
                if isinstance(verdict, SourceChanged):
                    log.info("%s; left for the next run", verdict)
                    self.unread.add(file.uri)
                else:
                    yield file, verdict

    def _parts(self, looked: Looked, fmt: FormatName, hive: list[str]) -> Iterator[FileRange]:
        """Rows of files, cut where a file has more than a unit's."""
        rows = 0
        if self.passthrough is None:
            looked = self._decided(looked, hive)
        for file, verdict in looked:
            if isinstance(verdict, FileProbe) and len(verdict.passthrough):
                verdict = self._same_columns(verdict) or verdict
            if isinstance(verdict, RejectedInput):
                yield self._part(file, fmt, refused=(verdict.reason, verdict.message))
            elif verdict.rows is None:
                rows += 1
                yield self._part(file, fmt)
            else:
                rows += verdict.rows
                for start, stop in cuts(verdict.rows, self.rows_per_unit, verdict.whole):
                    column = verdict.image_column
                    yield self._part(file, fmt, start=start, stop=stop, image_column=column)
        if self.images is None and not rows and not self.known:
            raise InputError(f"the source {self.settings.source} is empty: no file has a row")

    def _decided(self, looked: Looked, hive: list[str]) -> Looked:
        """Decides the passthrough columns, those of the first files and folders together.

        Raises InputError where no file can be read at all.
        """
        first: list[tuple[SourceFile, FileProbe | RejectedInput]] = []
        for file, verdict in looked:
            first.append((file, verdict))
            if len(first) >= LOOKS_AHEAD and any(isinstance(v, FileProbe) for _, v in first):
                break
        good = [verdict for _, verdict in first if isinstance(verdict, FileProbe)]
        if good:
            fields = {f.name: f for look in reversed(good) for f in look.passthrough}
            names = [f.name for look in good for f in look.passthrough]
            lower = {name.casefold() for name in names}
            schema = pa.schema([fields[name] for name in dict.fromkeys(names)])
            for name in hive:
                if name.casefold() not in lower:
                    schema = schema.append(pa.field(name, pa.string()))
            self.passthrough = schema
        elif first:
            file, verdict = first[0]
            assert isinstance(verdict, RejectedInput)
            raise InputError(f"{file.uri}: {verdict.message}")
        return itertools.chain(first, looked)

    def _part(self, file: SourceFile, fmt: FormatName, **given) -> FileRange:
        return FileRange(
            file.uri, file.etag, file.size, fmt, replaces=file.uri in self.known, **given
        )

    def _same_columns(self, look: FileProbe) -> RejectedInput | None:
        assert self.passthrough is not None
        for field in look.passthrough:
            at = self.passthrough.get_field_index(field.name)
            if at >= 0 and self.passthrough.field(at).type != field.type:
                return RejectedInput(
                    "schema",
                    f"column {field.name!r} is {field.type}, in the dataset it is "
                    f"{self.passthrough.field(at).type}; write one type, or stage into another "
                    "dataset",
                )
        return None


def cuts(rows: int, rows_per_unit: int, whole: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """[start, stop) ranges that cover `rows` once, of even length but for what is kept whole."""
    if rows <= rows_per_unit:
        return [(0, rows)] if rows else []
    bounds = list(whole)
    ends: list[int] = []
    for _, stop in slices(rows, rows_per_unit):
        inside = (last for first, last in bounds if first < stop < last)
        end = next(inside, stop)
        if not ends or end > ends[-1]:
            ends.append(end)
    return list(zip([0, *ends], ends, strict=False))


def shard_rows(image_shape: tuple[int, int, int]) -> int:
    """Rows of a shard of SHARD_BYTES, within what a unit should hold."""
    return max(1, min(MAX_ROWS, SHARD_BYTES // math.prod(image_shape)))


def _grouped(parts: Iterable[FileRange], rows_per_unit: int, fingerprint: str) -> Iterator[Unit]:
    """Neighbouring parts in one unit, up to its rows and bytes; every part in exactly one."""
    group: list[FileRange] = []
    rows = size = 0
    for part in parts:
        part_rows = 1 if part.stop is None else part.stop - part.start
        # Of a large file, a unit reads about its share.
        part_bytes = part.size if part_rows < rows_per_unit else 0
        if group and (rows + part_rows > rows_per_unit or size + part_bytes > MAX_SOURCE_BYTES):
            yield _unit(group, fingerprint)
            group, rows, size = [], 0, 0
        group.append(part)
        rows, size = rows + part_rows, size + part_bytes
    if group:
        yield _unit(group, fingerprint)


def _unit(parts: list[FileRange], fingerprint: str) -> Unit:
    return ReadRanges(parts).unit(fingerprint)
