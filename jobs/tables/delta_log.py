"""A table's log, entry by entry, as its files name them.

deltalake's own history lists the newest commits but numbers them down from the handle's version
(1.6.6): of a table that others have committed to since, every number would be wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.lake.documents import damaged, parsed
from jobs.lake.read_ahead import read_ahead
from jobs.lake.storage import exists, join, list_folder, names_in, read_if_there, require_begun
from jobs.lake.uri import is_inner

RESTORE = "restore it from a copy of the lake; nothing was done"
NO_CHECKPOINT = "remove it and _last_checkpoint beside it: the log's entries are all that counts"
LISTINGS = 5  # of a folder that others write to, before an entry is missing
READERS = 16  # requests at a time
ENTRY = re.compile(r"(\d{20})\.json")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.(?:.*\.)?parquet")
LAST = (b'{"txn"', b'{"metaData"', b'{"protocol"')  # what an entry ends with
FEW = 4  # entries that are read one after the other


def entry_uri(table_uri: str, version: int) -> str:
    """Locate a table's log entry of a version."""
    return join(table_uri, "_delta_log", f"{version:020d}.json")


def entry(table_uri: str, version: int) -> dict[str, Any] | None:
    """Who made a version and when: its commitInfo, with its `version`. None where the log has none.

    Raises InputError for an entry that is empty or was cut off, between two of its lines too.
    """
    uri = entry_uri(table_uri, version)
    data = read_if_there(uri)
    if data is None:
        return None
    lines = data.splitlines()
    if not lines:
        raise damaged(uri, "it is empty", RESTORE)
    actions = (parsed(dict[str, Any], line, uri, RESTORE) for line in lines)
    found = next((action["commitInfo"] for action in actions if "commitInfo" in action), None)
    info = found if isinstance(found, dict) else {}
    _require_last(lines, info, uri)
    return {**info, "version": version}


def _require_last(lines: list[bytes], info: dict[str, Any], uri: str) -> None:
    """Require what comes last in an entry: else it was cut off, in a line or between two."""
    few = [line for line in lines[:-1] if line.startswith(LAST)]
    actions = [parsed(dict[str, Any], line, uri, RESTORE) for line in (*few, lines[-1])]
    txns = [action["txn"] for action in actions if isinstance(action.get("txn"), dict)]
    done = [txn.get("appId") for txn in txns]
    job_id = info.get("job_id", "")
    if not isinstance(job_id, str):
        raise damaged(uri, f"{job_id!r:.80} is no name of a job", RESTORE)
    if job_id and job_id not in done:
        raise damaged(uri, f"it ends within the commit of {job_id!r:.80}", RESTORE)
    made = {name for action in actions for name in action}
    if info.get("operation") == "ADD COLUMN" and "metaData" not in made:
        raise damaged(uri, "it ends within a change of the table's columns", RESTORE)
    if info.get("operation") == "CREATE TABLE" and not {"metaData", "protocol"} <= made:
        raise damaged(uri, "it ends within the creation of the table", RESTORE)


def entries(table_uri: str, newest: int, oldest: int) -> Iterator[dict[str, Any]]:
    """Those of versions, the newest first, as far as the log has them without a gap."""
    versions = range(newest, oldest - 1, -1)
    # Mostly the newest alone is wanted.
    first = (entry(table_uri, version) for version in versions[:FEW])
    names = (str(version) for version in versions[FEW:])
    rest = (found for _, found in read_ahead(names, lambda name: entry(table_uri, int(name))))
    for found in itertools.chain(first, rest):
        if found is None:
            return
        yield found


@dataclasses.dataclass(frozen=True)
class _LogFile:
    """An entry as the store lists it. stamp: changes with its content."""

    version: int
    size: int
    stamp: str


@dataclasses.dataclass(frozen=True)
class Entries:
    """A log as it is listed; no entry is empty.

    checkpoint: the version of the newest one, -1 where there is none.
    """

    uri: str
    files: list[_LogFile]
    checkpoint: int

    def missing(self) -> int | None:
        """Return the first version that is not there, and should be."""
        versions = {file.version for file in self.files}
        oldest = min(versions, default=0)
        first = oldest if self.checkpoint >= oldest else 0
        return next((v for v in range(first, self.newest + 1) if v not in versions), None)

    @property
    def folder(self) -> str:
        """Return the URI of the log's folder."""
        return join(self.uri, "_delta_log")

    @property
    def newest(self) -> int:
        """Return the newest version."""
        return self.files[-1].version if self.files else -1

    def jobs(self, to_the_oldest: bool = False) -> list[tuple[int, str | None]]:
        """Version and job of each entry since the checkpoint, None where no job of ours made it.

        Raises InputError for an entry that was cut off.
        """
        wanted = [f for f in self.files if to_the_oldest or f.version > self.checkpoint]
        with ThreadPoolExecutor(READERS, thread_name_prefix="log") as pool:
            found = pool.map(lambda file: _job(self.uri, file), wanted)
            return [(file.version, job) for file, job in zip(wanted, found, strict=True)]


def whole_entries(table_uri: str) -> Entries:
    """Those of a table; none where it is not there. Raises InputError for a log that is not whole.

    What comes before a checkpoint, other tools may have removed.
    """
    for left in reversed(range(LISTINGS)):
        found = _listed(table_uri)
        missing = found.missing()
        if missing is None:
            return found
        # A large folder is read in pieces: of two commits between two of them, one may be passed
        # over.
        if left == 0 or not exists(entry_uri(table_uri, missing)):
            require_begun(table_uri)  # all of it may have gone
            raise damaged(entry_uri(table_uri, missing), "it is missing", RESTORE)
    raise AssertionError("unreachable")


def require_commits(table_uri: str, named: dict[int, set[str]], to_the_oldest: bool) -> None:
    """Raise InputError where an entry is not the commit that it is named as. A table that is not
    there has lost no entry: somebody has removed all of it.

    named: by version, the jobs that say that they made it. Entries are opened as far back as the
    newest checkpoint, from which the table is read, or to the oldest.
    """
    entries = whole_entries(table_uri)
    newest = max(named, default=-1)
    if entries.files and newest > entries.newest:
        require_begun(table_uri)  # all of it may have gone
        jobs = ", ".join(sorted(named[newest]))
        raise damaged(entry_uri(table_uri, newest), f"it is missing, the commit of {jobs}", RESTORE)
    for version, job_id in entries.jobs(to_the_oldest):
        wanted = named.get(version)
        if wanted and job_id not in wanted:
            _require_elsewhere(entries, version, wanted)


def _require_elsewhere(entries: Entries, version: int, wanted: set[str]) -> None:
    """Older releases wrote wrong versions beside other writers: there the job has another entry."""
    missing = wanted - {job_id for _, job_id in entries.jobs(to_the_oldest=True)}
    if missing:
        message = f"it is not the commit of {', '.join(sorted(missing))}, which catalog/runs names"
        raise damaged(entry_uri(entries.uri, version), message, RESTORE)


def require_readable(table_uri: str, why: str) -> None:
    """Raise InputError that names the file which may keep a table from being opened, if any.

    why: what deltalake said.
    """
    entries = whole_entries(table_uri)
    entries.jobs()
    if "checkpoint" in why.lower() and entries.checkpoint >= 0:
        mark = f"{entries.checkpoint:020}.checkpoint"
        own = sorted(name for name in names_in(entries.folder) if name.startswith(mark))
        raise damaged(join(entries.folder, own[0]), "it cannot be read", NO_CHECKPOINT)


def _listed(table_uri: str) -> Entries:
    """Raise InputError for an entry or a checkpoint that is empty."""
    files: dict[int, _LogFile] = {}
    checkpoint = -1
    for info in list_folder(join(table_uri, "_delta_log")):
        name = str(info["name"]).rsplit("/", 1)[-1]
        if found := ENTRY.fullmatch(name):
            stamp = str(info.get("ETag") or (info.get("ino"), info.get("mtime")))
            files[int(found[1])] = _LogFile(int(found[1]), int(info["size"]), stamp)
        elif found := CHECKPOINT.fullmatch(name):
            checkpoint = max(checkpoint, int(found[1]))
            if not int(info["size"]):
                raise damaged(join(table_uri, "_delta_log", name), "it is empty", NO_CHECKPOINT)
    empty = next((version for version in sorted(files) if not files[version].size), None)
    if empty is not None:
        raise damaged(entry_uri(table_uri, empty), "it is empty", RESTORE)
    return Entries(table_uri, [files[version] for version in sorted(files)], checkpoint)


# Read by each job of a night, of entries that never change while they are whole.
@functools.lru_cache(maxsize=1 << 14)
def _job(table_uri: str, file: _LogFile) -> str | None:
    found = entry(table_uri, file.version)
    if found is None:
        require_begun(table_uri)
        raise damaged(entry_uri(table_uri, file.version), "it went while it was read", RESTORE)
    return found.get("job_id")


def require_ours(uri: str, action: dict[str, Any]) -> None:
    """Require that a file that a log names lies in the table, and has been counted."""
    path, size, rows = (action.get(name) for name in ("path", "size_bytes", "num_records"))
    if path is None or not is_inner(path):
        raise damaged(f"the log of {uri}", f"{path!r} is no path in the table")
    if size is None or rows is None or min(size, rows) < 0:
        raise damaged(f"the log of {uri}", f"{path} has {rows} rows and {size} bytes")
