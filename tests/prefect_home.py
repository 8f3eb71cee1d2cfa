"""What a Prefect home holds, read below its server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from tests.limits import SOON_S, until

# The server keeps events, and the ends of tasks, a moment after they were; in order.
_MISSING = """
    SELECT (SELECT count(*) FROM flow_run f WHERE NOT EXISTS (
                SELECT 1 FROM events e WHERE e.resource_id = 'prefect.flow-run.' || f.id
                AND e.event IN ('prefect.flow-run.Completed', 'prefect.flow-run.Failed')))
         + (SELECT count(*) FROM task_run
            WHERE state_type NOT IN ('COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED'))
"""


def ask(home: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home / "prefect.db", timeout=SOON_S) as database:
        return database.execute(statement, values).fetchall()


def wait_until_written(home: Path) -> None:
    """Until all that was told of its runs, which have ended, is there."""
    until(lambda: ask(home, _MISSING) == [(0,)], every_s=0.2)
