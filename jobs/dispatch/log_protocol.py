"""What a job on a cluster tells whoever follows its log: lines of JSON among those of libraries.

log: a level and a message; progress: how far it is; result: its report; error: its class and text.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import sys
import threading
from typing import Any

from typing_extensions import override

from jobs.engine.progress import FollowedProgress, Progress
from jobs.errors import ClusterError, InputError, JobError, LatentlakeError, StorageError

WORK = "LATENTLAKE_WORK"  # of the environment: the work, as JSON
VERSION = "LATENTLAKE_VERSION"  # of who submits


log = logging.getLogger("latentlake")

MARK = "@latentlake "
BEGIN = "Running entrypoint for job"  # as Ray says it
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_telling = threading.Lock()
ERRORS: dict[str, type[LatentlakeError]] = {
    kind.__name__: kind for kind in (InputError, StorageError, ClusterError, JobError)
}


def tell(kind: str, value: Any) -> None:
    """Write one line to stdout, whole."""
    line = f"{MARK}{json.dumps({kind: value})}\n"
    with _telling:
        sys.stdout.write(line)
        sys.stdout.flush()


def tell_progress(progress: Progress) -> None:
    """Report how far a job is."""
    tell("progress", [progress.title, str(progress), progress.done, progress.planned])


def tell_error(error: LatentlakeError) -> None:
    """Of the nearest class that the other side knows."""
    known = next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "JobError")
    tell("error", [known, str(error)])


class LogLines(logging.Handler):
    """Tells log records of ours."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        tell("log", [record.levelno, record.getMessage()])


class LogReader:
    """The other end: passes on what a log tells, and keeps how the job ended."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.error: LatentlakeError | None = None
        self.last: list[str] = []  # lines that are not ours, the newest few
        self._read = 0  # characters
        self._progress: list[Any] | None = None

    def text(self, text: str, *, all_of_it: bool = False) -> int:
        """Take what is new of a log that was read whole; returns its length.

        all_of_it: nothing more will come, so that a last line needs no end.
        """
        end = len(text) if all_of_it else text.rfind("\n") + 1
        for line in text[self._read : end].split("\n"):
            self.line(line)
        self._read = max(self._read, end)
        if self._progress is not None:  # only the newest: a log may be hours long at first
            FollowedProgress(*self._progress).tell_listeners()
            self._progress = None
        return len(text)

    def line(self, line: str) -> None:
        """Take one line of the log."""
        entry = _told(line)
        if entry is None:
            self._foreign(line)
        elif "log" in entry:
            log.log(*entry["log"])
        elif "progress" in entry:
            self._progress = entry["progress"]
        elif "result" in entry:
            self.result = entry["result"]
        elif "error" in entry:
            name, text = entry["error"]
            self.error = ERRORS.get(name, JobError)(text)

    def _foreign(self, line: str) -> None:
        line = COLOURS.sub("", line)
        if BEGIN in line:  # a log may be of several: Ray goes on with one of the same id
            self.result = self.error = None
        if line.strip():
            log.info("%s", line)
            self.last = [*self.last[-9:], line]


def _told(line: str) -> dict[str, Any] | None:
    # Something without a line end may stand before it: two streams share the log.
    _, mark, rest = line.partition(MARK)
    if not mark:
        return None
    try:
        entry = json.loads(rest)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def version() -> str:
    """Of the latentlake that runs here."""
    return importlib.metadata.version("latentlake")
