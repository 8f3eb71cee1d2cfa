"""Lakes that are made once and copied for each test: 600 staged images with a trained model; two
nights of a champion each; a night of changed images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.tables.delta import Snapshot
from tests import drifted, reported
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineEvaluate, InlineStage, InlineTrain
from tests.labelled import write_labelled


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    torch.set_num_threads(1)


# Of lakes that are trained, evaluated or reported before a test begins.
TRAINED = {"trained_once", "judged_once", "reported_once", "embedded_once", "changed_once"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a training is none of `make fast`, whether or not it says so."""
    for item in items:
        if TRAINED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_source(folder / "source" / "a.parquet", range(600))
    lake = LakePaths((folder / "lake").as_uri())
    runner.run(InlineStage(lake, folder / "source", rows_per_unit=200))
    shutil.copytree(folder / "lake", folder / "staged")
    runner.run(InlineTrain(lake))
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> LakePaths:
    shutil.copytree(trained_once / "lake", tmp_path / "lake")
    return LakePaths((tmp_path / "lake").as_uri())


@pytest.fixture
def trained_source(trained_once: Path) -> Path:
    return trained_once / "source"


@pytest.fixture
def staged(trained_once: Path, tmp_path: Path) -> LakePaths:
    """The trained lake before it was: staged images only."""
    shutil.copytree(trained_once / "staged", tmp_path / "lake")
    return LakePaths((tmp_path / "lake").as_uri())


@pytest.fixture(scope="session")
def judged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_labelled(folder / "source" / "a.parquet", range(1300))
    lake = LakePaths((folder / "lake").as_uri())
    runner.run(InlineStage(lake, folder / "source", rows_per_unit=400))
    runner.run(InlineTrain(lake))
    runner.run(InlineEvaluate(lake))
    return folder


@pytest.fixture(scope="session")
def reported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights, the second with anomalies; its labels are hostile."""
    folder = tmp_path_factory.mktemp("reported")

    def named(label: int) -> str:
        return f"{reported.HOSTILE}{label}"

    reported.two_nights(folder, 700, 150, 40, names=named)
    return folder


@pytest.fixture
def judged(judged_once: Path, tmp_path: Path) -> LakePaths:
    """1,300 images with labels and anomalies; a model that has been evaluated."""
    shutil.copytree(judged_once / "lake", tmp_path / "lake")
    return LakePaths((tmp_path / "lake").as_uri())


@pytest.fixture
def nights(reported_once: Path, tmp_path: Path) -> LakePaths:
    shutil.copytree(reported_once / "lake", tmp_path / "reported")
    return LakePaths((tmp_path / "reported").as_uri())


@pytest.fixture(scope="session")
def embedded_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(trained_once / "lake", folder / "lake")
    runner.run(InlineEmbed(LakePaths((folder / "lake").as_uri()), alpha=drifted.ALPHA))
    return folder


@pytest.fixture
def embedded(embedded_once: Path, tmp_path: Path) -> LakePaths:
    shutil.copytree(embedded_once / "lake", tmp_path / "lake")
    return LakePaths((tmp_path / "lake").as_uri())


@pytest.fixture(scope="session")
def changed_once(embedded_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(embedded_once / "lake", folder / "lake")
    lake = LakePaths((folder / "lake").as_uri())
    drifted.arrive(lake, folder, range(600, 700), drifted.negative)
    return folder


@pytest.fixture
def changed(changed_once: Path, tmp_path: Path) -> LakePaths:
    """A second night of the same things as negatives, embedded."""
    shutil.copytree(changed_once / "lake", tmp_path / "lake")
    shutil.copytree(changed_once / "more", tmp_path / "more")
    return LakePaths((tmp_path / "lake").as_uri())


class Killed(KeyboardInterrupt):
    pass


@pytest.fixture
def half_done(lake: LakePaths, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a lake whose first commit has reached one table of three."""
    root = local_path(lake.uri)
    assert root is not None
    real, left = Snapshot.commit, [1]

    def commit(self, *arguments, **more):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "commit", commit)
        with pytest.raises(Killed):
            runner.run(InlineStage(lake, source.parent))
    return root
