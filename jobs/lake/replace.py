"""Files that are derived from the tables, and may be written again under the same name."""

from __future__ import annotations

from jobs.lake.atomic_file import Draft
from jobs.lake.storage import attempt, filesystem, local_path


def replace(uri: str, data: bytes) -> None:
    """Put `data` at `uri` in the place of what is there; a reader has the old one or the new one.

    For what nothing else is made of: a table's files and a bundle's are only ever created.
    """
    path = local_path(uri)

    def action() -> None:
        if path is None:
            fs, there = filesystem(uri)
            fs.pipe_file(there, data)
        else:
            draft = Draft(path)
            draft.temporary.write_bytes(data)
            draft.replace()

    attempt(action, uri, "write")
