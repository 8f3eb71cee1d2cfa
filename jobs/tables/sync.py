"""What a commit names is on disk before the commit is, and the commit before its records go.

A file that was written and closed is lost with the power until it is synced, and its name until its
folder is. deltalake syncs neither (1.6.6; seen by strace). A store's put is durable by itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from jobs.lake.storage import attempt, local_path
from jobs.tables.delta_log import entry_uri


def sync_files(table_uri: str, paths: Iterable[str]) -> None:
    """Sync the names of files of a table; their bytes are synced where they are written.

    paths: relative to the table.
    """
    root = local_path(table_uri)
    if root is not None:
        for folder in {(root / path).parent for path in paths}:
            _sync_up_to(folder, root)


def sync_commit(table_uri: str, version: int) -> None:
    """Sync an entry of a table's log, its name, and those of the folders that it lies in."""
    uri = entry_uri(table_uri, version)
    root, entry = local_path(table_uri), local_path(uri)
    if root is not None and entry is not None:
        _sync(entry)
        for made in entry.parent.glob(f"{version:020}.checkpoint*"):
            _sync(made)
            _sync(entry.parent / "_last_checkpoint")
        # In a lake a table lies at most three folders deep: datasets/NAME/TABLE.
        _sync_up_to(entry.parent, root.parents[min(2, len(root.parents) - 1)])


def _sync_up_to(folder: Path, last: Path) -> None:
    while True:
        _sync(folder)
        if folder in (last, folder.parent):
            return
        folder = folder.parent


def _sync(path: Path) -> None:
    attempt(lambda: _synced(path), path.as_uri(), "write")


def _synced(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # who may write into a folder may not always open it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every system syncs a folder
            raise
    finally:
        os.close(handle)
