"""A job in a process of its own that is killed before a change on disk that a test names.

Python's audit events tell of the changes that its own calls make; deltalake's are wrapped. Before
the next change is after the one before it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jobs.lake.paths import LakePaths
from tests.limits import COMMAND_S

CHANGES = ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.truncate")
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Counted:
    def __init__(self, root: Path, kill_at: int | None) -> None:
        self.root, self.kill_at, self.count = str(root), kill_at, 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & FOR_WRITING and self._is_ours(path):
                self.change()
        elif event in CHANGES and (self._is_ours(arguments[0]) or not _is_whole(arguments[0])):
            self.change()

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)

    def change(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _is_whole(path: Any) -> bool:
    """Else it is relative to a folder that is being removed."""
    return isinstance(path, str | os.PathLike) and Path(path).is_absolute()


def _wrap(counted: _Counted) -> None:
    from deltalake import DeltaTable
    from deltalake.table import TableAlterer

    def around(real: Any) -> Any:
        def changed(*arguments: Any, **how: Any) -> Any:
            counted.change()
            made = real(*arguments, **how)
            counted.change()
            return made

        return changed

    DeltaTable.create_write_transaction = around(DeltaTable.create_write_transaction)
    DeltaTable.create = staticmethod(around(DeltaTable.create))  # type: ignore[method-assign]
    TableAlterer.add_columns = around(TableAlterer.add_columns)


def _run(
    name: str, uri: str, source: Path, kill_at: int | None, told: Path | None, env: dict[str, str]
) -> None:
    import torch

    from tests.every_job import JOBS

    os.environ.update(env)
    torch.set_num_threads(1)
    if told is not None:
        counted = _Counted(Path(uri.removeprefix("file://")), kill_at)
        sys.addaudithook(counted.hear)
        _wrap(counted)
    JOBS[name](LakePaths(uri), source)
    if told is not None:
        told.write_text(str(counted.count))


_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["tests.every_job"])


def start(
    name: str,
    uri: str,
    source: Path,
    *,
    kill_at: int | None = None,
    told: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> BaseProcess:
    """told: a file that gets the number of changes, of a job on local disk that ends."""
    process = _forked.Process(target=_run, args=(name, uri, source, kill_at, told, dict(env or {})))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """Its exit code; minus nine where it was killed."""
    process.join(COMMAND_S)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode
