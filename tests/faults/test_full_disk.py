"""A disk that is full, at every write of every job, or that goes away: a sentence, then a rerun.

An eighth of the writes in the suite, all of them in `make faults`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.engine import runner
from jobs.errors import LatentlakeError, StorageError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import begin, create, folder_names
from tests.every_job import JOBS, rows, work
from tests.helpers import write_source
from tests.inline import InlineStage
from tests.rounds import ROUNDS
from tests.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.faults

WRITING = [name for name in JOBS if name != "vacuum"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("small") / "disk") as held:
        yield held


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work(tmp_path_factory.mktemp("worked"))


def refused(disk: SmallDisk, act: Callable[[], object]) -> bool:
    """Whether there was no room; told so in a sentence that names a file or table of the lake."""
    told: LatentlakeError | None = None
    try:
        act()
    except LatentlakeError as error:
        told = error
    finally:
        disk.grow()
    if told is None:
        return False
    assert isinstance(told, StorageError), told
    assert disk.root.as_uri() in str(told)
    assert "No space left on device" in str(told)
    assert "\n" not in str(told)
    return True


@pytest.mark.parametrize("name", WRITING)
def test_wherever_the_disk_is_full_it_is_told_and_a_rerun_does_the_rest(
    worked: Path, disk: SmallDisk, name: str
) -> None:
    generator = random.Random(name)
    root = disk.root / "lake"
    lake = LakePaths(root.as_uri())

    def anew() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(worked / "lake", root)

    def act() -> None:
        JOBS[name](lake, worked / "s")

    anew()
    act()
    expected = rows(lake, name)
    sizes = [generator.randrange(1 << 12, 1 << 19) for _ in range(ROUNDS)]
    step = 1 if ROUNDS > 1 else 8
    first = generator.randrange(min(step, 3))
    rooms = [(disk.leave_files, count) for count in range(first, 400, step)]
    tried, fits = 0, False
    for leave, count in [*rooms, *((disk.leave_bytes, size) for size in sizes)]:
        if leave == disk.leave_files and fits:
            continue
        anew()
        leave(count)
        fits = not refused(disk, act)
        if not fits:
            act()
        tried += 1
        if ROUNDS > 1 or leave == disk.leave_bytes or fits:
            found = rows(lake, name)
            assert [each for each in expected if not found[each].equals(expected[each])] == []
        assert not list((root / "units").glob("*/plan.json"))
    assert tried > len(sizes)


class Unplugged(InlineStage):
    """Something goes when its work is done, and is not published."""

    def __init__(self, lake: LakePaths, source: Path, unplug: Callable[[], object]) -> None:
        super().__init__(lake, source)
        self.unplug = unplug

    def settle(self, plan, completions, head):
        settled = super().settle(plan, completions, head)
        self.unplug()
        return settled


def require_told(lake: LakePaths, folder: Path, unplug: Callable[[], object]) -> None:
    write_source(folder / "s" / "b.parquet", range(20, 40))
    with pytest.raises(StorageError, match=r"gone|File not found"):
        runner.run(Unplugged(lake, folder / "s", unplug))


def test_a_lake_that_went_away_is_not_made_anew_in_part(lake: LakePaths, tmp_path: Path) -> None:
    root = tmp_path / "lake"
    require_told(lake, tmp_path, lambda: shutil.rmtree(root))
    assert not root.exists()


OF_A_TABLE = ("datasets", "datasets/d/images", "datasets/d/images/_delta_log")


@pytest.mark.parametrize("missing", OF_A_TABLE)
def test_nor_is_a_table(lake: LakePaths, tmp_path: Path, missing: str) -> None:
    gone = tmp_path / "lake" / missing
    require_told(lake, tmp_path, lambda: shutil.rmtree(gone))
    assert not list(gone.rglob("_delta_log/*.json"))


def test_an_empty_folder_in_its_place_is_not_the_lake(lake: LakePaths, tmp_path: Path) -> None:
    """The place that a disk was mounted on, once the disk has gone."""
    write_source(tmp_path / "s" / "a.parquet", range(20))
    runner.run(InlineStage(lake, tmp_path / "s"))
    root = tmp_path / "lake"

    def unplug() -> None:
        root.rename(tmp_path / "elsewhere")
        root.mkdir()

    require_told(lake, tmp_path, unplug)
    assert list(root.iterdir()) == []


def test_a_worker_of_a_lake_that_has_gone_writes_nothing(tmp_path: Path) -> None:
    uri = (tmp_path / "lake").as_uri()
    (tmp_path / "lake").mkdir()
    begin(uri)
    (tmp_path / "lake").rmdir()
    with pytest.raises(StorageError, match="has gone; look whether the disk"):
        create(f"{uri}/units/x/completions/y.json", b"{}")
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("name", [name for name in JOBS if name != "index"])
def test_a_lake_that_goes_while_a_job_plans_is_begun_nowhere_anew(
    worked: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is told of it: it may look like one without datasets, or like a damaged one."""
    root = tmp_path / "lake"
    shutil.copytree(worked / "lake", root)

    def gone(*arguments: object, **how: object) -> None:
        if root.exists():
            root.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("jobs.engine.runner.require_whole", gone)
    monkeypatch.setattr("jobs.maintain.vacuum.require_whole", gone)
    with contextlib.suppress(LatentlakeError):
        JOBS[name](LakePaths(root.as_uri()), worked / "s")
    assert not root.exists()


def test_an_error_of_the_disk_itself_is_no_commit(
    lake: LakePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could redo it stays."""
    write_source(tmp_path / "s" / "a.parquet", range(20))
    real = os.fsync

    def fsync(handle: int) -> None:
        if "_delta_log/0" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="Input/output error"):
            runner.run(InlineStage(lake, tmp_path / "s"))
    assert len(folder_names(lake.all_units)) == 1
    assert runner.run(InlineStage(lake, tmp_path / "s")).counts["staged"] == 20
