"""stage as a whole, but for Ray: what is staged, refused, kept once, and how it is laid out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.engine import runner
from jobs.errors import InputError, JobError
from jobs.query import views
from jobs.tables.delta import open_snapshot
from tests.helpers import image_bytes, labels_of, staged_labels, write_source
from tests.inline import InlineStage


def test_every_image_is_staged_once_and_a_rerun_has_nothing_to_do(lake, source) -> None:
    report = runner.run(InlineStage(lake, source.parent))
    assert report.counts["rows_in"] == report.counts["staged"] == 300
    assert report.units == 3
    assert staged_labels(lake) == labels_of(range(300))
    again = InlineStage(lake, source.parent, night="2026-01-02")
    assert runner.run(again).units == 0
    assert again.executed == []
    assert not list((Path(lake.uri.removeprefix("file://")) / "units").iterdir())


def test_a_new_file_is_the_only_work_of_the_next_night(lake, source) -> None:
    runner.run(InlineStage(lake, source.parent))
    write_source(source.parent / "b.parquet", range(290, 350))
    report = runner.run(InlineStage(lake, source.parent, night="2026-01-02"))
    assert report.counts["rows_in"] == 60
    assert report.counts["staged"] == 50
    assert report.counts["duplicates"] == 10
    assert staged_labels(lake) == labels_of(range(350))
    nights = views.sql(lake, "SELECT night, count(*) AS n FROM images GROUP BY ALL ORDER BY ALL")
    assert nights.to_pylist() == [
        {"night": "2026-01-01", "n": 300},
        {"night": "2026-01-02", "n": 50},
    ]


def test_the_same_image_in_several_units_is_kept_once_where_it_came_first(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "a.parquet", [*range(150), *range(40)])  # within one file
    write_source(tmp_path / "s" / "b.parquet", range(100, 180))  # and across files
    report = runner.run(InlineStage(lake, tmp_path / "s", rows_per_unit=50))
    assert report.counts["rows_in"] == 270
    assert report.counts["staged"] == 180
    assert report.counts["duplicates"] == 90
    assert staged_labels(lake) == labels_of(range(180))
    places = views.sql(
        lake,
        """SELECT i.source_uri = s.source_uri AND i.source_row = s.source_row AS first, s.fate,
                  count(*) AS n FROM sources s JOIN images i USING (image_id)
           GROUP BY ALL ORDER BY ALL""",
    ).to_pylist()
    assert places == [
        {"first": False, "fate": "duplicate", "n": 90},
        {"first": True, "fate": "staged", "n": 180},
    ]
    late = views.sql(
        lake, "SELECT max(source_row) AS r FROM images WHERE source_uri LIKE '%a.parquet'"
    ).to_pylist()
    assert late == [{"r": 149}]


def test_broken_images_go_to_quarantine_with_their_place_and_reason(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(300), broken=[7, 150, 299])
    report = runner.run(InlineStage(lake, tmp_path / "s"))
    assert report.counts["refused"] == report.counts["refused_truncated"] == 3
    assert report.counts["staged"] == 297
    rows = views.sql(
        lake, "SELECT source_row, reason, byte_length > 0 AS sized FROM quarantine ORDER BY 1"
    ).to_pylist()
    assert [row["source_row"] for row in rows] == [7, 150, 299]
    assert all(row["reason"] == "truncated" and row["sized"] for row in rows)
    assert runner.run(InlineStage(lake, tmp_path / "s")).units == 0


def test_too_many_refusals_publish_nothing_and_keep_the_work(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(200), broken=range(0, 200, 2))
    with pytest.raises(JobError, match=r"100 of 200 rows refused \(50.0%; truncated: 100\)"):
        runner.run(InlineStage(lake, tmp_path / "s"))
    for table in ("images", "sources", "quarantine"):
        snapshot = open_snapshot(lake.dataset("d", table))
        assert snapshot is None or snapshot.partition_rows({}) == 0
    allowed = InlineStage(lake, tmp_path / "s", max_refused=0.5)
    report = runner.run(allowed)
    assert allowed.executed == []  # what was done before is used
    assert report.counts["staged"] == 100


def test_a_column_of_another_type_is_refused_with_file_and_column(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(10))
    kind = pa.struct([("bytes", pa.binary())])
    rows = pa.array([{"bytes": data} for data in image_bytes(range(10, 20))], kind)
    other = pa.table({"image": rows, "label": ["x"] * 10})
    pq.write_table(other, tmp_path / "s" / "b.parquet")
    with pytest.raises(JobError, match=r"1 of 2 files refused \(50.0%; schema: 1\)"):
        runner.run(InlineStage(lake, tmp_path / "s", max_refused=0.1))
    runner.run(InlineStage(lake, tmp_path / "s", max_refused=0.5))
    (row,) = views.sql(lake, "SELECT source_uri, source_row, message FROM quarantine").to_pylist()
    assert row["source_uri"].endswith("b.parquet")
    assert row["source_row"] == -1
    assert "column 'label' is string, in the dataset it is int64" in row["message"]
    assert staged_labels(lake) == labels_of(range(10))


def test_columns_are_kept_in_types_that_every_reader_has(lake, tmp_path, caplog) -> None:
    columns = {
        "image": pa.array(image_bytes(range(3))),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        "text": pa.array(["x", "y", "z"], pa.large_string()),
        "count": pa.array([1, 2, 3], pa.uint16()),
        "taken": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
        "box": pa.array([[1], [2], [3]]),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with caplog.at_level("INFO", "latentlake"):
        runner.run(InlineStage(lake, path))
    rows = views.sql(
        lake, "SELECT kind, text, count, epoch_us(taken) AS us FROM images ORDER BY source_row"
    ).to_pylist()
    assert rows[1] == {"kind": "b", "text": "y", "count": 2, "us": 0}
    assert "columns not passed through: box" in caplog.text


def test_a_damaged_page_costs_its_own_range_of_rows(lake, source) -> None:
    write_source(source.parent / "b.parquet", range(300, 420))
    data = bytearray(source.read_bytes())
    data[2000:2400] = b"\xff" * 400
    source.write_bytes(bytes(data))
    with pytest.raises(JobError, match=r"100 of 420 rows refused"):
        runner.run(InlineStage(lake, source.parent))
    report = runner.run(InlineStage(lake, source.parent, max_refused=0.5))
    assert report.counts["refused_schema"] == 100
    assert staged_labels(lake) == labels_of(range(100, 420))
    rows = views.sql(lake, "SELECT source_row FROM quarantine ORDER BY 1").to_pylist()
    assert [row["source_row"] for row in rows] == list(range(100))
    assert runner.run(InlineStage(lake, source.parent)).units == 0


def test_a_plain_binary_column_is_found_and_strings_pass_through(lake, tmp_path) -> None:
    path = tmp_path / "s" / "plain.parquet"
    path.parent.mkdir()
    pq.write_table(
        pa.table(
            {
                "id": [f"n{i}" for i in range(20)],
                "photo": pa.array(image_bytes(range(20)), pa.large_binary()),
                "weight": [0.5] * 20,
                "nested": [[1, 2]] * 20,
            }
        ),
        path,
    )
    runner.run(InlineStage(lake, path))
    rows = views.sql(lake, "SELECT id, weight FROM images ORDER BY source_row").to_pylist()
    assert rows == [{"id": f"n{i}", "weight": 0.5} for i in range(20)]


def test_a_source_without_images_lists_its_columns(lake, tmp_path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"name": ["a"], "size": [1]}), path)
    with pytest.raises(InputError, match=r"no image column.*name: string, size: int64"):
        runner.run(InlineStage(lake, path))
    write_source(tmp_path / "u.parquet", range(3))
    with pytest.raises(InputError, match=r"no image column 'photo'.*image: struct"):
        runner.run(InlineStage(lake, tmp_path / "u.parquet", image_column="photo"))


def test_empty_and_unreadable_sources_are_told_apart(lake, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty: it has no files"):
        runner.run(InlineStage(lake, tmp_path / "empty"))
    write_source(tmp_path / "none" / "a.parquet", [])
    with pytest.raises(InputError, match="is empty: no file has a row"):
        runner.run(InlineStage(lake, tmp_path / "none"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    with pytest.raises(InputError, match=r"bad.parquet is not a readable Parquet file"):
        runner.run(InlineStage(lake, tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match="does not exist"):
        runner.run(InlineStage(lake, tmp_path / "nowhere"))


def test_files_that_lack_a_passthrough_column_hold_null_there(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(10))
    kind = pa.struct([("bytes", pa.binary())])
    bare = pa.array([{"bytes": data} for data in image_bytes(range(10, 20))], kind)
    pq.write_table(pa.table({"image": bare}), tmp_path / "s" / "b.parquet")
    runner.run(InlineStage(lake, tmp_path / "s"))
    known = labels_of(range(10))
    for image_id, label in staged_labels(lake).items():
        assert label == known.get(image_id)


def test_another_size_for_the_same_dataset_is_refused(lake, source) -> None:
    runner.run(InlineStage(lake, source.parent))
    write_source(source.parent / "b.parquet", range(300, 310))
    with pytest.raises(InputError, match=r"shape \[28, 28, 1\] in the table, \[32, 32, 1\]"):
        runner.run(InlineStage(lake, source.parent, height=32, width=32))
    assert staged_labels(lake) == labels_of(range(300))


def test_the_first_unit_runs_before_the_last_file_is_listed(lake, tmp_path, monkeypatch) -> None:
    from jobs.stage import plan as stage_plan

    for number in range(60):
        write_source(tmp_path / "s" / f"{number:02}.parquet", [number])
    listed: list[str] = []
    real = stage_plan.list_files

    def listing(source):
        for file in real(source):
            listed.append(file.uri)
            yield file

    monkeypatch.setattr(stage_plan, "list_files", listing)
    monkeypatch.setattr(stage_plan, "FIRST_FILES", 3)
    monkeypatch.setattr(stage_plan, "LOOKS_AHEAD", 4)
    at_unit: list[int] = []

    class Watched(InlineStage):
        def execute(self, plan, units) -> None:
            def watched():
                for unit in units:
                    at_unit.append(len(listed))
                    yield unit

            super().execute(plan, watched())

    runner.run(Watched(lake, tmp_path / "s", rows_per_unit=10))
    assert len(at_unit) == 6
    assert at_unit[0] < 20
    assert at_unit == sorted(at_unit)
    assert staged_labels(lake) == labels_of(range(60))


def test_many_small_files_share_shards_of_balanced_row_groups(lake, tmp_path) -> None:
    from jobs.stage.plan import shard_rows

    for number in range(40):
        write_source(tmp_path / "s" / f"{number:02}.parquet", range(10 * number, 10 * number + 10))
    runner.run(InlineStage(lake, tmp_path / "s", rows_per_unit=None, height=64, width=64))
    snapshot = open_snapshot(lake.dataset("d", "images"))
    assert snapshot is not None
    assert len(snapshot.paths()) == 1
    assert (
        shard_rows((64, 64, 3)) * 64 * 64 * 3
        <= 128 << 20
        < (shard_rows((64, 64, 3)) + 1) * 64**2 * 3
    )
    assert shard_rows((4, 4, 1)) == 100_000


@pytest.mark.slow
def test_row_groups_hold_sixteen_mebibytes_of_pixels(lake, tmp_path) -> None:
    write_source(tmp_path / "a.parquet", range(200))
    runner.run(InlineStage(lake, tmp_path / "a.parquet", height=256, width=256, channels=3))
    snapshot = open_snapshot(lake.dataset("d", "images"))
    assert snapshot is not None
    for uri in snapshot.file_uris():
        metadata = pq.ParquetFile(uri.removeprefix("file://")).metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert set(groups[:-1]) == {(16 << 20) // (256 * 256 * 3)}
        assert sum(groups) == 100
