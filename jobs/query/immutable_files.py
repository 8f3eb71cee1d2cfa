"""A store's files as DuckDB reads them, which asks for their sizes and times a dozen times a query.

Files of our tables never change under their names, and the tables' logs say how large they are.
"""

from __future__ import annotations

import datetime
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile

BLOCK = 1 << 20  # read ahead, so that a footer is one request
ALWAYS = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


class ImmutableFiles(fsspec.AbstractFileSystem):
    """Read-only, over another filesystem. known: by path, the sizes of all that will be read."""

    cachable = False

    def __init__(self, inner: fsspec.AbstractFileSystem) -> None:
        super().__init__()
        self.protocol = inner.protocol
        self.inner = inner
        self.known: dict[str, int] = {}

    def _strip_protocol(self, path: str) -> str:  # type: ignore[override]
        return str(self.inner._strip_protocol(path))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Describe a file; size and name are known from the table's log."""
        path = self._strip_protocol(path)
        if path not in self.known:
            raise FileNotFoundError(path)
        return {"name": path, "size": self.known[path], "type": "file"}

    def modified(self, path: str) -> datetime.datetime:
        """Return one time for all: files never change under their names."""
        return ALWAYS

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        """Of a name: views list their files by name."""
        return [path] if self.exists(path) else []

    def _open(  # type: ignore[override]
        self, path: str, mode: str = "rb", **kwargs: Any
    ) -> AbstractBufferedFile:
        size = self.info(path)["size"]
        return _File(self, path, mode, block_size=BLOCK, size=size)  # type: ignore[arg-type]


class _File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> Any:
        return self.fs.inner.cat_file(self.path, start=start, end=end)
