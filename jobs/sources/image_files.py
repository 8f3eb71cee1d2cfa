"""Folders of image files as a source: every file is a row; folders like `key=value` are columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from jobs.errors import RejectedInput
from jobs.lake.storage import local_path
from jobs.sources.base import (
    MAX_BYTES,
    FileProbe,
    FileRange,
    Image,
    Layout,
    SourceBatch,
    hive_columns,
)
from jobs.sources.listing import SourceFile
from jobs.sources.pinned_read import SourceChanged, read_pinned

LOOKS_INSIDE = False
THREADS = 16  # requests at a time, where a request is a journey
AHEAD_BYTES = 64 << 20
BATCH_ROWS = 256
BATCH_BYTES = 32 << 20


def look(file: SourceFile, layout: Layout) -> FileProbe:
    """From the name alone: nothing is opened."""
    columns = [pa.field(key, pa.string()) for key in hive_columns(file.uri)]
    return FileProbe(rows=1, passthrough=pa.schema(columns))


def read(part: FileRange, layout: Layout, columns: list[str]) -> Iterator[SourceBatch]:
    """Yield the file as one row."""
    yield _batch([(part, _image(part))])


def read_many(parts: Sequence[FileRange]) -> Iterator[SourceBatch | list[FileRange]]:
    """Yield the rows of many files in order, in batches; between them, those that have
    changed since they were listed."""
    pending: list[tuple[FileRange, Image]] = []
    size = 0
    for part, image in _images(parts):
        if isinstance(image, SourceChanged):
            yield [part]
            continue
        pending.append((part, image))
        size += part.size
        if len(pending) == BATCH_ROWS or size > BATCH_BYTES:
            yield _batch(pending)
            pending, size = [], 0
    if pending:
        yield _batch(pending)


def _images(parts: Sequence[FileRange]) -> Iterator[tuple[FileRange, Image | SourceChanged]]:
    """Read ahead where the files are remote, within a bound of bytes."""
    if not parts or local_path(parts[0].uri) is not None:
        for part in parts:
            yield part, _try(part)
        return
    waiting: deque[tuple[FileRange, Future[Image | SourceChanged]]] = deque()
    ahead = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for part in parts:
            while waiting and (ahead + part.size > AHEAD_BYTES or len(waiting) >= 4 * THREADS):
                first, future = waiting.popleft()
                ahead -= first.size
                yield first, future.result()
            waiting.append((part, pool.submit(_try, part)))
            ahead += part.size
        for first, future in waiting:
            yield first, future.result()


def _try(part: FileRange) -> Image | SourceChanged:
    try:
        return _image(part)
    except SourceChanged as replaced:
        return replaced


def _image(part: FileRange) -> Image:
    if part.size > MAX_BYTES:
        return RejectedInput("too_many_bytes", f"{part.size} bytes, the bound is {MAX_BYTES}")
    return read_pinned(part.uri, part.etag, part.size)


def _batch(images: Sequence[tuple[FileRange, Image]]) -> SourceBatch:
    columns = [hive_columns(part.uri) for part, _ in images]
    names = sorted({name for found in columns for name in found})
    brought = {
        name: pa.array([found.get(name) for found in columns], pa.string()) for name in names
    }
    return SourceBatch(
        uris=[part.uri for part, _ in images],
        etags=[part.etag for part, _ in images],
        rows=[0] * len(images),
        images=[image for _, image in images],
        passthrough=pa.table(brought),
    )
