"""Files and folders on local disk, beside other processes that make and remove the same."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.lake.atomic_file import Draft

RACES = 20  # lost to other processes in a row before it is given up
RACED = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)


def create(path: Path, data: bytes | memoryview) -> None:
    """Create a file with these bytes. Raises AlreadyThere where there is one."""
    for left in reversed(range(RACES)):
        try:
            draft = Draft(path)
            draft.temporary.write_bytes(data)
            draft.publish()
        except FileNotFoundError:
            # Another process of the same job has done, and has just cleared its folder away.
            if left == 0:
                raise
            time.sleep(random.uniform(0.0, 0.05))
        else:
            return


def delete_tree(path: Path) -> None:
    """Also while another process removes the same, or still writes there."""
    for left in reversed(range(RACES)):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in RACED or left == 0:
                raise
            time.sleep(random.uniform(0.0, 0.05))
        if not os.path.lexists(path):
            return


def scan(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Entries of a local folder; those that go while it is read are left out, none if absent.

    Links are listed as what they are: they may lead out of the lake, or in circles.

    fsspec would take the whole folder for absent where one of its files goes meanwhile.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def described(entry: tuple[Path, os.stat_result]) -> dict[str, Any]:
    """Describe a file as listings do: uri, size, modified."""
    path, status = entry
    mode = status.st_mode
    kind = "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
    times = {"mtime": status.st_mtime, "ino": status.st_ino}
    return {"name": str(path), "size": status.st_size, "type": kind, **times}


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a local folder; those that come or go meanwhile cost no other its place."""
    for path, status in sorted(scan(folder)):
        if stat.S_ISDIR(status.st_mode):
            yield from files_below(path)
        elif stat.S_ISREG(status.st_mode):
            yield path, status
