from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import Schema
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.engine.commit import append_rows
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.schemas.catalog import ALIASES
from jobs.schemas.dataset import images_spec, split_of
from jobs.tables import delta_log
from jobs.tables.conflicts import CommitConflict
from jobs.tables.delta import Snapshot, Table, _added
from jobs.tables.shards import write_shard


def alias_rows(count: int, start: int = 0) -> pa.Table:
    rows = [
        {"sequence": i, "model": "m", "alias": "a", "version": str(i), "reason": "", "job_id": "j"}
        for i in range(start, start + count)
    ]
    return pa.Table.from_pylist(rows, schema=ALIASES.schema)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(LakePaths(tmp_path.as_uri()).catalog("aliases"), ALIASES)


def test_a_snapshot_stays_what_it_was_while_the_table_goes_on(table: Table) -> None:
    first = table.ensure()
    one = first.commit("job-1", [write_shard(table.uri, ALIASES, alias_rows(2), "a")], {})
    held = table.snapshot()
    assert held is not None
    assert held.version == one
    held.commit("job-2", [write_shard(table.uri, ALIASES, alias_rows(3), "b")], {})
    old, new = table.snapshot(one), table.snapshot()
    assert old is not None
    assert new is not None
    assert (old.partition_rows({}), new.partition_rows({})) == (2, 5)
    assert new.version_of("job-1") == one
    assert new.last_commit()["job_id"] == "job-2"


def test_a_commit_on_an_old_snapshot_meets_a_conflict(table: Table) -> None:
    first, second = table.ensure(), table.ensure()
    first.commit("job-1", [], {})
    with pytest.raises(CommitConflict):
        second.commit("job-2", [write_shard(table.uri, ALIASES, alias_rows(1), "a")], {})
    held = table.snapshot()
    assert held is not None
    assert held.has("job-1")
    assert not held.has("job-2")
    assert held.partition_rows({}) == 0


def test_rows_of_many_writers_land_once_each(table: Table) -> None:
    errors: list[BaseException] = []

    def write(i: int) -> None:
        rows = alias_rows(1, i).to_pylist()
        try:
            for _ in range(2):  # a second call of the same job adds nothing
                append_rows(table, f"job-{i}", rows)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    held = table.snapshot()
    assert held is not None
    rows = held.read(["sequence"])
    assert rows is not None
    assert sorted(rows["sequence"].to_pylist()) == list(range(8))


def test_a_table_that_several_create_at_once_is_there_for_all(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def create(uri: str) -> None:
        try:
            assert Table(uri, ALIASES).ensure().partition_rows({}) == 0
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    for i in range(5):
        uri = (tmp_path / f"t{i}").as_uri()
        threads = [threading.Thread(target=create, args=(uri,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_staged_pixels_are_fixed_size_in_the_file_and_binary_in_the_table(tmp_path) -> None:
    spec = images_spec((2, 3, 1), pa.schema([pa.field("label", pa.int64())]))
    table = Table((tmp_path / "images").as_uri(), spec)
    head = table.ensure()
    row = dict.fromkeys(spec.schema.names) | {"image_id": "ab", "image": b"123456"}
    rows = pa.Table.from_pylist([row], schema=spec.schema)
    output = write_shard(table.uri, spec, rows, "x", metadata={"latentlake.shape": "[2, 3, 1]"})
    head.commit("job", [output], {})
    held = table.snapshot()
    assert held is not None
    file = pq.ParquetFile(tmp_path / "images" / "x.parquet")
    assert file.schema.column(1).physical_type == "FIXED_LEN_BYTE_ARRAY"
    assert b"ARROW:schema" not in file.metadata.metadata
    assert file.metadata.metadata[b"latentlake.shape"] == b"[2, 3, 1]"
    assert pa.types.is_binary(held.schema.field("image").type)
    assert held.schema.field("image").metadata[b"shape"] == b"[2, 3, 1]"
    assert output.stats["minValues"]["image_id"] == "ab"


def test_another_image_size_or_column_type_is_refused(tmp_path: Path) -> None:
    uri = (tmp_path / "images").as_uri()
    head = Table(uri, images_spec((2, 3, 1), pa.schema([pa.field("label", pa.int64())]))).ensure()
    head.commit("job", [], {})
    with pytest.raises(InputError, match=r"shape \[2, 3, 1\] in the table, \[4, 3, 1\]"):
        Table(uri, images_spec((4, 3, 1), pa.schema([pa.field("label", pa.int64())]))).ensure()
    with pytest.raises(InputError, match="'label' would be string, but the table has int64"):
        Table(uri, images_spec((2, 3, 1), pa.schema([pa.field("label", pa.string())]))).ensure()


def test_the_first_commit_brings_its_own_columns_and_the_second_does_not(tmp_path) -> None:
    uri = (tmp_path / "images").as_uri()
    first = images_spec((2, 3, 1), pa.schema([pa.field("label", pa.int64())]))
    other = images_spec((4, 3, 1), pa.schema([pa.field("label", pa.string())]))
    Table(uri, first).ensure()
    ours, rivals = Table(uri, other).ensure(), Table(uri, first).ensure()
    ours.commit("job", [], {}, schema=Table(uri, other).delta_schema)
    held = Table(uri, other).ensure()
    assert held.is_published
    assert held.schema.field("label").type == pa.string()
    assert held.schema.field("image").metadata[b"shape"] == b"[4, 3, 1]"
    assert held.handle.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    with pytest.raises(CommitConflict):
        rivals.commit("rival", [], {}, schema=Table(uri, first).delta_schema)
    with pytest.raises(InputError, match="shape"):
        Table(uri, first).ensure()


def test_splits_follow_the_id_alone_in_the_stated_shares() -> None:
    import hashlib

    ids = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    found = [split_of(image_id) for image_id in ids]
    for split, share in (("train", 80), ("validation", 5), ("calibration", 10), ("test", 5)):
        assert abs(found.count(split) / 20_000 - share / 100) < 0.01
    assert found == [split_of(image_id) for image_id in ids]


@given(held=st.integers(1, 6), later=st.integers(0, 6), widened=st.booleans())
@settings(max_examples=20)
def test_an_older_snapshot_tells_its_own_versions(held: int, later: int, widened: bool) -> None:
    """Whatever others have committed since: deltalake's history numbers theirs as its own."""
    with tempfile.TemporaryDirectory() as folder:
        table = Table(LakePaths(Path(folder).as_uri()).catalog("aliases"), ALIASES)
        table.ensure()
        for number in range(1, held + 1):
            _newest(table).commit(f"job-{number}", [], {"commit": f"c{number}"})
        old = _newest(table)
        if widened:
            _added(_newest(table).handle, list(Schema.from_arrow(WIDER).fields))
        for number in range(held + 1, held + later + 1):
            _newest(table).commit(f"job-{number}", [], {"commit": f"c{number}"})
        told = list(old.history())
        assert [entry["version"] for entry in told] == list(range(held, -1, -1))
        named = [entry["job_id"] for entry in told if "job_id" in entry]
        assert named == [f"job-{number}" for number in range(held, 0, -1)]
        assert old.last_commit()["commit"] == f"c{held}"
        for number in range(1, held + 1):
            assert old.version_of(f"job-{number}") == number
        assert not any(old.has(f"job-{held + number}") for number in range(1, later + 1))
        assert old.commits == held


def _newest(table: Table) -> Snapshot:
    found = table.snapshot()
    assert found is not None
    return found


WIDER = pa.schema([pa.field("later", pa.string())])


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_damaged_entry_of_the_log_is_told_and_never_an_empty_commit(
    table: Table, cut: int
) -> None:
    table.ensure()
    for number in (1, 2):
        _newest(table).commit(f"job-{number}", [], {})
    held = _newest(table)
    path = local_path(delta_log.entry_uri(table.uri, 1))
    assert path is not None
    path.write_bytes(path.read_bytes().rstrip()[:cut])
    with pytest.raises(InputError, match=r"0001\.json is damaged"):
        list(held.history())
