"""Work: a job in plain words, and the name of its submission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.nightly.settings import NightlySettings
from jobs.cluster.settings import RaySettings
from jobs.dispatch.request import JobRequest
from jobs.dispatch.run import job_of
from jobs.dispatch.submit import submission_name
from jobs.embed.job import EmbedJob
from jobs.embed.settings import EmbedSettings
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.maintain.settings import MaintainSettings
from jobs.settings import build
from jobs.stage.job import StageJob
from jobs.stage.settings import StageSettings
from jobs.train.job import TrainJob
from jobs.train.settings import TrainSettings

FAR = RaySettings(address="http://head:8265")
STAGE = StageSettings(source="s3://b/photos/*.parquet", dataset="photos")


def work(settings: Any = STAGE, night: str = "2026-01-01", ray: RaySettings = FAR) -> JobRequest:
    return JobRequest.of(settings, "s3://b/lake", night, ray)


def test_it_survives_the_way_to_another_process() -> None:
    train = TrainSettings(dataset="photos", model="m", epochs=3)
    for settings in (STAGE, train, EmbedSettings(dataset="photos", model="m@champion")):
        told = work(settings)
        assert JobRequest.model_validate_json(told.model_dump_json()) == told


def test_its_job_is_the_one_that_was_asked_for(lake: LakePaths) -> None:
    stage = job_of(JobRequest.of(STAGE, lake.uri, "2026-01-01", RaySettings()))
    assert isinstance(stage, StageJob)
    assert (stage.settings, stage.night, stage.lake) == (STAGE, "2026-01-01", lake)
    settings = TrainSettings(dataset="photos", model="m", epochs=3)
    train = job_of(JobRequest.of(settings, lake.uri, "2026-01-01", RaySettings(), fresh=True))
    assert isinstance(train, TrainJob)
    assert (train.settings, train.fresh) == (settings, True)
    with pytest.raises(InputError, match="unknown dataset 'photos'"):
        job_of(
            JobRequest.of(EmbedSettings(dataset="photos", model="m"), lake.uri, "2026-01-01", FAR)
        )
    assert EmbedJob.name == "embed"


def test_a_submission_is_named_after_its_work() -> None:
    name = submission_name(work())
    assert name.startswith("latentlake-stage-photos-2026-01-01-")
    assert name == submission_name(work())
    embed = submission_name(work(EmbedSettings(dataset="photos", model="m@champion")))
    assert embed.startswith("latentlake-embed-m-champion-2026-01-01-")
    assert submission_name(work(MaintainSettings())).startswith("latentlake-maintain-all-")
    # However the cluster is reached.
    assert name == submission_name(work(ray=RaySettings(address="https://other:443")))


def test_other_work_has_another_name(tmp_path: Path) -> None:
    wheel = tmp_path / "latentlake.whl"
    wheel.write_bytes(b"one")
    brought = RaySettings(address=FAR.address, wheel=str(wheel))
    one = submission_name(work(ray=brought))
    wheel.write_bytes(b"two")
    two = submission_name(work(ray=brought))
    changed = STAGE.model_copy(update={"height": 32})
    names = [submission_name(work()), submission_name(work(changed)), one, two]
    names += [submission_name(work(night="2026-01-02"))]
    names += [submission_name(JobRequest.of(STAGE, "s3://b/other", "2026-01-01", FAR))]
    assert len(set(names)) == len(names)


def test_a_wheel_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="cannot read the wheel /nowhere"):
        submission_name(work(ray=RaySettings(address=FAR.address, wheel="/nowhere.whl")))


def test_where_it_runs() -> None:
    assert FAR.takes_jobs
    for near in (RaySettings(), RaySettings(address="auto"), RaySettings(address="head:6379")):
        assert not near.takes_jobs
    with pytest.raises(InputError, match="a wheel goes with jobs that are submitted"):
        build(RaySettings, {"wheel": "x.whl"})
    minimal = {
        "stage": {"source": "s", "dataset": "d"},
        "train": {"dataset": "d", "model": "m"},
        "embed": {"dataset": "d", "model": "m"},
    }
    settings = build(NightlySettings, {**minimal, "ray": "local"})
    assert settings.ray == RaySettings()
    with pytest.raises(InputError, match="ray"):
        build(NightlySettings, {**minimal, "ray": "remote"})
