"""Lakes made with real Ray, once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.cluster.settings import RaySettings
from jobs.embed.job import EmbedJob
from jobs.embed.settings import EmbedSettings
from jobs.engine import runner
from jobs.engine.report import JobReport
from jobs.lake.paths import LakePaths
from jobs.stage.job import StageJob
from jobs.stage.settings import StageSettings
from jobs.train.job import TrainJob
from jobs.train.settings import TrainSettings
from tests.helpers import write_source

RAY = RaySettings(cpus=2)
NIGHT = "2026-01-01"
TRAIN = {
    "dataset": "d",
    "model": "m",
    "epochs": 3,
    "latent_dim": 4,
    "batch_size": 64,
    "score_batch": 128,
    "score_samples": 2,
    "network": {"kind": "conv", "widths": [8, 8], "hidden": 32},
}


def stage(lake: LakePaths, source: Path, night: str = NIGHT, **settings) -> JobReport:
    values = {"height": 28, "width": 28, "channels": 1, "rows_per_unit": 250} | settings
    staged = StageSettings(source=str(source), dataset="d", **values)
    return runner.run(StageJob(lake, staged, night, RAY))


def train(lake: LakePaths, night: str = NIGHT, **settings) -> JobReport:
    return runner.run(TrainJob(lake, TrainSettings.model_validate(TRAIN | settings), night, RAY))


def embed(lake: LakePaths, night: str = NIGHT, **settings) -> JobReport:
    settings = {"dataset": "d", "model": "m"} | settings
    return runner.run(EmbedJob(lake, EmbedSettings.model_validate(settings), night, RAY))


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` with 1,000 images and `lake` with these staged and a model trained on two ranks."""
    folder = tmp_path_factory.mktemp("integration")
    write_source(folder / "source" / "a.parquet", range(1000))
    lake = LakePaths((folder / "lake").as_uri())
    stage(lake, folder / "source")
    train(lake, workers=2)
    return folder


@pytest.fixture
def trained(trained_folder: Path, tmp_path: Path) -> LakePaths:
    shutil.copytree(trained_folder / "lake", tmp_path / "lake")
    return LakePaths((tmp_path / "lake").as_uri())
