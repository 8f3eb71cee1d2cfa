"""Commits that others were faster than, or whose answer was lost."""

from __future__ import annotations

from collections.abc import Callable

from jobs.lake.storage_errors import explain, is_transient


class CommitConflict(Exception):
    """Another job committed to the table since the handle was read."""


class CommitStateUnknown(CommitConflict):
    """Whether the commit landed is not known; the table, read again, tells."""


def commit_once(action: Callable[[], None], uri: str) -> None:
    """Commit once; raise CommitConflict where another commit was first."""
    # No retry here: whether a failed put landed is decided by reading the table again.
    try:
        action()
    except CommitConflict:
        raise
    except Exception as error:
        explained = explain(error, uri, "write")
        if is_transient(error):
            raise CommitStateUnknown(str(explained)) from explained
        raise explained from error
