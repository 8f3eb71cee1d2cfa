"""SQL for a page that anybody at this machine may open: it asks the views, and does nothing else.

DuckDB itself keeps the guard ("Securing DuckDB", duckdb.org): its settings are locked, and no file
is opened but those of the views. What is no SELECT is refused before, since a file that may be read
may by these settings be written, too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence

import duckdb
import pyarrow as pa

from jobs.errors import InputError, StorageError
from jobs.lake.paths import LakePaths
from jobs.query.views import VIEWS, Views, duckdb_path, fault_below, quoted
from jobs.tables.delta import Snapshot

MEMORY = "4GB"
AGAIN_S = 0.1
# Nothing goes to disk, so that what does not fit into the memory ends; no extension is fetched; and
# a table's name never is a variable of this process.
GUARD = f"""
    SET temp_directory = '';
    SET memory_limit = '{MEMORY}';
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET python_enable_replacements = false;
    SET enable_external_access = false;
    SET lock_configuration = true;
"""


class GuardedViews(Views):
    """Views for strangers' questions, each in a connection of its own."""

    def __init__(self, lake: LakePaths) -> None:
        super().__init__(lake)
        self._asking = threading.Lock()

    def ask(self, statement: str, rows: int, seconds: float) -> tuple[pa.Table, bool]:
        """At most so many rows of a SELECT's answer, and whether it has more.

        Raises InputError with DuckDB's own words, for anything but one SELECT, and where there is
        no answer after so many seconds, or another question has not ended by then.
        """
        if not self._asking.acquire(timeout=seconds):
            raise InputError("SQL: another question is still running; ask again later")
        try:
            self._require_select(statement)
            try:
                found = self._limited(statement, self.named(statement), rows + 1, seconds)
            except duckdb.CatalogException:  # one of ours, named where a look at the text misses it
                found = self._all_opened(statement, rows + 1, seconds)
        finally:
            self._asking.release()
        return found.slice(0, rows), found.num_rows > rows

    def _require_select(self, statement: str) -> None:
        try:
            statements = self._parser.extract_statements(statement)
        except duckdb.Error as error:
            raise InputError(f"SQL: {error}") from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InputError("SQL: only one SELECT at a time is answered here, and nothing changed")

    def _all_opened(self, statement: str, rows: int, seconds: float) -> pa.Table:
        try:
            return self._limited(statement, VIEWS, rows, seconds)
        except duckdb.CatalogException as error:
            raise InputError(f"SQL: {error}") from error

    def _limited(
        self, statement: str, names: Collection[str], rows: int, seconds: float
    ) -> pa.Table:
        self._connection = None  # the last statement's state is nobody else's
        connection = self._fresh()
        try:
            with _until(connection, seconds):
                self._open(connection, names)
                return connection.sql(statement).limit(rows).to_arrow_table()
        except duckdb.CatalogException:
            raise
        except duckdb.InterruptException as error:
            message = f"SQL: no answer within {seconds:.0f} s; ask for less, of one night perhaps"
            raise InputError(message) from error
        except duckdb.Error as error:
            fault = fault_below(error)
            raise (StorageError(fault) if fault else InputError(f"SQL: {error}")) from error

    def _prepare(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[Snapshot]) -> None:
        super()._prepare(connection, tables)
        files = [duckdb_path(uri) for snapshot in tables for uri in snapshot.file_uris()]
        connection.execute(f"SET allowed_paths = [{', '.join(map(quoted, files))}]")
        connection.execute(GUARD)


@contextlib.contextmanager
def _until(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupts what runs in the connection after so many seconds, until the block ends."""
    done = threading.Event()

    def watch() -> None:
        if done.wait(seconds):
            return
        while not done.wait(AGAIN_S):  # between two statements there is nothing to interrupt
            connection.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
