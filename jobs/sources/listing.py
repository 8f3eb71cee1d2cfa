"""Listing a source: its files in order of URI, as a stream, with what each is pinned by.

The first files come before the last ones have been listed. Hidden names are passed over.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.errors import InputError
from jobs.lake.storage import attempt, filesystem, local_path, resolve_source
from jobs.sources.pinned_read import local_etag, other_etag

_MARKS = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source. etag: the store's; size and time of change on a local disk."""

    uri: str
    etag: str
    size: int


@dataclasses.dataclass(frozen=True)
class Scope:
    """The files that a source names: one file, all below a folder, or those of a glob pattern.

    In a pattern, `*` and `?` stay within a folder, `**` does not. A local path that is there as it
    is written is no pattern.
    """

    uri: str
    is_pattern: bool

    @classmethod
    def of(cls, source: str) -> Scope:
        """Read a source as a user writes it."""
        uri = resolve_source(source)
        path = local_path(uri)
        there = path is not None and path.exists()
        return cls(uri, not there and _MARKS.search(_plain(uri)) is not None)

    @property
    def root(self) -> str:
        """The part before the first folder with a mark in it; all of it where there is none."""
        if not self.is_pattern:
            return self.uri
        # In a file URI the marks are quoted; a folder's slash never is.
        parts = self.uri.split("/")
        plain = _plain(self.uri).split("/")
        first = next(i for i, part in enumerate(plain) if _MARKS.search(part))
        return "/".join(parts[:first])

    def has(self, uri: str) -> bool:
        """Whether the source would list a file of this URI."""
        if self.is_pattern:
            return _pattern(_plain(self.uri)).fullmatch(_plain(uri)) is not None
        return uri == self.uri or uri.startswith(self.uri + "/")


def _plain(uri: str) -> str:
    return unquote(uri) if urlsplit(uri).scheme == "file" else uri


def _pattern(text: str) -> re.Pattern[str]:
    """Return a glob as a regular expression: `**/` is any number of folders."""
    pieces = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", text):
        if piece == "**/":
            pieces.append("(?:.*/)?")
        elif piece == "**":
            pieces.append(".*")
        elif piece == "*":
            pieces.append("[^/]*")
        elif piece == "?":
            pieces.append("[^/]")
        elif piece.startswith("[") and piece.endswith("]"):
            no, body = ("^", piece[2:-1]) if piece[1] in "!^" else ("", piece[1:-1])
            pieces.append(f"[{no}{re.escape(body).replace(chr(92) + '-', '-')}]")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces), re.DOTALL)


def list_files(source: str) -> Iterator[SourceFile]:
    """Yield the files of a source, sorted by URI. Raises InputError where the source does not
    exist."""
    scope = Scope.of(source)
    path = local_path(scope.root)
    if path is not None:
        found = _local(path, source)
    elif scope.root.startswith("s3://"):
        found = _remote(scope.root, source)
    else:
        found = _other(scope.root, source)
    for file in found:
        if not scope.is_pattern or scope.has(file.uri):
            yield file


def _missing(source: str) -> InputError:
    return InputError(f"the source {source} does not exist")


def _local(root: Path, source: str) -> Iterator[SourceFile]:
    try:
        status = root.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(source) from error
    except PermissionError as error:
        raise InputError(f"cannot read the source {source}: permission denied") from error
    if root.is_file():
        yield SourceFile(root.as_uri(), local_etag(status), status.st_size)
        return
    base = root.as_uri()
    for name, entry in _walk(str(root), ""):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue  # it went between two breaths; the next night knows
        yield SourceFile(_join(base, name), local_etag(status), status.st_size)


def _join(base: str, name: str) -> str:
    # Quoting is slow, and most names need none.
    return (
        f"{base}/{name}"
        if _SAFE.fullmatch(name)
        else Path(f"/{name}").as_uri().replace("file://", base, 1)
    )


_SAFE = re.compile(r"[A-Za-z0-9_.\-~/=]*")


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below a folder with their relative names, in the order of whole names, as S3 has it."""
    try:
        with os.scandir(folder) as entries:
            # Links to files are followed, links to folders are not: they may lead in circles.
            found = [(e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in entries]
    except FileNotFoundError:
        return  # it went after its parent was read
    except PermissionError as error:
        raise InputError(f"cannot read the folder {folder}: permission denied") from error
    for name, entry in sorted(found, key=lambda pair: os.fsencode(pair[0])):
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(entry.path, prefix + name)
        elif entry.is_file():
            yield prefix + name, entry


def _remote(root: str, source: str) -> Iterator[SourceFile]:
    fs, path = filesystem(root)
    bucket, _, key = path.partition("/")
    exact = False
    for entry in _pages(fs, bucket, key + "/" if key else "", root):
        exact = True
        if entry["Key"].endswith("/") or _is_hidden(entry["Key"][len(key) :]):
            continue
        yield _source_file(bucket, entry)
    if exact:
        return
    single = next((e for e in _pages(fs, bucket, key, root) if e["Key"] == key), None)
    if single is None:
        raise _missing(source)
    yield _source_file(bucket, single)


def _other(root: str, source: str) -> Iterator[SourceFile]:
    """By whatever fsspec tells of the store."""
    fs, path = filesystem(root)

    def action() -> dict[str, dict[str, Any]]:
        try:
            info = fs.info(path)
            return {path: info} if info["type"] == "file" else fs.find(path, detail=True)  # type: ignore[return-value]
        except FileNotFoundError as error:
            raise _missing(source) from error

    for name, info in sorted(attempt(action, root, "list").items()):
        if info["type"] == "file" and not _is_hidden(name[len(path) :]):
            uri = str(fs.unstrip_protocol(name))
            yield SourceFile(uri, other_etag(info), int(info["size"]))


def _source_file(bucket: str, entry: dict[str, Any]) -> SourceFile:
    uri = f"s3://{bucket}/{entry['Key']}"
    return SourceFile(uri, str(entry["ETag"]).strip('"'), int(entry["Size"]))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _pages(fs: Any, bucket: str, prefix: str, uri: str) -> Iterator[dict[str, Any]]:
    """Objects below a prefix, a page of the listing at a time, each tried a few times."""
    token: dict[str, str] = {}
    while True:
        page = attempt(
            lambda t=token: fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **t),
            uri,
            "list",
        )
        yield from page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
