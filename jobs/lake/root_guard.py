"""Roots of lakes that a process has a job on: one that goes away is not made anew."""

from __future__ import annotations

import errno
from pathlib import Path

_held: dict[Path, tuple[int, int]] = {}  # which folder each was


def hold(root: Path) -> None:
    """From now on this process writes nothing below `root` while it is not the folder that it is.

    A lake that goes away, with its disk perhaps, is not made anew in part: not where it was, nor in
    the empty folder that its disk was mounted on. One that is not there yet is not guarded.
    """
    found = _identity(root)
    if found is None:
        _held.pop(root, None)
    else:
        _held[root] = found


def is_held(root: Path) -> bool:
    """Whether a job of this process works on the root."""
    return root in _held


def require_held(path: Path) -> None:
    """Raise FileNotFoundError where a folder above `path` was guarded, and has gone."""
    for root, count in _held.items():
        if path.is_relative_to(root) and _identity(root) != count:
            raise FileNotFoundError(errno.ENOENT, "it has gone", str(root))


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
