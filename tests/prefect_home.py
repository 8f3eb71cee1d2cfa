"""A Prefect home for a test, and what it holds, read below its server."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.limits import SOON_S, START_S, until

# The server keeps events, and the ends of tasks, a moment after they were; in order.
_MISSING = """
    SELECT (SELECT count(*) FROM flow_run f WHERE NOT EXISTS (
                SELECT 1 FROM events e WHERE e.resource_id = 'prefect.flow-run.' || f.id
                AND e.event IN ('prefect.flow-run.Completed', 'prefect.flow-run.Failed')))
         + (SELECT count(*) FROM task_run
            WHERE state_type NOT IN ('COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED'))
"""


def prepare(home: Path) -> None:
    """A new home, as after the server's migrations: they cost each first start five seconds.

    The homes of commands in processes of their own go without, as on a new machine.
    """
    version = importlib.metadata.version("prefect")
    kept = Path(sys.prefix) / f"prefect-{version}.db"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            env = os.environ | {"PREFECT_HOME": folder}
            subprocess.run(command, env=env, check=True, capture_output=True, timeout=START_S)
            with sqlite3.connect(Path(folder) / "prefect.db") as made:
                made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (Path(folder) / "prefect.db").replace(kept)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, home / "prefect.db")


def ask(home: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home / "prefect.db", timeout=SOON_S) as database:
        return database.execute(statement, values).fetchall()


def wait_until_written(home: Path) -> None:
    """Until all that was told of its runs, which have ended, is there."""
    until(lambda: ask(home, _MISSING) == [(0,)], every_s=0.2)
