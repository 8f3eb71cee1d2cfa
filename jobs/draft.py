"""Files on local disk that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
import weakref
from pathlib import Path

from jobs.errors import AlreadyThere

_held: dict[Path, tuple[int, int]] = {}  # which folder each was


def hold(root: Path) -> None:
    """From now on this process writes nothing below `root` while it is not the folder that it is.

    A lake that goes away, with its disk perhaps, is not made anew in part: not where it was, nor in
    the empty folder that its disk was mounted on. One that is not there yet is not held.
    """
    found = _identity(root)
    if found is None:
        _held.pop(root, None)
    else:
        _held[root] = found


def is_held(root: Path) -> bool:
    return root in _held


def require_held(path: Path) -> None:
    """Raises FileNotFoundError where a folder above `path` was held, and has gone."""
    for root, held in _held.items():
        if path.is_relative_to(root) and _identity(root) != held:
            raise FileNotFoundError(errno.ENOENT, "it has gone", str(root))


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Draft:
    """A local file that is written beside its place, and appears there whole or not at all.

    What is given up goes with the object; of a killed process, vacuum takes it away.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.exists():
            require_held(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._discard = weakref.finalize(self, self.temporary.unlink, missing_ok=True)

    def publish(self) -> None:
        """Call it once the temporary file is closed. Raises AlreadyThere; the old file stays."""
        self._sync()
        try:
            os.link(self.temporary, self.path)  # unlike rename, fails where the name is taken
        except FileExistsError as error:
            raise AlreadyThere(str(self.path)) from error
        finally:
            self._discard()

    def replace(self) -> None:
        """The same, in the place of an old file."""
        self._sync()
        self.temporary.replace(self.path)

    def _sync(self) -> None:
        handle = os.open(self.temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
