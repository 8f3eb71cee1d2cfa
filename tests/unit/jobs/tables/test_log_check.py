"""A damaged log is told before anything is planned by it, and nothing is changed until then."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.embed.drop import DropJob
from jobs.embed.settings import DropSettings
from jobs.engine import runner
from jobs.engine.job import Job
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.maintain.vacuum import vacuum
from jobs.tables import catalog, delta_log, log_check
from jobs.tables.delta import open_snapshot
from tests.damaged import tree
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineEvaluate, InlineStage, InlineTrain


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of two nights, a model and its embeddings, and a source with a third night's file."""
    folder = tmp_path_factory.mktemp("whole")
    lake = LakePaths((folder / "lake").as_uri())
    write_source(folder / "s" / "a.parquet", range(150), broken=[3])
    runner.run(InlineStage(lake, folder / "s"))
    runner.run(InlineTrain(lake, epochs=1))
    write_source(folder / "s" / "b.parquet", range(150, 200))
    runner.run(InlineStage(lake, folder / "s", "2026-01-02"))
    runner.run(InlineEmbed(lake, "2026-01-02", reconstructions="all"))
    write_source(folder / "s" / "c.parquet", range(200, 220))
    return folder


@pytest.fixture
def copied(worked: Path, tmp_path: Path) -> Path:
    shutil.copytree(worked / "lake", tmp_path / "lake")
    return tmp_path / "lake"


Made = Callable[[LakePaths, Path], Job]
JOBS: dict[str, Made] = {
    "stage": lambda lake, source: InlineStage(lake, source, "2026-01-03"),
    "embed": lambda lake, source: InlineEmbed(lake, "2026-01-03"),
    "evaluate": lambda lake, source: InlineEvaluate(lake, "2026-01-03"),
    "train": lambda lake, source: InlineTrain(lake, "2026-01-03", epochs=1),
    "compact": lambda lake, source: InlineCompact.of(lake),
    "compact a model": lambda lake, source: InlineCompact.of(lake, "model", "m"),
    "drop": lambda lake, source: DropJob(lake, DropSettings(model="m@champion"), "2026-01-03"),
}


def emptied(entry: Path) -> None:
    entry.write_bytes(b"")


def removed(entry: Path) -> None:
    entry.unlink()


def halved(entry: Path) -> None:
    data = entry.read_bytes()
    entry.write_bytes(data[: len(data) // 2])


def cut_between_lines(entry: Path) -> None:
    lines = entry.read_bytes().splitlines(keepends=True)
    entry.write_bytes(b"".join(lines[:-1]))


def of_nothing(entry: Path) -> None:
    entry.write_text('{"commitInfo":{"timestamp":1}}\n')


def of_another(entry: Path) -> None:
    entry.write_bytes(entry.with_name(f"{int(entry.stem) - 1:020}.json").read_bytes())


ANY = (emptied, removed, halved, cut_between_lines)
OF_A_JOB = (of_nothing, of_another)


def version(entry: Path) -> int:
    return int(entry.stem)


def entries(root: Path, made: Job) -> list[Path]:
    tables = [path for uri in made.relies_on if (path := local_path(uri)) is not None]
    tables += [root / "catalog" / "runs", root / "catalog" / "aliases"]
    return sorted(entry for table in tables for entry in table.glob("_delta_log/*.json"))


@pytest.mark.parametrize("name", JOBS)
def test_each_damage_of_each_entry_is_told_by_its_uri(
    worked: Path, copied: Path, name: str
) -> None:
    lake = LakePaths(copied.as_uri())
    checked = 0
    for entry in entries(copied, JOBS[name](lake, worked / "s")):
        ours = "job_id" in json.loads(entry.read_text().split("\n", 1)[0])["commitInfo"]
        named = ours and entry.parent.parent.name != "runs"
        newest = version(entry) == max(version(e) for e in entry.parent.glob("*.json"))
        for damage in (*ANY, *(OF_A_JOB if named else ())):
            if damage is removed and newest and not named:
                continue  # it is as if the last job had been killed before
            whole = entry.read_bytes()
            damage(entry)
            before = tree(copied)
            with pytest.raises(InputError, match=re.escape(entry.parent.as_uri())):
                runner.run(JOBS[name](lake, worked / "s"))
            assert tree(copied) == before, (entry, damage)
            entry.write_bytes(whole)
            checked += 1
    assert checked > 20
    runner.run(JOBS[name](lake, worked / "s"))


def test_two_commits_while_a_folder_is_read_are_no_gap(
    worked: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in pieces, in no order: the newer of the two may be in it, the older not."""
    lake = LakePaths(copied.as_uri())
    real, listings = delta_log.list_folder, []

    def list_folder(uri: str) -> list[dict]:
        listings.append(uri)
        found = real(uri)
        first = len(listings) == 1
        return [e for e in found if not (first and e["name"].endswith(f"{1:020}.json"))]

    monkeypatch.setattr(delta_log, "list_folder", list_folder)
    log_check.require_whole(lake, [lake.dataset("d", "images")])
    assert len(listings) == 4


@pytest.mark.parametrize("damage", [emptied, halved])
def test_a_damaged_checkpoint_is_told_with_what_to_do(
    worked: Path, copied: Path, damage: Callable[[Path], None]
) -> None:
    lake = LakePaths(copied.as_uri())
    snapshot = open_snapshot(lake.dataset("d", "images"))
    assert snapshot is not None
    snapshot.handle.create_checkpoint()
    (checkpoint,) = (copied / "datasets/d/images/_delta_log").glob("*.checkpoint.parquet")
    damage(checkpoint)
    with pytest.raises(InputError, match=f"{checkpoint.name} is damaged.*remove it and _last"):
        runner.run(InlineStage(lake, worked / "s", "2026-01-03"))
    checkpoint.unlink()
    checkpoint.with_name("_last_checkpoint").unlink()
    assert runner.run(InlineStage(lake, worked / "s", "2026-01-03")).counts["staged"] == 20


def test_vacuum_of_a_damaged_log_deletes_nothing(worked: Path, copied: Path) -> None:
    lake = LakePaths(copied.as_uri())
    runner.run(InlineCompact.of(lake))
    entry = copied / "datasets/d/images/_delta_log" / f"{1:020}.json"
    for damage in (*ANY, *OF_A_JOB):
        whole = entry.read_bytes()
        damage(entry)
        before = tree(copied)
        with pytest.raises(InputError, match=entry.name):
            vacuum(lake, ["d"], ["m"], keep_days=0.0, grace_s=0.0)
        assert tree(copied) == before
        entry.write_bytes(whole)
    assert vacuum(lake, ["d"], ["m"], keep_days=0.0, grace_s=0.0).files


def test_what_a_checkpoint_stands_for_is_read_by_vacuum_alone(worked: Path, copied: Path) -> None:
    lake = LakePaths(copied.as_uri())
    images = lake.dataset("d", "images")
    snapshot = open_snapshot(images)
    assert snapshot is not None
    snapshot.handle.create_checkpoint()
    of_nothing(copied / "datasets/d/images/_delta_log" / f"{1:020}.json")
    log_check.require_whole(lake, [images])
    with pytest.raises(InputError, match=f"{1:020}.json is damaged"):
        log_check.require_whole(lake, [images], to_the_oldest=True)
    emptied(copied / "datasets/d/images/_delta_log" / f"{1:020}.json")
    with pytest.raises(InputError, match="it is empty"):
        log_check.require_whole(lake, [images])


def test_entries_that_another_tool_removed_before_a_checkpoint_are_no_damage(
    worked: Path, copied: Path
) -> None:
    lake = LakePaths(copied.as_uri())
    images = lake.dataset("d", "images")
    snapshot = open_snapshot(images)
    assert snapshot is not None
    snapshot.handle.create_checkpoint()
    for old in (0, 1):
        removed(copied / "datasets/d/images/_delta_log" / f"{old:020}.json")
    log_check.require_whole(lake, [images])


def test_a_wrong_version_of_an_older_release_is_no_damage(
    worked: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counted versions down from a stale handle: the job is in the log, in another entry."""
    lake = LakePaths(copied.as_uri())
    images = lake.dataset("d", "images")
    entry = copied / "datasets/d/images/_delta_log" / f"{2:020}.json"
    job_id = json.loads(entry.read_text().splitlines()[0])["commitInfo"]["job_id"]
    named = {lake.name_of(images): {1: {job_id}}}
    monkeypatch.setattr(catalog, "commits_of_runs", lambda lake: named)
    log_check.require_whole(lake, [images])
    named[lake.name_of(images)][1] = {"stage-nobody"}
    with pytest.raises(InputError, match="not the commit of stage-nobody"):
        log_check.require_whole(lake, [images])


@pytest.mark.parametrize("value", [[], {"a": 1}, 3, None])
@pytest.mark.parametrize("field", ["appId", "job_id"])
def test_names_that_are_none_are_told(
    worked: Path, copied: Path, field: str, value: object
) -> None:
    entry = copied / "datasets/d/quarantine/_delta_log" / f"{1:020}.json"
    actions = [json.loads(line) for line in entry.read_text().splitlines()]
    for action in actions:
        for body in action.values():
            if field in body and body[field] != "latentlake":
                body[field] = value
    entry.write_text("".join(json.dumps(action) + "\n" for action in actions))
    with pytest.raises(InputError, match=f"{entry.name} is damaged"):
        runner.run(InlineStage(LakePaths(copied.as_uri()), worked / "s", "2026-01-03"))
