"""kill -9 at seeded random moments, then a rerun: the tables equal an undisturbed run's.

A small count in the suite, a large one by `make faults` (LATENTLAKE_FAULT_ROUNDS).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.schemas.model import MODEL_TABLES
from tests.command_process import CommandProcess
from tests.helpers import LATENTLAKE, TINY_STAGE, ok, write_source
from tests.inline import InlineTrain
from tests.limits import END_S, RUN_S
from tests.rounds import ROUNDS

pytestmark = pytest.mark.faults

NIGHT = ("--night", "2026-01-01")
STAGE = ("stage", "--dataset", "d", *TINY_STAGE, *NIGHT)
# At so large an alpha some images are flagged.
DRAWN = ("--reconstructions", "all", "--alpha", "0.9")
EMBED = ("embed", "--dataset", "d", "--model", "m", *DRAWN, *NIGHT)
# Everything but the names of runs; attempts never show in a table.
TABLES = ("images", "sources", "quarantine", *MODEL_TABLES, "embeddings")


# In the suite one of them: `test_every_change` kills every job, without Ray.
DRIVEN = ["stage", "embed"] if ROUNDS > 1 else ["stage"]

files: dict[str, int] = {}  # that a whole run makes, by job


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source`, `before` (nothing), `staged` and `trained` lakes, and `after`, the whole run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = [*range(1500), *range(100, 160)]  # some come twice
    write_source(folder / "source" / "a.parquet", rows, broken=[11, 700])
    lake = ("--lake", folder / "lake")
    (folder / "before").mkdir()
    process = start(*STAGE, "--source", folder / "source", *lake)
    files["stage"] = paths_seen(folder / "lake", process)
    assert process.wait() == 0
    shutil.copytree(folder / "lake", folder / "staged")
    if "embed" not in DRIVEN:
        return folder
    runner.run(InlineTrain(LakePaths((folder / "lake").as_uri())))
    shutil.copytree(folder / "lake", folder / "trained")
    process = start(*EMBED, *lake)
    files["embed"] = paths_seen(folder / "lake", process)
    assert process.wait() == 0
    return folder


def tables(folder: Path) -> dict[str, pa.Table]:
    lake = LakePaths(folder.as_uri())
    rows = "source_uri, source_row"
    order = {"sources": rows, "quarantine": rows, "batches": "batch"}
    return {
        name: views.sql(lake, f"SELECT * FROM {name} ORDER BY {order.get(name, 'image_id')}")
        for name in TABLES
    }


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(LATENTLAKE), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)


def paths_seen(lake: Path, process: subprocess.Popen[bytes], limit: int | None = None) -> int:
    """Watches a run's files come; kills it with its whole session once `limit` have been seen.

    The measure is progress and not time: the moment of a kill is the same on any machine.
    """
    before = set(lake.rglob("*"))
    seen: set[Path] = set()
    while process.poll() is None:
        for folder, _, names in os.walk(lake):
            seen.update(Path(folder) / name for name in names)
        if limit is not None and len(seen - before) >= limit:
            kill(process)
            break
        time.sleep(0.01)
    return len(seen - before)


def same_tables(undisturbed: Path, lake: Path, after: str) -> None:
    expected, found = tables(undisturbed / after), tables(lake)
    for name in TABLES:
        assert found[name].equals(expected[name]), f"{name} differs"


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("job", DRIVEN)
def test_a_killed_driver_costs_no_row(
    undisturbed: Path, commands: CommandProcess, tmp_path: Path, job: str, seed: int
) -> None:
    generator = random.Random(f"{job}-{seed}")
    before, after = {"stage": ("before", "staged"), "embed": ("trained", "lake")}[job]
    shutil.copytree(undisturbed / before, tmp_path / "lake")
    lake = ("--lake", tmp_path / "lake")
    command = (
        (*STAGE, "--source", undisturbed / "source", *lake) if job == "stage" else (*EMBED, *lake)
    )
    # The first kill falls within the work, the second anywhere up to the last commit.
    for share in (generator.uniform(0.0, 0.7), generator.uniform(0.3, 1.0)):
        process = start(*command)
        paths_seen(tmp_path / "lake", process, max(1, int(share * files[job])))
        if share < 0.3:
            assert process.returncode == -signal.SIGKILL
    ok(commands.run(*command))
    same_tables(undisturbed, tmp_path / "lake", after)
    assert ok(commands.run(*command, "--json")).json["units"] == 0


def unit_workers(session: int) -> list[int]:
    """Process ids of the busy workers below a driver's session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            name = (entry / "cmdline").read_bytes()
            if b"ray::_UnitActor.run" in name and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("seed", range(max(1, ROUNDS // 2)))
def test_killed_workers_cost_no_row(undisturbed: Path, tmp_path: Path, seed: int) -> None:
    """The run itself goes on, with new workers."""
    generator = random.Random(f"worker-{seed}")
    lake = tmp_path / "lake"
    process = start(*STAGE, "--source", undisturbed / "source", "--lake", lake)
    killed, wanted = 0, generator.randint(1, 3)
    deadline = time.monotonic() + RUN_S
    while process.poll() is None and time.monotonic() < deadline:
        workers = unit_workers(process.pid) if killed < wanted else []
        if workers:
            os.kill(generator.choice(workers), signal.SIGKILL)
            killed += 1
            time.sleep(generator.uniform(0.0, 0.5))
        time.sleep(0.02)
    assert process.wait(END_S) == 0
    assert killed
    same_tables(undisturbed, lake, "staged")


# The first one: before the node's worker is up.
SHARES = [0.14, *(random.Random(f"raylet-{s}").uniform(0.1, 0.8) for s in range(ROUNDS // 2))]


@pytest.mark.parametrize("share", SHARES)
def test_a_killed_raylet_costs_no_row(undisturbed: Path, tmp_path: Path, share: float) -> None:
    """A node of the cluster goes with its workers; the run ends on the other one."""
    from ray.cluster_utils import Cluster

    lake = tmp_path / "lake"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        address = ("--ray-address", cluster.address, "--workers", "2")
        process = start(*STAGE, "--source", undisturbed / "source", "--lake", lake, *address)
        while process.poll() is None and written(lake) < share * files["stage"]:
            time.sleep(0.01)
        assert process.poll() is None, "killed while the run was at work"
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        assert process.wait(RUN_S) == 0
    finally:
        cluster.shutdown()
    same_tables(undisturbed, lake, "staged")


def written(lake: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(lake))
