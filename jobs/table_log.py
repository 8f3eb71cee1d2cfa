"""A table's log, entry by entry, as its files name them.

deltalake's own history lists the newest commits but numbers them down from the handle's version
(1.6.6): of a table that others have committed to since, every number would be wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from jobs.ahead import read_ahead
from jobs.documents import damaged, parsed
from jobs.storage import join, read_if_there
from jobs.uris import is_inner

RESTORE = "restore it from a copy of the lake; nothing was done"
FEW = 4  # entries that are read one after the other


def entry_uri(table_uri: str, version: int) -> str:
    return join(table_uri, "_delta_log", f"{version:020d}.json")


def entry(table_uri: str, version: int) -> dict[str, Any] | None:
    """Who made a version and when: its commitInfo, with its `version`. None where the log has none.

    Raises InputError for an entry that is empty or was cut off.
    """
    uri = entry_uri(table_uri, version)
    data = read_if_there(uri)
    if data is None:
        return None
    lines = data.splitlines()
    if not lines:
        raise damaged(uri, "it is empty", RESTORE)
    actions = (parsed(dict[str, Any], line, uri, RESTORE) for line in lines)
    info = next((action["commitInfo"] for action in actions if "commitInfo" in action), None)
    parsed(dict[str, Any], lines[-1], uri, RESTORE)  # whether it was cut off
    return {**(info if isinstance(info, dict) else {}), "version": version}


def entries(table_uri: str, newest: int, oldest: int) -> Iterator[dict[str, Any]]:
    """Those of versions, the newest first, as far as the log has them without a gap."""
    versions = range(newest, oldest - 1, -1)
    # The newest alone is what is asked for mostly.
    first = (entry(table_uri, version) for version in versions[:FEW])
    names = (str(version) for version in versions[FEW:])
    rest = (found for _, found in read_ahead(names, lambda name: entry(table_uri, int(name))))
    for found in itertools.chain(first, rest):
        if found is None:
            return
        yield found


def require_ours(uri: str, action: dict[str, Any]) -> None:
    """What a log says of a file: it lies in the table, and has been counted."""
    path, size, rows = (action.get(name) for name in ("path", "size_bytes", "num_records"))
    if path is None or not is_inner(path):
        raise damaged(f"the log of {uri}", f"{path!r} is no path in the table")
    if size is None or rows is None or min(size, rows) < 0:
        raise damaged(f"the log of {uri}", f"{path} has {rows} rows and {size} bytes")
