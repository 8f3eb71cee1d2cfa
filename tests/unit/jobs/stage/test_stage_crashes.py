"""stage across crashes, rivals and late workers: every image once, whoever ends first."""

from __future__ import annotations

import json

import pytest

from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.errors import JobError
from jobs.query import views
from jobs.tables.conflicts import CommitConflict
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineStage, OvertakenStage

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tables_committed", [0, 1, 2, 3])
def test_a_crash_between_commits_is_completed_by_the_next_run(
    lake, source, monkeypatch, tables_committed: int
) -> None:
    commits = {"left": tables_committed}
    from jobs.tables.delta import Snapshot

    real = Snapshot.commit

    def commit(self, job_id, outputs, metadata, *more, **how):
        if "datasets" in self.uri:
            if commits["left"] == 0:
                raise KeyboardInterrupt
            commits["left"] -= 1
        elif tables_committed == 3:
            raise KeyboardInterrupt  # before the row in catalog/runs
        return real(self, job_id, outputs, metadata, *more, **how)

    monkeypatch.setattr(Snapshot, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineStage(lake, source.parent))
    monkeypatch.undo()
    shown = views.sql(lake, "SELECT count(*) AS n FROM images").to_pylist()
    assert shown == [{"n": 0}]  # views show finished jobs only
    write_source(source.parent / "b.parquet", range(300, 350))
    again = InlineStage(lake, source.parent, night="2026-01-02")
    runner.run(again)
    assert len(again.executed) == 1  # the new file's unit; the others were done
    assert staged_labels(lake) == labels_of(range(350))
    runs = views.sql(lake, "SELECT night, counts, seconds FROM runs ORDER BY night").to_pylist()
    assert [json.loads(run["counts"])["staged"] for run in runs] == [300, 50]
    assert all(json.loads(run["counts"])["unit_seconds"] > 0 for run in runs)
    counts = views.sql(lake, "SELECT fate, count(*) AS n FROM sources GROUP BY ALL").to_pylist()
    assert counts == [{"fate": "staged", "n": 350}]


def test_a_crash_after_some_units_leaves_only_the_others_to_do(lake, source, monkeypatch) -> None:
    from jobs.stage import worker as stage_worker

    real, done = stage_worker.StageWorker.execute, []

    def execute(self, unit, attempt):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit.unit_id)
        return real(self, unit, attempt)

    monkeypatch.setattr(stage_worker.StageWorker, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineStage(lake, source.parent))
    monkeypatch.undo()
    again = InlineStage(lake, source.parent)
    runner.run(again)
    assert len(again.executed) == 1
    assert again.executed[0] not in done
    assert staged_labels(lake) == labels_of(range(300))


def test_a_rival_that_stages_the_same_files_first_costs_no_row(lake, source) -> None:
    rival = InlineStage(lake, source.parent, night="2026-01-02")
    report = runner.run(OvertakenStage(lake, source.parent, rival))
    assert staged_labels(lake) == labels_of(range(300))
    rows = views.sql(lake, "SELECT count(*) AS n FROM sources").to_pylist()
    assert rows == [{"n": 300}]
    assert report.counts["rows_in"] == 0  # all of it was the rival's


def test_a_rival_with_some_of_the_images_leaves_each_once(lake, source, tmp_path) -> None:
    write_source(tmp_path / "other" / "x.parquet", range(250, 320))
    rival = InlineStage(lake, tmp_path / "other", night="2026-01-02")
    report = runner.run(OvertakenStage(lake, source.parent, rival))
    assert report.counts["staged"] == 250
    assert report.counts["duplicates"] == 50
    assert staged_labels(lake) == labels_of(range(320))


def test_two_runs_of_the_very_same_job_publish_it_once(lake, source) -> None:
    report = runner.run(OvertakenStage(lake, source.parent, InlineStage(lake, source.parent)))
    assert staged_labels(lake) == labels_of(range(300))
    assert report.counts["rows_in"] == 300
    assert len(views.sql(lake, "SELECT * FROM runs")) == 1


def test_a_worker_that_wakes_up_after_the_end_changes_nothing(lake, source) -> None:
    late = InlineStage(lake, source.parent)
    plan = late.plan()
    runner.run(InlineStage(lake, source.parent))
    before = staged_labels(lake)
    late.execute(plan, plan.units)  # writes files and completion records of a finished job
    assert staged_labels(lake) == before
    assert runner.run(InlineStage(lake, source.parent)).units == 0
    assert staged_labels(lake) == before


def test_a_plan_whose_source_was_replaced_is_dropped(lake, source, monkeypatch) -> None:
    monkeypatch.setattr(
        engine_commit, "commit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineStage(lake, source.parent))
    monkeypatch.undo()
    source.unlink()
    write_source(source, range(400, 520))
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(400, 520))
    assert records.unfinished_plans(lake, "stage", "d") == []


def test_a_failed_source_does_not_hold_up_another(lake, source, tmp_path) -> None:
    write_source(tmp_path / "bad" / "a.parquet", range(400, 440), broken=range(40))
    with pytest.raises(JobError, match="40 of 40 rows refused"):
        runner.run(InlineStage(lake, tmp_path / "bad"))
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))
    assert len(records.unfinished_plans(lake, "stage", "d")) == 1  # kept, should it be allowed


def test_a_file_replaced_while_it_is_read_is_left_for_the_next_run(
    lake, source, monkeypatch
) -> None:
    from jobs.sources import parquet

    write_source(source.parent / "b.parquet", range(300, 350))
    real = parquet._source_batch

    def replace(piece, start, part, *arguments):
        if part.uri.endswith("a.parquet") and start == 0:
            source.unlink()
            write_source(source, range(500, 800))
        return real(piece, start, part, *arguments)

    monkeypatch.setattr(parquet, "_source_batch", replace)
    report = runner.run(InlineStage(lake, source.parent, rows_per_unit=1000))
    monkeypatch.undo()
    assert report.counts["files_skipped"] == 1
    assert staged_labels(lake) == labels_of(range(300, 350))
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of([*range(300, 350), *range(500, 800)])


def test_a_rival_that_drops_the_plan_in_mid_commit_costs_no_row(lake, source, monkeypatch) -> None:
    """The plan is given up by another process right after the first table's commit."""
    from jobs.tables.delta import Snapshot

    real = Snapshot.commit

    def commit(self, job_id, outputs, metadata, *more, **how):
        version = real(self, job_id, outputs, metadata, *more, **how)
        if self.uri.endswith("quarantine"):
            records.drop(lake, job_id)
        return version

    monkeypatch.setattr(Snapshot, "commit", commit)
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))


def test_endless_conflicts_end(lake, source, monkeypatch) -> None:
    monkeypatch.setattr(engine_commit, "ROUNDS", 3)
    monkeypatch.setattr(
        engine_commit, "commit", lambda *a: (_ for _ in ()).throw(CommitConflict("x"))
    )
    with pytest.raises(JobError, match="3 commits in a row met another writer"):
        runner.run(InlineStage(lake, source.parent))
