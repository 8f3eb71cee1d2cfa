"""A held connection tells nothing but what is published, whatever was asked before."""

from __future__ import annotations

import contextlib

import duckdb
import fsspec
import pyarrow as pa
import pytest

from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.query.immutable_files import ImmutableFiles
from jobs.query.views import Views
from jobs.schemas.catalog import ALIASES
from jobs.tables.delta import Table
from tests.inline import InlineEmbed

COUNT = "SELECT count(*) AS n FROM images"


@pytest.fixture
def held(trained: LakePaths) -> Views:
    runner.run(InlineEmbed(trained))
    found = Views(trained)
    assert found.sql(COUNT).to_pylist() == [{"n": 600}]
    return found


@pytest.mark.parametrize(
    "statement",
    [
        "DROP VIEW images",
        "CREATE OR REPLACE TEMP VIEW images AS SELECT 1 AS x",
        "BEGIN TRANSACTION",
        "SELECT 1; DROP VIEW images",
        "SELECT no_such_column FROM images",
        "SELECT",
    ],
)
def test_what_a_statement_leaves_behind_is_nobody_else_s(held: Views, statement: str) -> None:
    with contextlib.suppress(InputError):
        held.sql(statement)
    with pytest.raises(InputError):
        held.sql("SELECT nothing FROM nowhere")
    assert held.sql(COUNT).to_pylist() == [{"n": 600}]


def test_tables_that_were_given_leave_with_their_question(held: Views) -> None:
    given = pa.table({"x": [1]})
    with pytest.raises(InputError):
        held.sql("SELECT nope FROM given", tables={"given": given})
    with pytest.raises(InputError, match="given"):
        held.sql("SELECT * FROM given")


def test_a_fault_of_storage_is_tried_again_with_another_connection(
    held: Views, monkeypatch
) -> None:
    before = held._connection
    real, faults = views._named, []

    def named(*given):
        if not faults:
            faults.append(1)
            raise duckdb.IOException("Traceback (most recent call last)\n  x\nOSError: [Errno 104]")
        return real(*given)

    monkeypatch.setattr(views, "_named", named)
    monkeypatch.setattr("jobs.lake.storage.is_transient", lambda error: True)
    assert held.sql(COUNT).to_pylist() == [{"n": 600}]
    assert faults
    assert held._connection is not before


def test_aliases_are_what_they_are_now(held: Views) -> None:
    """A training that was killed right after its alias leaves no row in runs."""
    asked = "SELECT count(*) AS n FROM aliases"
    (before,) = held.sql(asked)["n"].to_pylist()
    table = Table(held.lake.catalog("aliases"), ALIASES)
    row = {"sequence": 99, "model": "m", "alias": "x", "version": "v", "reason": "", "job_id": "j"}
    engine_commit.append_rows(table, "by-hand", [row])
    assert held.sql(asked)["n"].to_pylist() == [before + 1]


def test_files_of_a_store_are_read_by_ranges_and_nothing_is_asked() -> None:
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    data = bytes(range(256)) * 9000
    name = "/bucket/a b/[1]#?.parquet"
    memory.pipe_file(name, data)
    asked: list[str] = []
    for method in ("info", "exists", "ls", "modified"):
        setattr(memory, method, lambda *_, name=method, **__: asked.append(name))
    files = ImmutableFiles(memory)
    files.known[name] = len(data)
    assert files.info(name)["size"] == len(data)
    assert files.glob(name) == [name]
    assert files.modified(name) == files.modified(name)
    with files.open(name, "rb") as file:
        file.seek(2_000_000)
        assert file.read(500) == data[2_000_000:2_000_500]
        file.seek(-8, 2)
        assert file.read() == data[-8:]
    with pytest.raises(FileNotFoundError):
        files.info("/bucket/other")
    assert not asked


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("SELECT * FROM images JOIN Embeddings USING (image_id)", {"images", "embeddings"}),
        ("FROM runs NATURAL JOIN (SELECT 1 AS job)", {"runs"}),
        ("SELECT * FROM images i, anomalies", {"images", "anomalies"}),
    ],
)
def test_only_what_is_named_is_opened(held: Views, statement: str, named: set[str]) -> None:
    assert set(held.named(statement)) == named


def test_a_join_by_a_common_column_is_answered(held: Views) -> None:
    asked = "SELECT count(*) AS n FROM images JOIN embeddings USING (image_id, dataset)"
    assert held.sql(asked).to_pylist() == [{"n": 600}]
    assert held._opened == {"images", "embeddings"}
