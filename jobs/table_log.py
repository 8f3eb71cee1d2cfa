"""A table's log, entry by entry, as its files name them.

deltalake's own history lists the newest commits but numbers them down from the handle's version
(1.6.6): of a table that others have committed to since, every number would be wrong.
"""

from __future__ import annotations

from typing import Any

from jobs.documents import damaged, parsed
from jobs.storage import join, read_if_there

RESTORE = "restore it from a copy of the lake; nothing was done"


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
