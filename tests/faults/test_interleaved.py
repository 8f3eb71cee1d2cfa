"""Jobs on one dataset, one step at a time, in an order that a seed decides; some are killed.

Each entry of `catalog/runs` names the version that holds its job, and no view ever shows less than
it did. A sample in the suite, 500 seeds in `make faults`.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog, delta_log
from jobs.tables.delta import Snapshot
from tests.helpers import image_ids, staged_ids, write_source
from tests.inline import InlineCompact, InlineStage
from tests.limits import RUN_S
from tests.rounds import ROUNDS

pytestmark = pytest.mark.faults
SEEDS = 500 if ROUNDS > 1 else 4
# Between a handle, what it is asked, and a commit.
STEPS = (
    (Snapshot, "commit"),
    (Snapshot, "has"),
    (Snapshot, "history"),
    (engine_commit, "record_run"),
)


class Killed(BaseException):
    pass


class Turns:
    """Of several threads one goes on at a time, to its next step; the seed says which."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"interleaved-{seed}")
        self.changed = threading.Condition()
        self.waiting: set[str] = set()
        self.running: set[str] = set()
        self.steps_left: dict[str, int] = {}  # of those that will be killed

    def start(self, jobs: dict[str, Callable[[], object]]) -> None:
        threads = [threading.Thread(target=self._run, args=item) for item in jobs.items()]
        self.running = set(jobs)
        for name in jobs:
            if self.random.random() < 0.3:
                self.steps_left[name] = self.random.randint(1, 25)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(RUN_S)
            assert not thread.is_alive()

    def _run(self, name: str, work: Callable[[], object]) -> None:
        threading.current_thread().name = name
        try:
            self.step()
            work()
        except Killed:
            pass
        finally:
            with self.changed:
                self.running.discard(name)
                self._next()

    def step(self) -> None:
        name = threading.current_thread().name
        if name not in self.running:  # the test's own thread, or one of a pool
            return
        if name in self.steps_left:
            self.steps_left[name] -= 1
            if self.steps_left[name] < 0:
                raise Killed
        with self.changed:
            self.waiting.add(name)
            self._next()
            while name in self.waiting:
                assert self.changed.wait(RUN_S), "nobody goes on"

    def _next(self) -> None:
        """Lets one go on where all wait."""
        if self.running and self.running == self.waiting:
            self.waiting.discard(self.random.choice(sorted(self.waiting)))
            self.changed.notify_all()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nights of a dataset, in shards that can be merged, and sources of a fourth."""
    folder = tmp_path_factory.mktemp("interleaved")
    lake = LakePaths((folder / "lake").as_uri())
    for night in range(1, 4):
        write_source(folder / "s" / f"{night}.parquet", range(night * 20, night * 20 + 20))
        runner.run(InlineStage(lake, folder / "s", night=f"2026-01-0{night}"))
    write_source(folder / "s" / "4.parquet", range(80, 100))
    write_source(folder / "t" / "5.parquet", range(90, 110))
    return folder


@pytest.fixture
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Turns:
    made = Turns(request.param)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments, **more):
            made.step()
            return real(*arguments, **more)

        return stepped

    for holder, name in STEPS:
        monkeypatch.setattr(holder, name, before(getattr(holder, name)))
    # A wait between two tries would be one for nobody.
    monkeypatch.setattr("jobs.engine.commit.time.sleep", lambda _: made.step())
    return made


@pytest.mark.parametrize("turns", range(SEEDS), indirect=True)
def test_runs_name_their_versions_and_views_never_show_less(
    base: Path, tmp_path: Path, turns: Turns
) -> None:
    shutil.copytree(base / "lake", tmp_path / "lake")
    lake = LakePaths((tmp_path / "lake").as_uri())
    seen: list[int] = []
    real = turns.step

    def watched() -> None:
        real()
        if threading.current_thread().name in turns.running and turns.random.random() < 0.2:
            seen.append(count(lake))

    turns.step = watched  # type: ignore[method-assign]
    turns.start(
        {
            "stage": lambda: runner.run(InlineStage(lake, base / "s", night="2026-01-04")),
            "other": lambda: runner.run(InlineStage(lake, base / "t", night="2026-01-04")),
            "compact": lambda: runner.run(InlineCompact.of(lake)),
        }
    )
    assert seen == sorted(seen)
    # Whoever was killed is run again, alone.
    runner.run(InlineStage(lake, base / "s", night="2026-01-04"))
    runner.run(InlineStage(lake, base / "t", night="2026-01-04"))
    runner.run(InlineCompact.of(lake))
    assert staged_ids(lake) == set(image_ids(range(20, 110)))
    assert count(lake) == 90
    for run in catalog.runs(lake):
        for table, version in json.loads(run["versions"]).items():
            entry = delta_log.entry(f"{lake.uri}/{table}", version)
            assert entry is not None
            assert entry["job_id"] == run["job_id"], (table, version)


def count(lake: LakePaths) -> int:
    return views.sql(lake, "SELECT count(*) AS n FROM images")["n"][0].as_py()
