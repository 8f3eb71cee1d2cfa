"""Plans that nobody goes on with come to an end, and maintain tells which."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.settings import RaySettings
from jobs.engine import commit as engine_commit
from jobs.engine import job, records, runner
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names, local_path
from jobs.maintain.abandoned_plans import DAY_S, LeftPlan, end_left_plans
from jobs.maintain.run import maintain, maintained_text
from jobs.maintain.settings import MaintainSettings
from jobs.maintain.vacuum import vacuum
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.damaged import age
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import NIGHT, InlineCompact, InlineStage


class Killed(BaseException):
    pass


def die(*_: Any, **__: Any) -> Any:
    raise Killed


def killed(work: job.Job, where: str) -> None:
    places = {
        "before its commit": (engine_commit, "commit"),
        "after its commit": (engine_commit, "record_run"),
        "before it cleared": (records, "clear"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*places[where], die)
        with pytest.raises(Killed):
            runner.run(work)


def in_days(lake: LakePaths, days: float) -> list[LeftPlan]:
    return end_left_plans(lake, None, now=time.time() + days * DAY_S)


def nights(lake: LakePaths, folder: Path, count: int = 3) -> None:
    for night in range(count):
        write_source(folder / f"{night}.parquet", range(40 * night, 40 * night + 40))
        runner.run(InlineStage(lake, folder, f"2026-01-0{night + 1}"))


@pytest.mark.parametrize("where", ["before its commit", "after its commit", "before it cleared"])
def test_a_killed_compaction_is_finished_by_the_next_one(
    lake: LakePaths, tmp_path: Path, where: str
) -> None:
    """By its next call, of whatever night: its plan has the target that it is looked up by."""
    nights(lake, tmp_path / "s")
    killed(InlineCompact.of(lake, night="2026-01-08"), where)
    assert len(folder_names(lake.all_units)) == 1
    report = runner.run(InlineCompact.of(lake, night="2026-01-09"))
    assert report.counts["files_merged"] == 6
    assert folder_names(lake.all_units) == []
    rows = [row for row in catalog.runs(lake) if row["job"] == "compact"]
    assert [row["job_id"] for row in rows] == report.job_ids
    assert staged_labels(lake) == labels_of(range(120))


def test_a_killed_compaction_whose_files_have_gone_is_shed(lake: LakePaths, tmp_path: Path) -> None:
    nights(lake, tmp_path / "s", 2)
    killed(InlineCompact.of(lake), "before its commit")
    for path in (tmp_path / "s").glob("*.parquet"):
        path.unlink()
    write_source(tmp_path / "s" / "9.parquet", range(200, 240))
    runner.run(InlineStage(lake, tmp_path / "s", "2026-01-08", max_removed=1.0))
    runner.run(InlineCompact.of(lake, night="2026-01-09"))
    left = folder_names(lake.all_units)
    assert not [job_id for job_id in left if records.load_plan(lake, job_id)]
    assert staged_labels(lake) == labels_of(range(200, 240))


def waiting(lake: LakePaths, folder: Path) -> str:
    """A stage job of settings that nobody will ask for again, killed before its commit."""
    write_source(folder / "a.parquet", range(40))
    killed(InlineStage(lake, folder, height=32), "before its commit")
    (job_id,) = folder_names(lake.all_units)
    return job_id


def test_a_plan_whose_job_passed_it_over_ends_after_a_day(lake: LakePaths, tmp_path: Path) -> None:
    job_id = waiting(lake, tmp_path / "s")
    assert in_days(lake, 2) == []  # nobody has staged since: it may be run again
    report = runner.run(InlineStage(lake, tmp_path / "s"))
    assert in_days(lake, 0.9) == []
    (ended,) = in_days(lake, 1.1)
    assert (ended.job_id, ended.job, ended.target, ended.done) == (job_id, "stage", "d", False)
    assert report.job_ids[0] in ended.why
    assert records.load_plan(lake, job_id) is None
    assert staged_labels(lake) == labels_of(range(40))


def test_a_plan_of_another_source_is_not_passed_over(lake: LakePaths, tmp_path: Path) -> None:
    job_id = waiting(lake, tmp_path / "s")
    write_source(tmp_path / "other" / "b.parquet", range(50, 60))
    runner.run(InlineStage(lake, tmp_path / "other"))
    assert in_days(lake, 29) == []
    (ended,) = in_days(lake, 31)
    assert ended.job_id == job_id
    assert "for 31 days" in ended.why


@pytest.mark.parametrize("where", ["after its commit", "before it cleared"])
def test_a_plan_that_was_published_gets_its_row(
    lake: LakePaths, tmp_path: Path, where: str
) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(40))
    killed(InlineStage(lake, tmp_path / "s"), where)
    assert in_days(lake, 0.5) == []
    (ended,) = in_days(lake, 2)
    assert ended.done
    (run,) = catalog.runs(lake)
    assert run["job_id"] == ended.job_id
    assert run["target"] == "d"
    assert staged_labels(lake) == labels_of(range(40))
    assert folder_names(lake.all_units) == []
    assert runner.run(InlineStage(lake, tmp_path / "s")).units == 0


def test_maintain_tells_and_vacuum_takes_its_files(lake: LakePaths, tmp_path: Path) -> None:
    waiting(lake, tmp_path / "s")
    runner.run(InlineStage(lake, tmp_path / "s"))
    root = local_path(lake.uri)
    assert root is not None
    age(root, 40)
    before = set(root.glob("datasets/d/*/*.parquet"))
    settings = MaintainSettings(compact=False, keep_days=0.0)
    told = maintain(lake, settings, "2026-01-09", RaySettings(), dry_run=True)
    assert "(stage-" in maintained_text(told)
    assert "would be given up: nobody" in maintained_text(told)
    assert set(root.glob("datasets/d/*/*.parquet")) == before
    told = maintain(lake, settings, "2026-01-09", RaySettings())
    assert "stage d of 2026-01-01 (stage-" in maintained_text(told)
    assert "was given up" in maintained_text(told)
    # Somebody may have gone on with it just now: its files stay for a day.
    assert set(root.glob("datasets/d/*/*.parquet")) == before
    age(root, 40)
    told = maintain(lake, settings, "2026-01-11", RaySettings())
    assert told["left_plans"] == []
    assert told["vacuumed"]["files"] == len(before - set(root.glob("datasets/d/*/*.parquet"))) > 0
    assert told["vacuumed"]["plans"] == 1
    assert staged_labels(lake) == labels_of(range(40))


def test_a_plan_that_somebody_has_just_gone_on_with_is_not_given_up(
    lake: LakePaths, tmp_path: Path
) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(40))
    killed(InlineStage(lake, tmp_path / "s"), "before its commit")
    write_source(tmp_path / "s" / "b.parquet", range(40, 50))

    class PassesOver(InlineStage):
        def owns(self, plan):
            return False

    runner.run(PassesOver(lake, tmp_path / "s", "2026-01-02"))
    root = local_path(lake.uri)
    assert root is not None
    age(root, 3)
    told: list[Any] = []

    class Resumed(InlineStage):
        def settle(self, plan, completions, head):
            told.append(maintain(lake, MaintainSettings(compact=False), NIGHT, RaySettings()))
            return super().settle(plan, completions, head)

    runner.run(Resumed(lake, tmp_path / "s"))
    assert told
    assert not any(each["left_plans"] for each in told)
    assert staged_labels(lake) == labels_of(range(50))


def test_files_of_a_plan_that_was_given_up_under_somebody_are_published_whole(
    lake: LakePaths, tmp_path: Path
) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(40))
    work = InlineStage(lake, tmp_path / "s")
    killed(work, "before its commit")
    (job_id,) = folder_names(lake.all_units)
    root = local_path(lake.uri)
    assert root is not None

    class Late(InlineStage):
        def settle(self, plan, completions, head):
            settled = super().settle(plan, completions, head)
            age(root, 2)
            records.give_up(lake, plan)
            vacuum(lake, ["d"], [], keep_days=0.0)
            return settled

    runner.run(Late(lake, tmp_path / "s"))
    assert staged_labels(lake) == labels_of(range(40))
    images = open_snapshot(lake.dataset("d", "images"))
    assert images is not None
    assert images.read(["image"]) is not None
    assert job_id in {row["job_id"] for row in catalog.runs(lake)}


def test_a_plan_whose_row_is_there_is_no_plan_that_was_passed_over(
    lake: LakePaths, tmp_path: Path
) -> None:
    """Killed while it cleared, with its plan alone left."""
    write_source(tmp_path / "s" / "a.parquet", range(40))
    work = InlineStage(lake, tmp_path / "s")
    killed(work, "before it cleared")
    (job_id,) = folder_names(lake.all_units)
    for path in (tmp_path / "lake" / "units" / job_id).iterdir():
        if path.name != "plan.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (ended,) = in_days(lake, 2)
    assert ended.done
    assert folder_names(lake.all_units) == []


def test_a_plan_that_cannot_be_judged_stops_no_other(lake: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(40))
    killed(InlineStage(lake, tmp_path / "s"), "after its commit")
    killed(InlineStage(lake, tmp_path / "s", dataset="e"), "after its commit")
    names = folder_names(lake.all_units)
    assert len(names) == 2
    broken = tmp_path / "lake" / "units" / names[0]
    (record,) = broken.glob("commit-*.json")
    record.write_text('{"files": {}, "counts": {}, "seconds": 0.0}')
    (ended,) = in_days(lake, 2)
    assert ended.job_id == names[1]
    assert ended.done
