"""kill -9 before and after every change of every job, then a rerun: row for row as undisturbed.

The changes are counted in an undisturbed run: on local disk by the process itself, on S3 by a
proxy that sees each request. A sample in the suite, 300 and 60 rounds in `make faults`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.engine import records
from jobs.lake import storage
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names
from jobs.maintain.vacuum import vacuum
from tests.every_job import JOBS, rows, work
from tests.fault_proxy import FaultProxy, Seen, fault_proxy
from tests.helpers import S3Server
from tests.killed_at import ended, start
from tests.rounds import ROUNDS
from tests.s3_server import reached

pytestmark = pytest.mark.faults

LOCAL, REMOTE = (300, 60) if ROUNDS > 1 else (4, 1)
TWICE = 0.4  # of the rounds are killed again in their rerun
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work(tmp_path_factory.mktemp("worked"))


class Undisturbed:
    """By job: the rows after it, and how many changes it makes; worked out when they are asked."""

    def __init__(self, worked: Path, folder: Path) -> None:
        self.worked, self.folder = worked, folder
        self.rows: dict[str, dict[str, pa.Table]] = {}
        self.changes: dict[str, int] = {}

    def of(self, name: str) -> tuple[dict[str, pa.Table], int]:
        if name not in self.rows:
            root, told = self.folder / name.replace(" ", "-"), self.folder / "told"
            shutil.copytree(self.worked / "lake", root)
            assert ended(start(name, root.as_uri(), self.worked / "s", told=told)) == 0
            self.rows[name] = rows(LakePaths(root.as_uri()), name)
            self.changes[name] = int(told.read_text())
            shutil.rmtree(root)
        return self.rows[name], self.changes[name]


@pytest.fixture(scope="module")
def undisturbed(worked: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(worked, tmp_path_factory.mktemp("undisturbed"))


def require_as_undisturbed(lake: LakePaths, name: str, expected: dict[str, pa.Table]) -> None:
    found = rows(lake, name)
    differ = [each for each, table in expected.items() if not found[each].equals(table)]
    assert differ == []
    left = folder_names(lake.all_units)
    assert not [job_id for job_id in left if records.load_plan(lake, job_id) is not None]


def names(seeds: int) -> list[tuple[str, int]]:
    """Each job as often as the others, in an order that is not theirs."""
    order = random.Random("every change").sample(sorted(JOBS), len(JOBS))
    return [(order[seed % len(order)], seed) for seed in range(seeds)]


@pytest.mark.parametrize(("name", "seed"), names(LOCAL))
def test_killed_at_any_change_on_disk_a_rerun_completes_it(
    worked: Path, undisturbed: Undisturbed, tmp_path: Path, name: str, seed: int
) -> None:
    generator = random.Random(f"{name}-{seed}")
    expected, changes = undisturbed.of(name)
    assert changes >= 3
    uri = (tmp_path / "lake").as_uri()
    shutil.copytree(worked / "lake", tmp_path / "lake")
    for number in range(1 + (generator.random() < TWICE)):
        kill_at = generator.randint(1, changes)
        told = tmp_path / "told"
        code = ended(start(name, uri, worked / "s", kill_at=kill_at, told=told))
        assert code == KILLED or (number == 1 and code == 0)  # a rerun has less to do
    assert ended(start(name, uri, worked / "s")) == 0
    require_as_undisturbed(LakePaths(uri), name, expected)
    # Nothing that holds was taken for a leftover, and no leftover is left.
    vacuum(LakePaths(uri), ["d"], ["m"], keep_days=0.0, grace_s=0.0)
    require_as_undisturbed(LakePaths(uri), name, expected)
    left = [path for path in (tmp_path / "lake").rglob("*") if path.name.endswith(".tmp")]
    assert not left


class Killer:
    """Kills a process when the n-th request that changes something comes, or has been answered."""

    def __init__(self, kill_at: int | None, after: bool) -> None:
        self.kill_at, self.after, self.count = kill_at, after, 0
        self.pid: int | None = None

    def hear(self, seen: Seen, answered: bool) -> None:
        if seen.method not in ("PUT", "POST", "DELETE"):
            return
        self.count += answered == self.after
        if self.count == self.kill_at and answered == self.after and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended with that answer
                os.kill(self.pid, signal.SIGKILL)
            self.pid = None


class OnS3:
    """Copies of the lake in a bucket, jobs on them through a proxy, and how many changes each made
    of them that nobody disturbed."""

    def __init__(self, server: S3Server, proxy: FaultProxy, worked: Path) -> None:
        self.env = server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        self.proxy, self.worked = proxy, worked
        self.changes: dict[str, int] = {}

    def copy(self) -> str:
        uri, root = f"s3://lake/changes-{uuid.uuid4().hex[:8]}", self.worked / "lake"
        fs, _ = storage.filesystem(uri)
        for path in root.rglob("*"):
            if path.is_file():
                fs.put_file(str(path), f"{uri}/{path.relative_to(root).as_posix()}")
        return uri

    def run(
        self, name: str, uri: str, kill_at: int | None = None, after: bool = False
    ) -> tuple[int, int]:
        """Its exit code, and the changes that it made."""
        killer = Killer(kill_at, after)
        self.proxy.begin()
        self.proxy.watch = killer.hear
        process = start(name, uri, self.worked / "s", env=self.env)
        killer.pid = process.pid
        return ended(process), killer.count

    def changes_of(self, name: str) -> int:
        if name not in self.changes:
            code, self.changes[name] = self.run(name, self.copy())
            assert code == 0
        return self.changes[name]


@pytest.fixture(scope="module")
def on_s3(s3_server: S3Server, worked: Path) -> Iterator[OnS3]:
    with reached(s3_server), fault_proxy(s3_server.endpoint) as proxy:
        yield OnS3(s3_server, proxy, worked)


@pytest.mark.parametrize(("name", "seed"), names(REMOTE))
def test_killed_at_any_request_to_s3_a_rerun_completes_it(
    undisturbed: Undisturbed, on_s3: OnS3, name: str, seed: int
) -> None:
    generator = random.Random(f"s3-{name}-{seed}")
    expected, _ = undisturbed.of(name)
    changes, uri = on_s3.changes_of(name), on_s3.copy()
    for number in range(1 + (generator.random() < TWICE)):
        kill_at, after = generator.randint(1, changes), generator.random() < 0.5
        code, _ = on_s3.run(name, uri, kill_at, after)
        # After the last answer it may have ended; a rerun has less to do.
        assert code == KILLED or (code == 0 and (number == 1 or (after and kill_at == changes)))
    code, _ = on_s3.run(name, uri)
    assert code == 0
    require_as_undisturbed(LakePaths(uri), name, expected)
