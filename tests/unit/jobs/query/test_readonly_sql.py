"""A stranger's SQL reads the views, and does nothing else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.query import readonly_sql
from jobs.query.readonly_sql import GuardedViews
from tests.helpers import write_source
from tests.inline import InlineStage
from tests.limits import SOON_S

SECONDS = 20.0


@pytest.fixture
def guarded(staged: LakePaths) -> GuardedViews:
    return GuardedViews(staged)


def root_of(views: GuardedViews) -> Path:
    root = local_path(views.lake.uri)
    assert root is not None
    return root


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_views_answer_and_long_answers_are_cut_off(guarded: GuardedViews) -> None:
    found, more = guarded.ask("SELECT count(*) AS n FROM images", 10, SECONDS)
    assert (found.to_pylist(), more) == ([{"n": 600}], False)
    found, more = guarded.ask("FROM images SELECT image_id", 10, SECONDS)
    assert (len(found), more) == (10, True)
    found, more = guarded.ask("SELECT image_id FROM images LIMIT 10", 10, SECONDS)
    assert (len(found), more) == (10, False)
    for other in ("SHOW TABLES", "DESCRIBE images", "WITH r AS (FROM runs) SELECT job FROM r"):
        assert guarded.ask(other, 10, SECONDS)[0].num_rows


def test_a_view_that_only_a_text_names_is_found(guarded: GuardedViews) -> None:
    found, _ = guarded.ask("SELECT * FROM query('SELECT job FROM runs')", 10, SECONDS)
    assert found["job"].to_pylist() == ["stage"]


def test_what_was_published_since_is_there(guarded: GuardedViews, tmp_path: Path) -> None:
    asked = "SELECT count(*) AS n FROM images"
    assert guarded.ask(asked, 1, SECONDS)[0]["n"].to_pylist() == [600]
    write_source(tmp_path / "more" / "a.parquet", range(600, 610))
    runner.run(InlineStage(guarded.lake, tmp_path / "more", night="2026-01-02"))
    assert guarded.ask(asked, 1, SECONDS)[0]["n"].to_pylist() == [610]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_json('{root}/models/m/bundles/*/model.json')",
        "SELECT * FROM read_text('{root}/datasets/d/images/_delta_log/00000000000000000001.json')",
        "SELECT * FROM read_parquet('s3://bucket/a.parquet')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM enable_logging(storage = 'file', storage_path = '{out}')",
        "SELECT getenv('HOME')",
        "SELECT * FROM statement",
        "COPY (SELECT 1) TO '{out}'",
        "COPY images TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY images TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1",
        "SELECT * FROM query('COPY (SELECT 1) TO ''{out}''')",
        "ATTACH '{out}'",
        "EXPORT DATABASE '{out}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW images",
        "DELETE FROM images",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT 1; DROP VIEW images",
        "",
        "SELEC",
        "SELECT nothing FROM nowhere",
    ],
)
def test_anything_else_is_refused_and_leaves_no_trace(
    guarded: GuardedViews, tmp_path: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = root_of(guarded)
    guarded.ask("SELECT count(*) FROM images", 1, SECONDS)
    (first, *_) = sorted((root / "datasets" / "d" / "images").glob("*.parquet"))
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"^SQL: "):
        guarded.ask(statement.format(root=root, out=tmp_path / "out", file=first), 10, SECONDS)
    assert files(tmp_path) == before


def test_too_long_a_question_ends_and_the_next_one_is_answered(guarded: GuardedViews) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="no answer within 1 s"):
        guarded.ask("SELECT count(*) FROM range(10000000) a, range(10000000) b", 1, 1.0)
    assert time.monotonic() - started < SOON_S
    assert guarded.ask("SELECT 1 AS n", 1, SECONDS)[0]["n"].to_pylist() == [1]


def test_what_needs_too_much_memory_ends_and_spills_nowhere(
    guarded: GuardedViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readonly_sql, "GUARD", readonly_sql.GUARD.replace("4GB", "50MB"))
    before = files(tmp_path)
    with pytest.raises(InputError, match="Out of Memory"):
        guarded.ask("SELECT list(a) FROM range(30000000) t(a)", 10, SECONDS)
    assert files(tmp_path) == before


def test_threads_may_share_it(guarded: GuardedViews) -> None:
    def ask(number: int) -> int:
        found, _ = guarded.ask(f"SELECT count(*) + {number} AS n FROM images", 1, SECONDS)
        return found["n"].to_pylist()[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [600 + number for number in range(8)]


def test_who_waits_too_long_for_another_question_is_told(guarded: GuardedViews) -> None:
    with guarded._asking, pytest.raises(InputError, match="another question is still running"):
        guarded.ask("SELECT 1", 1, 0.1)
    assert guarded.ask("SELECT 1 AS n", 1, SECONDS)[0]["n"].to_pylist() == [1]
