"""Stage beside rivals, after crashes, and on sources that change while they are read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.datasets.card import dataset_card
from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.errors import InputError, JobError
from jobs.lake.paths import LakePaths
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.sources.pinned_read import SourceChanged
from jobs.tables.delta import open_snapshot
from tests.helpers import image_bytes, image_ids, staged_ids, write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage, InlineTrain, OvertakenStage
from tests.unit.jobs.stage.test_removals import run, write

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


def live(lake: LakePaths) -> list[dict]:
    return views.sql(
        lake,
        "SELECT source_uri, source_row, etag, fate FROM sources WHERE removed_night IS NULL",
    ).to_pylist()


def crash_before_commit(work) -> None:
    def crash(*what, **how):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_commit, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            work()


def hide(monkeypatch, when) -> None:
    """Parts of files for which `when` holds are found replaced."""
    from jobs.sources import parquet

    real = parquet.read

    def read(part, *more):
        if when(part):
            raise SourceChanged(part.uri)
        return real(part, *more)

    monkeypatch.setattr(parquet, "read", read)


def test_new_labels_arrive_although_a_compaction_came_between(lake, folder) -> None:
    write(folder / "a.parquet", range(20))
    run(lake, folder, "2026-01-01")
    write(folder / "b.parquet", range(20, 40))
    run(lake, folder, "2026-01-01")
    write(folder / "a.parquet", range(20), labels=[1000 + n for n in range(20)])
    runner.run(
        OvertakenStage(lake, folder, InlineCompact.of(lake), night="2026-01-02", max_removed=1.0)
    )
    assert staged_ids(lake) == set(image_ids(range(40)))
    labels = views.sql(lake, "SELECT label FROM images ORDER BY 1")["label"].to_pylist()
    assert labels == [*range(20, 40), *range(1000, 1020)]


def test_a_rival_that_read_another_version_leaves_every_row_once(lake, folder) -> None:
    write(folder / "a.parquet", range(10))

    class Late(InlineStage):
        done = False

        def settle(self, plan, completions, head):
            if not self.done:
                self.done = True
                write(folder / "a.parquet", range(5, 15))
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(records, "unfinished_plans", lambda *a: [])
                    run(lake, folder, "2026-01-02")
            return super().settle(plan, completions, head)

    runner.run(Late(lake, folder, "2026-01-01", max_removed=1.0))
    assert staged_ids(lake) == set(image_ids(range(5, 15)))
    assert len(live(lake)) == 10
    assert run(lake, folder, "2026-01-03").units == 0


def test_parts_of_a_file_are_published_together_or_not_at_all(lake, folder, monkeypatch) -> None:
    write(folder / "a.parquet", range(40))
    write(folder / "k.parquet", range(50, 60))
    hide(monkeypatch, lambda part: part.uri.endswith("a.parquet") and part.start == 20)
    run(lake, folder, rows_per_unit=20)
    assert staged_ids(lake) == set(image_ids(range(50, 60)))  # the other files do not wait for it
    monkeypatch.undo()
    run(lake, folder, rows_per_unit=20)
    assert staged_ids(lake) == set(image_ids([*range(40), *range(50, 60)]))


def test_what_a_unit_skipped_stays_although_the_unit_is_corrected(
    lake, folder, monkeypatch
) -> None:
    write(folder / "a.parquet", range(10))
    write(folder / "b.parquet", range(10, 20))
    run(lake, folder, "2026-01-01")
    write(folder / "b.parquet", range(10, 21))
    write(folder / "aa.parquet", [30, *range(31, 41)])
    write(folder / "bb.parquet", [30])  # in one unit with b, and held by the one before
    hide(monkeypatch, lambda part: part.uri.endswith("/b.parquet"))
    run(lake, folder, "2026-01-02", rows_per_unit=12)
    assert staged_ids(lake) == set(image_ids([*range(20), *range(30, 41)]))
    monkeypatch.undo()
    run(lake, folder, "2026-01-03", rows_per_unit=12)
    assert staged_ids(lake) == set(image_ids([*range(21), *range(30, 41)]))


def test_a_file_that_changes_while_it_is_looked_at_has_not_gone(lake, folder, monkeypatch) -> None:
    from jobs.sources import parquet

    write(folder / "a.parquet", range(10))
    write(folder / "b.parquet", range(10, 20))
    run(lake, folder, "2026-01-01")
    write(folder / "b.parquet", range(10, 21))
    write(folder / "c.parquet", [30])
    real = parquet.look

    def look(file, layout):
        if file.uri.endswith("b.parquet"):
            raise SourceChanged(file.uri)
        return real(file, layout)

    monkeypatch.setattr(parquet, "look", look)
    run(lake, folder, "2026-01-02")
    assert staged_ids(lake) == set(image_ids([*range(20), 30]))


def test_a_changed_file_of_another_format_has_not_gone(lake, folder) -> None:
    folder.mkdir()
    for number, data in enumerate(image_bytes(range(5))):
        (folder / f"{number}.png").write_bytes(data)
    run(lake, folder, "2026-01-01", format="files")
    (folder / "0.png").write_bytes(image_bytes([9])[0])
    write(folder / "p.parquet", range(20, 30))
    run(lake, folder, "2026-01-02", format="parquet")
    assert staged_ids(lake) == set(image_ids([*range(5), *range(20, 30)]))
    run(lake, folder, "2026-01-03", format="files")
    assert staged_ids(lake) == set(image_ids([*range(1, 5), 9, *range(20, 30)]))


def test_an_unfinished_plan_gives_way_to_a_source_that_changed_again(lake, folder) -> None:
    write(folder / "a.parquet", range(10))
    write(folder / "k.parquet", range(10, 20))
    run(lake, folder, "2026-01-01")
    write(folder / "a.parquet", range(11))
    crash_before_commit(lambda: run(lake, folder, "2026-01-02"))
    write(folder / "a.parquet", range(12))
    run(lake, folder, "2026-01-03", max_removed=0.0)
    assert staged_ids(lake) == set(image_ids(range(20)))
    images = open_snapshot(lake.dataset("d", "images"))
    assert images is not None
    snapshots = [open_snapshot(images.uri, version) for version in range(1, images.version + 1)]
    # No snapshot in between lacks the images for a moment.
    assert {s.partition_rows({}) for s in snapshots if s is not None} == {20}


def test_an_unfinished_first_plan_does_not_bind_columns_or_size(lake, folder) -> None:
    write(folder / "a.parquet", range(10))
    crash_before_commit(lambda: run(lake, folder, "2026-01-01"))
    write(folder / "a.parquet", range(10), labels=[f"cat{n}" for n in range(10)])
    run(lake, folder, "2026-01-02", height=32, width=32)
    labels = views.sql(lake, "SELECT label FROM images")["label"].to_pylist()
    assert sorted(labels) == sorted(f"cat{n}" for n in range(10))


def test_refusals_of_a_replaced_file_leave_quarantine_with_it(lake, folder) -> None:
    write_source(folder / "a.parquet", range(20), broken=[3])
    run(lake, folder, "2026-01-01", max_refused=0.5)
    (folder / "a.parquet").unlink()
    write_source(folder / "a.parquet", range(21), broken=[5])
    run(lake, folder, "2026-01-02", max_refused=0.5)
    rows = views.sql(lake, "SELECT source_row FROM quarantine").to_pylist()
    assert rows == [{"source_row": 5}]
    card = dataset_card(lake, "d")
    assert card["refused"] == {"truncated": 1}
    assert card["source_rows"]["refused"] == 1


def test_refusals_of_the_version_that_a_rival_published_stay(lake, folder) -> None:
    write_source(folder / "a.parquet", range(20), broken=[3])
    few = {"max_refused": 0.5, "max_removed": 1.0}
    run(lake, folder, "2026-01-01", **few)
    (folder / "a.parquet").unlink()
    write_source(folder / "a.parquet", range(21), broken=[5])
    rival = InlineStage(lake, folder, "2026-01-03", **few)
    runner.run(OvertakenStage(lake, folder, rival, night="2026-01-02", **few))
    rows = views.sql(lake, "SELECT source_row FROM quarantine").to_pylist()
    assert rows == [{"source_row": 5}]


@pytest.mark.parametrize("name", ["a.parquet", "z.parquet"])
def test_a_plan_that_removed_too_much_gives_way_when_the_file_is_back(lake, folder, name) -> None:
    write(folder / "a.parquet", range(20))
    write(folder / "b.parquet", range(20, 40))
    run(lake, folder, "2026-01-01")
    (folder / "a.parquet").unlink()
    with pytest.raises(JobError, match="have left the source"):
        run(lake, folder, "2026-01-02", max_removed=0.1)
    write(folder / name, range(20))
    run(lake, folder, "2026-01-03", max_removed=0.1)
    assert staged_ids(lake) == set(image_ids(range(40)))


def test_a_plan_of_other_columns_than_the_dataset_got_is_left(lake, folder, tmp_path) -> None:
    write(folder / "a.parquet", range(10))
    crash_before_commit(lambda: run(lake, folder, "2026-01-01"))
    write(tmp_path / "o" / "b.parquet", range(10, 20), labels=[f"c{n}" for n in range(10)])
    run(lake, tmp_path / "o", "2026-01-01")
    write(folder / "a.parquet", range(10), labels=[f"c{n}" for n in range(10)])
    run(lake, folder, "2026-01-03")
    assert staged_ids(lake) == set(image_ids(range(20)))


def test_of_two_first_jobs_of_other_sizes_one_is_told(lake, folder, tmp_path) -> None:
    write(folder / "a.parquet", range(10))
    write(tmp_path / "o" / "b.parquet", range(10, 20))
    other = InlineStage(lake, tmp_path / "o", "2026-01-01", height=32, width=32)

    class First(InlineStage):
        def execute(self, plan, units) -> None:
            super().execute(plan, units)
            engine_commit.completed_head(lake, other.tables(other.plan()))  # the other one begins

    runner.run(First(lake, folder, "2026-01-01"))
    with pytest.raises(InputError, match="shape"):
        runner.run(InlineStage(lake, tmp_path / "o", "2026-01-01", height=32, width=32))
    assert staged_ids(lake) == set(image_ids(range(10)))
    assert dataset_card(lake, "d")["image_shape"] == [28, 28, 1]


def test_columns_of_a_run_that_never_published_are_not_in_the_table(lake, folder) -> None:
    write(folder / "a.parquet", range(10))
    crash_before_commit(lambda: run(lake, folder, "2026-01-01"))
    (folder / "a.parquet").unlink()
    for number in range(2):
        images = image_bytes(range(10 * number, 10 * number + 10))
        pq.write_table(pa.table({"image": images}), folder / f"b{number}.parquet")
        run(lake, folder, f"2026-01-0{number + 2}")
    runner.run(InlineCompact.of(lake))
    assert staged_ids(lake) == set(image_ids(range(20)))
    assert "label" not in views.sql(lake, "SELECT * FROM images").column_names


@pytest.mark.parametrize("source", ["empty", "s/*.parqet"])
def test_a_source_that_never_had_a_file_is_a_mistake(lake, folder, tmp_path, source) -> None:
    write(folder / "a.parquet", range(10))
    run(lake, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it has no files"):
        run(lake, tmp_path / source)


def test_columns_come_from_the_first_files_together(lake, folder, caplog) -> None:
    (folder / "label=cat").mkdir(parents=True)
    data = image_bytes(range(4))
    (folder / "cover.png").write_bytes(data[0])
    for number in (1, 2, 3):
        (folder / "label=cat" / f"{number}.png").write_bytes(data[number])
    run(lake, folder)
    labels = views.sql(lake, "SELECT label FROM images ORDER BY source_uri")["label"].to_pylist()
    assert labels == [None, "cat", "cat", "cat"]


@pytest.mark.parametrize("spelling", ["file:{}", "file://{}/./", "file://{}"])
def test_however_a_source_is_spelt_its_removals_are_seen(lake, tmp_path, spelling: str) -> None:
    folder = tmp_path / "a b"
    write(folder / "a.parquet", range(10))
    write(folder / "b.parquet", range(10, 20))
    run(lake, spelling.format(folder), "2026-01-01")  # type: ignore[arg-type]
    (folder / "b.parquet").unlink()
    run(lake, spelling.format(folder), "2026-01-02")  # type: ignore[arg-type]
    assert staged_ids(lake) == set(image_ids(range(10)))


def test_large_row_groups_are_read_once(lake, folder, monkeypatch) -> None:
    from jobs.sources import parquet

    write(folder / "a.parquet", range(50))
    table = pq.read_table(folder / "a.parquet")
    pq.write_table(table, folder / "a.parquet", row_group_size=20)
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 100)
    work = InlineStage(lake, folder, rows_per_unit=15)
    units = work.planned_units(work.plan())
    parts = [(p.get("start", 0), p["stop"]) for unit in units for p in unit.inputs["parts"]]
    assert parts == [(0, 20), (20, 40), (40, 50)]
    run(lake, folder, rows_per_unit=15)
    assert staged_ids(lake) == set(image_ids(range(50)))


# Beside vacuum and embed


def test_vacuum_after_a_first_stage_that_crashed(lake, folder) -> None:
    write(folder / "a.parquet", range(5))
    crash_before_commit(lambda: run(lake, folder))
    assert vacuum(lake, ["d"], [], keep_days=7.0).files == 0


def test_vacuum_keeps_what_readers_read_after_a_crash(lake, folder, monkeypatch) -> None:
    write(folder / "a.parquet", range(5))
    write(folder / "b.parquet", range(5, 10))
    run(lake, folder, "2026-01-01")
    (folder / "a.parquet").unlink()

    def crash(*what):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_commit, "record_run", crash)
    with pytest.raises(KeyboardInterrupt):
        run(lake, folder, "2026-01-02")
    monkeypatch.undo()
    vacuum(lake, ["d"], [], keep_days=0.0, grace_s=-1.0)
    assert staged_ids(lake) == set(image_ids(range(10)))  # until a run completes the removal


def test_vacuum_keeps_the_snapshot_of_an_unfinished_training(lake, folder, monkeypatch) -> None:
    write_source(folder / "a.parquet", range(300))
    run(lake, folder, "2026-01-01")
    pinned = open_snapshot(lake.dataset("d", "images"))
    assert pinned is not None

    def crash(*what):
        raise KeyboardInterrupt

    monkeypatch.setattr(InlineTrain, "fit", crash)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(lake))
    monkeypatch.undo()
    (folder / "a.parquet").unlink()
    write_source(folder / "b.parquet", range(280, 320))
    run(lake, folder, "2026-01-02")
    vacuum(lake, ["d"], [], keep_days=0.0, grace_s=-1.0)
    assert pinned.read(["image_id"]) is not None
    runner.run(InlineTrain(lake))


@pytest.mark.slow
def test_an_embed_of_an_older_snapshot_removes_nothing_newer(
    trained: LakePaths, trained_source
) -> None:
    crash_before_commit(lambda: runner.run(InlineEmbed(trained)))
    write_source(trained_source / "new.parquet", range(2000, 2030))
    try:
        runner.run(InlineStage(trained, trained_source, "2026-01-02"))
        runner.run(InlineEmbed(trained, "2026-01-02", reconstructions="all"))
        runner.run(InlineEmbed(trained, "2026-01-02"))
    finally:
        (trained_source / "new.parquet").unlink()
    for table in ("images", "embeddings", "reconstructions"):
        assert len(views.sql(trained, f"SELECT image_id FROM {table}")) == 630
