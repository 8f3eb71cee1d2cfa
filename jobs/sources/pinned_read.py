"""Pinned reads: a source file is read as the listing saw it, or SourceChanged is raised.

On S3 the pin is the etag, sent with every range as If-Match. On a local disk it is size and time of
change, compared with the open file, and a hash of both ends from before and after the reading. On
other stores it is what fsspec tells of a file, before and after.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.asyn import sync

from jobs.errors import LatentlakeError
from jobs.lake.storage import attempt, filesystem, local_name, local_path

ENDS_BYTES = 4096


class SourceChanged(LatentlakeError):
    """The file is no longer what the listing saw: changed, or gone."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} was replaced or removed while it was read")
        self.uri = uri


def local_etag(status: os.stat_result) -> str:
    """Name a local file's content by its size, time and inode."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def other_etag(info: dict[str, Any]) -> str:
    """Return what a store that is neither a disk nor S3 tells a version of a file by."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "generation"):
        if info.get(name):
            return str(info[name]).strip('"')
    times = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
    when = next((info[name] for name in times if info.get(name)), "")
    # One store tells the same time as a date here and as a number there.
    when = when.timestamp() if isinstance(when, dt.datetime) else when
    return f"{info['size']}-{when:.6f}" if isinstance(when, float) else f"{info['size']}-{when}"


@contextlib.contextmanager
def open_pinned(uri: str, etag: str) -> Iterator[BinaryIO]:
    """Open a seekable file, read in blocks. Raises SourceChanged on entry, in reading or on exit.

    Other faults come out as the client raises them.
    """
    path = local_path(uri)
    if path is not None:
        opened = _open_local(path, uri, etag)
    else:
        opened = (_open_remote if uri.startswith("s3://") else _open_other)(uri, etag)
    with opened as file:
        yield file


@contextlib.contextmanager
def _open_local(path: Path, uri: str, etag: str) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise SourceChanged(uri) from error
    with file:
        ends = _ends(file)
        if local_etag(os.fstat(file.fileno())) != etag:
            raise SourceChanged(uri)
        yield file
        try:
            now = local_etag(path.stat())
        except FileNotFoundError as error:
            raise SourceChanged(uri) from error
        if now != etag or _ends(file) != ends:
            raise SourceChanged(uri)


def _ends(file: BinaryIO) -> bytes:
    """Return a hash of the first and the last few kilobytes; the position stays."""
    handle = file.fileno()
    size = os.fstat(handle).st_size
    first = os.pread(handle, ENDS_BYTES, 0)
    last = os.pread(handle, ENDS_BYTES, max(0, size - ENDS_BYTES))
    return hashlib.sha256(first + last).digest()


def _entered(uri: str) -> BinaryIO:
    """Open: it asks for the size, a request like any other, tried again like any other."""
    fs, path = filesystem(uri)

    def action() -> BinaryIO | None:
        try:
            return cast(BinaryIO, fs.open(path, "rb"))
        except FileNotFoundError:
            return None

    file = attempt(action, uri, "read")
    if file is None:
        raise SourceChanged(uri)
    return file


@contextlib.contextmanager
def _open_remote(uri: str, etag: str) -> Iterator[BinaryIO]:
    opened = _entered(uri)
    try:
        with opened as file:
            # From here on the client sends If-Match with every range.
            if str(file.details.get("ETag", etag)).strip('"') != etag:  # type: ignore[union-attr]
                raise SourceChanged(uri)
            yield cast(BinaryIO, io.BufferedReader(_Patient(cast(BinaryIO, file), uri), 1 << 16))
    except FileNotFoundError as error:
        raise SourceChanged(uri) from error
    except OSError as error:
        if _is_expired(error):
            raise SourceChanged(uri) from error
        raise


@contextlib.contextmanager
def _open_other(uri: str, etag: str) -> Iterator[BinaryIO]:
    fs, path = filesystem(uri)
    opened = _entered(uri)
    try:
        with opened as file:
            _require_same(fs, path, uri, etag)
            yield cast(BinaryIO, io.BufferedReader(_Patient(cast(BinaryIO, file), uri), 1 << 16))
            _require_same(fs, path, uri, etag)
    except FileNotFoundError as error:
        raise SourceChanged(uri) from error


def _require_same(fs: Any, path: str, uri: str, etag: str) -> None:
    if other_etag(fs.info(path)) != etag:
        raise SourceChanged(uri)


class _Patient(io.RawIOBase):
    """Reads of a remote file, each tried a few times: a fault costs a range, not the unit."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self.file = file
        self.uri = uri
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self.position = self.file.seek(0, io.SEEK_END) + offset
        else:
            self.position = offset + (self.position if whence == io.SEEK_CUR else 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        def action() -> bytes:
            self.file.seek(self.position)
            try:
                return self.file.read(len(buffer))
            except OSError as error:
                if _is_expired(error):
                    raise SourceChanged(self.uri) from error
                raise

        data = attempt(action, self.uri, "read")
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _is_expired(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}".lower().replace("-", "")
    return any(word in text for word in ("fileexpired", "preconditionfailed", "precondition"))


def read_pinned(uri: str, etag: str, size: int) -> bytes:
    """Read the whole file, by one request. Raises SourceChanged, or LatentlakeError."""
    path = local_name(uri)

    def action() -> bytes:
        if path is not None:
            return _read_local(path, uri, etag)
        if uri.startswith("s3://"):
            return _get(uri, etag)
        with _open_other(uri, etag) as file:
            return file.read()

    data = attempt(action, uri, "read")
    if len(data) != size:
        raise SourceChanged(uri)
    return data


def _read_local(path: str, uri: str, etag: str) -> bytes:
    # Nothing but calls of the system: millions of small files come through here.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SourceChanged(uri) from error
    try:
        before = os.fstat(handle)
        # One byte more than it should have, so that a file of its size is one call.
        data = os.read(handle, before.st_size + 1)
        while 0 < len(data) < before.st_size and (more := os.read(handle, before.st_size)):
            data += more
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if not local_etag(before) == local_etag(after) == etag:
        raise SourceChanged(uri)
    return data


def _get(uri: str, etag: str) -> bytes:
    fs, path = filesystem(uri)
    bucket, _, key = path.partition("/")

    async def request() -> bytes:
        client: Any = fs
        response = await client._call_s3("get_object", Bucket=bucket, Key=key, IfMatch=f'"{etag}"')
        async with response["Body"] as body:
            return await body.read()

    try:
        return sync(fs.loop, request)  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise SourceChanged(uri) from error
    except Exception as error:
        if _is_expired(error):
            raise SourceChanged(uri) from error
        raise
