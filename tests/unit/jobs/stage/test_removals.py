"""What leaves a source leaves the next snapshot, and what embed made of it; nothing else does."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.engine import records, runner
from jobs.engine.records import completed_units, discard_completion, unfinished_plans
from jobs.errors import JobError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables.delta import open_snapshot
from tests.helpers import image_bytes, image_ids, staged_ids, write_source
from tests.inline import InlineEmbed, InlineStage, OvertakenStage

pytestmark = pytest.mark.slow


def write(path: Path, numbers, labels=None) -> None:
    """Always another file than the one before, as a store's new etag tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    columns: dict = {"image": image_bytes(numbers)}
    columns["label"] = labels if labels is not None else list(numbers)
    pq.write_table(pa.table(columns), path)


def run(lake: LakePaths, source: Path, night: str = "2026-01-02", **settings):
    return runner.run(InlineStage(lake, source, night, **{"max_removed": 1.0, **settings}))


def test_images_of_a_removed_file_leave_and_earlier_snapshots_still_read(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    write(folder / "a.parquet", range(100))
    write(folder / "b.parquet", range(90, 150))
    run(lake, folder, "2026-01-01")
    before = open_snapshot(lake.dataset("d", "images"))
    assert before is not None
    (folder / "a.parquet").unlink()
    report = run(lake, folder)
    assert report.counts["removed_rows"] == 100
    assert report.counts["removed_images"] == 90
    assert staged_ids(lake) == set(image_ids(range(90, 150)))
    old = before.read(["image_id"])
    assert old is not None
    assert set(old["image_id"].to_pylist()) == set(image_ids(range(150)))
    # The images that both files had are those of the second one now.
    places = views.sql(
        lake,
        """SELECT i.source_uri LIKE '%b.parquet' AS b, i.source_row, s.fate, s.removed_night
           FROM images i JOIN sources s USING (source_uri, source_row, image_id)""",
    ).to_pylist()
    assert len(places) == 60
    assert {row["source_row"] for row in places} == set(range(60))
    assert {(row["b"], row["fate"], row["removed_night"]) for row in places} == {
        (True, "staged", None)
    }
    gone = views.sql(
        lake, "SELECT DISTINCT source_uri, removed_night FROM sources WHERE removed_night NOT NULL"
    ).to_pylist()
    assert [(Path(r["source_uri"]).name, r["removed_night"]) for r in gone] == [
        ("a.parquet", "2026-01-02")
    ]
    assert run(lake, folder).units == 0


def test_a_replaced_file_gives_its_new_rows_and_their_new_labels(lake, tmp_path) -> None:
    path = tmp_path / "s" / "a.parquet"
    write(path, range(50))
    run(lake, path.parent, "2026-01-01")
    write(path, range(10, 60), labels=[1000 + n for n in range(10, 60)])
    report = run(lake, path.parent)
    assert staged_ids(lake) == set(image_ids(range(10, 60)))
    assert report.counts["removed_images"] == 10
    assert report.counts["rows_in"] == report.counts["staged"] == 50
    labels = views.sql(lake, "SELECT label FROM images ORDER BY 1")["label"].to_pylist()
    assert labels == [1000 + n for n in range(10, 60)]


def test_a_renamed_file_keeps_its_images_in_their_new_place(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    write(folder / "a.parquet", range(80))
    run(lake, folder, "2026-01-01")
    (folder / "a.parquet").rename(folder / "z.parquet")
    report = run(lake, folder, max_removed=0.0)
    assert staged_ids(lake) == set(image_ids(range(80)))
    assert report.counts["removed_images"] == 0
    assert report.counts["duplicates"] == 80
    places = views.sql(lake, "SELECT DISTINCT source_uri, night FROM images").to_pylist()
    assert [Path(row["source_uri"]).name for row in places] == ["z.parquet"]
    live = views.sql(lake, "SELECT fate FROM sources WHERE removed_night IS NULL").to_pylist()
    assert {row["fate"] for row in live} == {"staged"}
    assert run(lake, folder).units == 0


def test_a_removed_image_may_come_back(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    write(folder / "a.parquet", range(20))
    write(folder / "b.parquet", range(20, 30))
    run(lake, folder, "2026-01-01")
    shutil.copy2(folder / "a.parquet", tmp_path / "kept")
    (folder / "a.parquet").unlink()
    run(lake, folder, "2026-01-02")
    assert staged_ids(lake) == set(image_ids(range(20, 30)))
    shutil.copy2(tmp_path / "kept", folder / "a.parquet")  # the very same file, size and time
    run(lake, folder, "2026-01-03")
    assert staged_ids(lake) == set(image_ids(range(30)))


def test_staging_one_source_never_removes_of_another(lake, tmp_path) -> None:
    write(tmp_path / "s" / "a.parquet", range(10))
    write(tmp_path / "s2" / "b.parquet", range(10, 20))
    write(tmp_path / "s" / "sub" / "c.parquet", range(20, 30))
    for source in ("s", "s2"):
        run(lake, tmp_path / source)
    (tmp_path / "s2" / "b.parquet").rename(tmp_path / "elsewhere.parquet")
    write(tmp_path / "s2" / "d.parquet", range(30, 31))
    assert run(lake, tmp_path / "s").units == 0
    assert run(lake, f"{tmp_path}/s/sub/*.parquet").units == 0  # type: ignore[arg-type]
    assert staged_ids(lake) == set(image_ids(range(30)))
    run(lake, tmp_path / "s2")
    assert staged_ids(lake) == set(image_ids([*range(10), *range(20, 31)]))


def test_too_many_removals_publish_nothing(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    for n, name in enumerate("abcde"):
        write(folder / f"{name}.parquet", range(20 * n, 20 * n + 20))
    run(lake, folder)
    (folder / "a.parquet").unlink()
    with pytest.raises(JobError, match=r"20 of 100 images have left the source \(20.0%\)"):
        run(lake, folder, max_removed=0.1)
    assert staged_ids(lake) == set(image_ids(range(100)))
    run(lake, folder, max_removed=0.2)
    assert staged_ids(lake) == set(image_ids(range(20, 100)))
    assert records.unfinished_plans(lake, "stage", "d") == []


def test_a_source_that_is_empty_all_of_a_sudden_removes_nothing_unasked(lake, tmp_path) -> None:
    write(tmp_path / "s" / "a.parquet", range(10))
    run(lake, tmp_path / "s")
    (tmp_path / "s" / "a.parquet").unlink()
    with pytest.raises(JobError, match=r"100\.0%"):
        run(lake, tmp_path / "s", max_removed=0.1)
    assert staged_ids(lake) == set(image_ids(range(10)))


@pytest.mark.parametrize("tables_committed", [0, 1, 2, 3])
def test_a_crash_in_a_removal_is_completed(lake, tmp_path, monkeypatch, tables_committed) -> None:
    from jobs.tables.delta import Snapshot

    folder = tmp_path / "s"
    write(folder / "a.parquet", range(50))
    write(folder / "b.parquet", range(40, 90))
    run(lake, folder)
    (folder / "a.parquet").unlink()
    left = [tables_committed]
    real = Snapshot.commit

    def commit(self, *what, **how):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *what, **how)

    monkeypatch.setattr(Snapshot, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        run(lake, folder, "2026-01-03")
    monkeypatch.undo()
    run(lake, folder, "2026-01-04")
    assert staged_ids(lake) == set(image_ids(range(40, 90)))
    nights = views.sql(lake, "SELECT DISTINCT removed_night FROM sources").to_pylist()
    assert {row["removed_night"] for row in nights} == {None, "2026-01-03"}


@pytest.mark.parametrize("killed", ["before it is recorded", "after it", "and it is lost"])
def test_what_leaves_is_recorded_for_the_rewrites_that_a_kill_left(lake, tmp_path, killed) -> None:
    folder = tmp_path / "s"
    write(folder / "a.parquet", range(50))
    write(folder / "b.parquet", range(40, 90))
    run(lake, folder)
    (folder / "a.parquet").unlink()

    class Killed(InlineStage):
        def close(self, plan, unit, attempt):
            if killed == "before it is recorded":
                raise KeyboardInterrupt
            return super().close(plan, unit, attempt)

        def execute(self, plan, units):
            raise KeyboardInterrupt  # there is nothing but rewrites

    with pytest.raises(KeyboardInterrupt):
        runner.run(Killed(lake, folder, "2026-01-03", max_removed=1.0))
    (plan,) = unfinished_plans(lake, "stage", "d")
    done = completed_units(lake, plan.job_id)
    assert len(done) == (killed != "before it is recorded")
    if killed == "and it is lost":
        discard_completion(lake, plan.job_id, *done)
    report = run(lake, folder, "2026-01-04")
    assert report.counts["removed_images"] == 40
    assert staged_ids(lake) == set(image_ids(range(40, 90)))
    assert run(lake, folder, "2026-01-05").units == 0


def test_a_rival_that_removes_what_this_job_took_for_known_loses_no_image(lake, tmp_path) -> None:
    """A duplicate of an image whose only occurrence the rival has just removed."""
    write(tmp_path / "s" / "a.parquet", range(50))
    write(tmp_path / "s" / "keep.parquet", range(200, 210))
    run(lake, tmp_path / "s", "2026-01-01")
    write(tmp_path / "other" / "b.parquet", range(30, 70))  # 30 to 49 are known
    (tmp_path / "s" / "a.parquet").unlink()
    rival = InlineStage(lake, tmp_path / "s", "2026-01-02", max_removed=1.0)
    late = OvertakenStage(lake, tmp_path / "other", rival, night="2026-01-02", max_removed=1.0)
    runner.run(late)
    assert staged_ids(lake) == set(image_ids([*range(30, 70), *range(200, 210)]))


def test_two_removals_at_once_end_as_one(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    write(folder / "a.parquet", range(50))
    write(folder / "b.parquet", range(40, 90))
    run(lake, folder, "2026-01-01")
    (folder / "a.parquet").unlink()
    rival = InlineStage(lake, folder, "2026-01-03", max_removed=1.0)
    late = OvertakenStage(lake, folder, rival, night="2026-01-02", max_removed=1.0)
    runner.run(late)
    assert staged_ids(lake) == set(image_ids(range(40, 90)))


@pytest.mark.slow
def test_embed_removes_what_has_left_and_nothing_else(trained: LakePaths, trained_source) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all"))
    known = views.sql(trained, "SELECT source_uri FROM images LIMIT 1").to_pylist()[0]["source_uri"]
    assert known == (trained_source / "a.parquet").as_uri()
    kept = views.sql(trained, "SELECT * FROM embeddings ORDER BY image_id")
    # The same source, one file replaced by its first 550 rows.
    whole = (trained_source / "a.parquet").read_bytes()
    try:
        write_source(trained_source / "a.parquet", range(550))
        runner.run(InlineStage(trained, trained_source, "2026-01-02", max_removed=0.2))
        report = runner.run(InlineEmbed(trained, "2026-01-02", reconstructions="all"))
    finally:
        (trained_source / "a.parquet").write_bytes(whole)
    assert report.counts["removed_embeddings"] == report.counts["removed_reconstructions"] == 50
    assert report.counts["embedded"] == 0
    for table in ("embeddings", "reconstructions"):
        held = views.sql(trained, f"SELECT image_id FROM {table}")["image_id"].to_pylist()
        assert sorted(held) == sorted(image_ids(range(550)))
    now = views.sql(trained, "SELECT * FROM embeddings ORDER BY image_id")
    mask = pa.array([i in set(image_ids(range(550))) for i in kept["image_id"].to_pylist()])
    assert now.equals(kept.filter(mask))
    again = InlineEmbed(trained, "2026-01-03", reconstructions="all")
    assert runner.run(again).units == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_after_any_nights_the_tables_are_those_of_the_source(lake, tmp_path, seed: int) -> None:
    """Random additions, replacements, renames, removals and broken rows, and a crash a night."""
    generator = random.Random(seed)
    folder = tmp_path / "s"
    held: dict[str, list[int]] = {}
    write(folder / "0.parquet", [0])
    held["0"] = [0]
    for night in range(1, 6):
        for _ in range(3):
            name = str(generator.randrange(6))
            if name in held and len(held) > 1 and generator.random() < 0.4:
                (folder / f"{name}.parquet").unlink()
                del held[name]
            elif name in held and generator.random() < 0.3:
                other = str(10 + generator.randrange(100))
                if other not in held:
                    (folder / f"{name}.parquet").rename(folder / f"{other}.parquet")
                    held[other] = held.pop(name)
            else:
                held[name] = [generator.randrange(40) for _ in range(generator.randint(1, 12))]
                write(folder / f"{name}.parquet", held[name])
        _crash_then_finish(lake, folder, f"2026-01-0{night}", generator)
        wanted = sorted({n for numbers in held.values() for n in numbers})
        assert staged_ids(lake) == set(image_ids(wanted))
        _check_places(lake, held)


def _crash_then_finish(lake: LakePaths, folder: Path, night: str, generator: random.Random) -> None:
    from jobs.stage import worker as stage_worker
    from jobs.tables.delta import Snapshot

    left = [generator.randrange(8)]

    def crashing(real):
        def call(*what, **how):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*what, **how)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "commit", crashing(Snapshot.commit))
        worker = stage_worker.StageWorker
        patch.setattr(worker, "execute", crashing(worker.execute))
        with contextlib.suppress(KeyboardInterrupt):
            run(lake, folder, night, rows_per_unit=10)
    run(lake, folder, night, rows_per_unit=10)


def _check_places(lake: LakePaths, held: dict[str, list[int]]) -> None:
    """Every source row is in the sources table once, every image at one of its occurrences."""
    live = views.sql(
        lake,
        "SELECT source_uri, source_row, image_id, fate FROM sources WHERE removed_night IS NULL",
    ).to_pylist()
    found = {(Path(r["source_uri"]).stem, r["source_row"]): r["image_id"] for r in live}
    assert len(found) == len(live)
    data = {n: i for n in range(40) for i in image_ids([n])}
    assert found == {
        (name, row): data[n] for name, numbers in held.items() for row, n in enumerate(numbers)
    }
    firsts = [r["image_id"] for r in live if r["fate"] == "staged"]
    assert len(firsts) == len(set(firsts))
    places = views.sql(lake, "SELECT source_uri, source_row, image_id FROM images").to_pylist()
    for row in places:
        assert found[Path(row["source_uri"]).stem, row["source_row"]] == row["image_id"]
    staged_at = {(r["source_uri"], r["source_row"]) for r in live if r["fate"] == "staged"}
    assert staged_at == {(r["source_uri"], r["source_row"]) for r in places}
