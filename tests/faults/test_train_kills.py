"""kill -9 of a training's worker, driver or node at seeded random steps: the bundle is the same.

On two raylets in one machine. A small count in the suite, a large one by `make faults`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.bundles import bundle
from jobs.bundles.bundle import Bundle
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from tests import limits
from tests.command_process import CommandProcess
from tests.faults.test_kills import kill, start
from tests.helpers import ok, write_source
from tests.inline import InlineStage
from tests.rounds import ROUNDS
from tests.serving import children, command_of

pytestmark = pytest.mark.faults

EPOCHS = 20
NIGHT = ("--night", "2026-01-01")
SETTINGS = {
    "dataset": "d",
    "model": "m",
    "epochs": EPOCHS,
    "latent_dim": 4,
    "network": {"kind": "mlp", "widths": [256, 256]},
    "batch_size": 64,
    "ema_decay": 0.99,
    "workers": 2,
    "run": {"checkpoint_s": 0.3, "log_s": 0.0},
}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-kills")
    write_source(folder / "source" / "a.parquet", range(3000))
    runner.run(
        InlineStage(LakePaths((folder / "lake").as_uri()), folder / "source", rows_per_unit=1000)
    )
    return folder / "lake"


@pytest.fixture(scope="module")
def undisturbed(
    staged: Path, commands: CommandProcess, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    shutil.copytree(staged, lake)
    ok(commands.run("train", "--config", written(lake.parent, SETTINGS), "--lake", lake, *NIGHT))
    return bundle_of(lake)


@pytest.fixture
def lake(staged: Path, tmp_path: Path) -> Path:
    shutil.copytree(staged, tmp_path / "lake")
    return tmp_path / "lake"


def written(folder: Path, settings: dict) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def bundle_of(lake: Path) -> Bundle:
    held = LakePaths(lake.as_uri())
    return bundle.load(held, *catalog.resolve_model(held, "m"))


def same(found: Bundle, expected: Bundle) -> None:
    assert found.version == expected.version
    for name, value in expected.weights.items():
        assert value.equal(found.weights[name]), name
    assert (found.calibration_scores == expected.calibration_scores).all()


class Raylets:
    """A head and another node, with one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.node = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()

    def add(self) -> None:
        self.node = self.cluster.add_node(num_cpus=1)

    def kill(self) -> None:
        """The raylet with all its workers, as a machine that is lost takes them.

        Without their raylet workers end too, but only after a while, which may be long enough to
        finish the training.
        """
        raylet = self.node.all_processes["raylet"][0].process.pid
        for process in (raylet, *children(raylet)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def free(self) -> bool:
        """Whether both nodes can take a worker: an earlier training's may still be going."""
        return self.cluster.global_state.available_resources().get("CPU") == 2

    def train_workers(self) -> list[int]:
        return train_workers(
            *(
                node.all_processes["raylet"][0].process.pid
                for node in (self.cluster.head_node, self.node)
            )
        )

    @property
    def address(self) -> tuple[str, str]:
        return "--ray-address", self.cluster.address


@pytest.fixture(scope="module")
def _raylets() -> Iterator[Raylets]:
    made = Raylets()
    try:
        yield made
    finally:
        made.cluster.shutdown()


@pytest.fixture
def raylets(_raylets: Raylets) -> Raylets:
    """Two nodes with nothing to do; each test leaves two behind."""
    limits.until(_raylets.free)
    return _raylets


def steps(lake: Path) -> int:
    """Of the newest checkpoint."""
    found = [int(path.stem.split("-")[1]) for path in lake.rglob("checkpoints/step-*.json")]
    return max(found, default=0)


def until(process: subprocess.Popen[bytes], lake: Path, step: int) -> None:
    def reached() -> bool:
        assert process.poll() is None, "it ended before it was killed"
        return steps(lake) >= step

    limits.until(reached, limits.RUN_S, every_s=0.05)


def train_workers(*parents: int) -> list[int]:
    """Process ids of the Ray Train workers among their children."""
    found = [pid for parent in parents for pid in children(parent)]
    return [pid for pid in found if "RayTrainWorker" in command_of(pid)]


def forked_train_workers(session: int) -> list[int]:
    """The same of an embedded cluster, whose workers are no children of its raylet."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if os.getsid(pid) == session and "RayTrainWorker" in command_of(pid):
                found.append(pid)
    return found


# The first of the cluster: Ray holds what a killed training had requested three minutes longer, and
# one that takes what is there waits for that.
def test_a_training_goes_on_with_fewer_workers_and_with_more_again(
    undisturbed: Bundle, lake: Path, raylets: Raylets
) -> None:
    """2 → 1 → 2 nodes: the same order and batches, so the same numbers to rounding."""
    run = {**SETTINGS["run"], "min_workers": 1}
    config = written(lake.parent, {**SETTINGS, "run": run})
    process = start("train", "--config", config, "--lake", lake, *NIGHT, *raylets.address)
    until(process, lake, 100)
    raylets.kill()
    until(process, lake, steps(lake) + 100)
    raylets.add()
    assert process.wait(limits.RUN_S) == 0
    found = bundle_of(lake)
    assert found.version == undisturbed.version
    for entry, expected in zip(found.about["history"], undisturbed.about["history"], strict=True):
        assert entry["step"] == expected["step"]
        for name in ("train_nats", "validation_nats"):
            assert entry[name] == pytest.approx(expected[name], rel=5e-3), (name, entry["epoch"])
    events = [
        json.loads(line)
        for path in lake.rglob("events/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert any("going on from" in event.get("text", "") for event in events)
    # What each attempt told is there: every epoch's validation, by whoever did it.
    told = {e["epoch"] for e in events if e.get("name") == "validation_nats"}
    assert told == set(range(1, EPOCHS + 1))


STEPS = EPOCHS * 38  # 2,400 train images in batches of 64


@pytest.mark.parametrize("seed", range(max(1, ROUNDS // 2)))
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    undisturbed: Bundle, lake: Path, raylets: Raylets, seed: int
) -> None:
    """A worker, a node and the driver, one after the other at random steps, in random order."""
    generator = random.Random(f"train-{seed}")
    config = written(lake.parent, SETTINGS)
    command = ("train", "--config", config, "--lake", lake, *NIGHT, *raylets.address)
    process = start(*command)
    kinds = generator.sample(["worker", "node", "driver"], 3)
    first = 1
    for number, kind in enumerate(kinds, 1):
        until(process, lake, generator.randint(first, max(first, STEPS * number // 4)))
        if kind == "worker":
            os.kill(generator.choice(raylets.train_workers()), signal.SIGKILL)
        elif kind == "node":
            raylets.kill()
            raylets.add()
        else:
            kill(process)
            process = start(*command)
        first = steps(lake) + 1
    assert process.wait(limits.RUN_S) == 0
    same(bundle_of(lake), undisturbed)


def test_a_killed_worker_of_an_embedded_cluster_is_no_loss_either(
    undisturbed: Bundle, lake: Path
) -> None:
    process = start("train", "--config", written(lake.parent, SETTINGS), "--lake", lake, *NIGHT)
    until(process, lake, random.Random("embedded").randint(1, STEPS // 2))
    os.kill(forked_train_workers(process.pid)[0], signal.SIGKILL)
    assert process.wait(limits.RUN_S) == 0
    same(bundle_of(lake), undisturbed)
