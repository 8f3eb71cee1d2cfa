"""A disk that is full, at every write of every job, or that goes away: a sentence, then a rerun."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import index, job, views
from jobs.drift import DriftJob
from jobs.drop import DropJob
from jobs.errors import LatentlakeError, StorageError
from jobs.judge_config import DriftSettings, PromoteSettings
from jobs.lake import Lake
from jobs.latent_map import MapJob
from jobs.promote import PromoteJob
from jobs.storage import begin
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineCompact, InlineEmbed, InlineEvaluate, InlineStage, InlineTrain
from tests.rounds import ROUNDS
from tests.small_disk import SmallDisk, small_disk

NIGHT = "2026-01-03"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("small") / "disk") as held:
        yield held


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of two nights with a model, a second one, and a source that has more."""
    folder = tmp_path_factory.mktemp("worked")
    lake = Lake((folder / "lake").as_uri())
    write_source(folder / "s" / "a.parquet", range(150), broken=[3])
    job.run(InlineStage(lake, folder / "s"))
    job.run(InlineTrain(lake, epochs=1))
    write_source(folder / "s" / "b.parquet", range(150, 200))
    job.run(InlineStage(lake, folder / "s", "2026-01-02"))
    job.run(InlineTrain(lake, "2026-01-02", epochs=1, promote=False))
    job.run(InlineEmbed(lake, "2026-01-02", reconstructions="all", alpha=0.9))
    write_source(folder / "s" / "c.parquet", range(200, 220))
    return folder


def second(lake: Lake) -> PromoteJob:
    first = views.sql(lake, "SELECT version FROM aliases ORDER BY sequence")["version"][0].as_py()
    found = (Path(lake.uri.removeprefix("file://")) / "models/m/bundles").iterdir()
    (other,) = (path.name for path in found if path.name != first)
    return PromoteJob(lake, PromoteSettings(model=f"m@{other}", rule=None), NIGHT)


JOBS: dict[str, Callable[[Lake, Path], object]] = {
    "stage": lambda lake, source: job.run(InlineStage(lake, source, NIGHT)),
    "train": lambda lake, source: job.run(InlineTrain(lake, NIGHT, epochs=1, seed=3)),
    "embed": lambda lake, source: job.run(InlineEmbed(lake, NIGHT, redo=True, alpha=0.9)),
    "evaluate": lambda lake, source: job.run(InlineEvaluate(lake, NIGHT)),
    "drift": lambda lake, source: job.run(
        DriftJob(lake, DriftSettings(dataset="d", model="m"), NIGHT)
    ),
    "map": lambda lake, source: job.run(MapJob(lake, "m", "pca", NIGHT)),
    "promote": lambda lake, source: job.run(second(lake)),
    "compact": lambda lake, source: job.run(InlineCompact.of(lake, night=NIGHT)),
    "compact a model": lambda lake, source: job.run(InlineCompact.of(lake, "model", "m", NIGHT)),
    "drop": lambda lake, source: job.run(DropJob(lake, "m@champion", None, NIGHT)),
    "index": lambda lake, source: index.build(lake, "m", "cosine"),
}


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


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_wherever_the_disk_is_full_it_is_told_and_a_rerun_does_the_rest(
    worked: Path, disk: SmallDisk, name: str
) -> None:
    generator = random.Random(name)
    rooms = [(disk.leave_files, count) for count in range(400)]
    sizes = [generator.randrange(1 << 12, 1 << 19) for _ in range(2 + ROUNDS)]
    lakes, fits = 0, False
    for leave, count in [*rooms, *((disk.leave_bytes, size) for size in sizes)]:
        if leave == disk.leave_files and fits:
            continue
        root = disk.root / f"lake{lakes}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(worked / "lake", root)
        lake = Lake(root.as_uri())
        leave(count)
        fits = not refused(disk, lambda lake=lake: JOBS[name](lake, worked / "s"))
        if not fits:
            JOBS[name](lake, worked / "s")
        wanted = range(220) if name == "stage" else range(200)
        assert staged_labels(lake) == labels_of([i for i in wanted if i != 3])
        assert not list((root / "units").glob("*/plan.json"))
        shutil.rmtree(root)
        lakes += 1
    assert lakes > 4


def test_a_lake_that_went_away_is_not_made_anew_in_part(lake: Lake, tmp_path: Path) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(20))
    root = tmp_path / "lake"

    class Unplugged(InlineStage):
        def settle(self, plan, completions, head):
            settled = super().settle(plan, completions, head)
            shutil.rmtree(root)
            return settled

    with pytest.raises(StorageError, match=r"gone|File not found"):
        job.run(Unplugged(lake, tmp_path / "s"))
    assert not root.exists()


OF_A_TABLE = ("datasets", "datasets/d/images", "datasets/d/images/_delta_log")


@pytest.mark.parametrize("missing", OF_A_TABLE)
def test_nor_is_a_table(lake: Lake, tmp_path: Path, missing: str) -> None:
    write_source(tmp_path / "s" / "a.parquet", range(20))
    gone = tmp_path / "lake" / missing

    class Unplugged(InlineStage):
        def settle(self, plan, completions, head):
            settled = super().settle(plan, completions, head)
            shutil.rmtree(gone)
            return settled

    with pytest.raises(StorageError, match=r"gone|File not found"):
        job.run(Unplugged(lake, tmp_path / "s"))
    assert not list(gone.rglob("_delta_log/*.json"))


def test_a_worker_of_a_lake_that_has_gone_writes_nothing(tmp_path: Path) -> None:
    from jobs.storage import create

    uri = (tmp_path / "lake").as_uri()
    begin(uri, make=False)
    with pytest.raises(StorageError, match="has gone; look whether the disk"):
        create(f"{uri}/units/x/completions/y.json", b"{}")
    assert not (tmp_path / "lake").exists()
