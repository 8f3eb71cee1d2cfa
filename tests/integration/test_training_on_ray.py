"""train and sweep on a real Ray: what they say, how they fail, what they leave."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import ray

from jobs.bundles import bundle
from jobs.bundles.manifest import read_about
from jobs.cluster.settings import RaySettings
from jobs.errors import InputError, JobError
from jobs.lake.paths import LakePaths
from jobs.settings import build
from jobs.sweep.job import sweep
from jobs.sweep.settings import SweepSettings
from jobs.sweep.trial import draw
from jobs.tables import catalog
from jobs.train.job import TrainJob
from jobs.train.task import TrainTask
from tests.integration.conftest import train
from tests.limits import SOON_S

pytestmark = pytest.mark.integration

TINY = {"latent_dim": 4, "network": {"kind": "mlp", "widths": [32]}, "batch_size": 64}


def folder_of(lake: LakePaths) -> Path:
    return Path(lake.uri.removeprefix("file://"))


def test_a_training_says_what_it_chose_and_how_far_it_is(trained: LakePaths, caplog) -> None:
    caplog.set_level("INFO", "latentlake")
    train(trained, model="telling", epochs=40, run={"log_s": 0.0})
    assert "cpu, float32, eager, 1 thread" in caplog.text
    assert "resident" in caplog.text
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("train telling@")]
    assert any("images/s" in line and "validation" in line for line in told)
    (run,) = (folder_of(trained) / "runs").glob("telling-*")
    names = {
        json.loads(line).get("name")
        for path in (run / "events").iterdir()
        for line in path.read_text().splitlines()
    }
    assert {"validation_nats", "kl_nats_D", "grad_norm", "images_per_s"} <= names
    assert list((run / "tensorboard").iterdir())
    assert not (run / "checkpoints").exists()


def test_a_mistake_is_told_at_once_and_not_tried_again(trained: LakePaths) -> None:
    with pytest.raises(InputError, match="batch_size 100000 is more than the"):
        train(trained, model="wrong", batch_size=100_000)
    assert worker_groups("wrong") <= 2  # a second one only hears that there is nothing to do


def worker_groups(model: str) -> int:
    """How many Ray Train has started for a model, as its controllers logged."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "train"
    lines = [line for log in logs.glob("*-app-controller-*") for line in log.open()]
    started = [line for line in lines if "Started training worker group" in line]
    return sum(f'"run_name": "{model}-' in line for line in started)


def test_an_error_of_ours_that_comes_again_and_again_is_not_tried_for_ever(
    trained: LakePaths, monkeypatch
) -> None:
    class Broken(TrainTask):
        """By value to the workers, who find it broken."""

        @property
        def run_folder(self) -> str:
            raise KeyError("nobody foresaw this")

    real = TrainJob.order_of

    def order_of(self: TrainJob, *arguments) -> TrainTask:
        order = real(self, *arguments)
        return Broken(**{f.name: getattr(order, f.name) for f in dataclasses.fields(order)})

    monkeypatch.setattr(TrainJob, "order_of", order_of)
    with pytest.raises(JobError, match="3 times alike: KeyError: 'nobody foresaw this'"):
        train(trained, model="broken")


def test_a_loss_that_is_not_finite_ends_it_with_the_images_named(trained: LakePaths) -> None:
    with pytest.raises(JobError, match=r"steps had no finite loss, run.max_bad_steps is 0"):
        train(trained, model="nan", learning_rate=1e30, epochs=5, run={"max_bad_steps": 0})
    (run,) = (folder_of(trained) / "runs").glob("nan-*")
    bad = [
        event
        for path in (run / "events").iterdir()
        for line in path.read_text().splitlines()
        if (event := json.loads(line))["event"] == "bad_step"
    ]
    assert bad
    assert all(len(image_id) == 64 for image_id in bad[0]["image_ids"])


def test_ray_serves_the_metrics(trained: LakePaths) -> None:
    train(trained, model="measured", epochs=30, run={"log_s": 0.0})
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline, text = time.monotonic() + SOON_S, ""
    from urllib.request import urlopen

    while "latentlake_train_images_per_s" not in text and time.monotonic() < deadline:
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SOON_S).read().decode()
        time.sleep(1.0)
    assert "latentlake_train_images_per_s" in text


def test_a_sweep_publishes_the_best_of_its_trials(trained: LakePaths) -> None:
    settings = build(
        SweepSettings,
        {
            "train": {"dataset": "d", "model": "swept", "epochs": 4, **TINY},
            "search": {"learning_rate": {"choice": [1e-6, 3e-3, 1e-5, 1e-3]}},
            "trials": 12,
            "reduction": 2,
        },
    )
    assert len(draw(settings)) == 4
    report, tried = sweep(trained, settings, "2026-01-01", RaySettings())
    assert [one.validation_nats for one in tried] == sorted(one.validation_nats for one in tried)
    assert tried[0].trial.drawn["learning_rate"] >= 1e-3
    assert tried[0].epochs == 4
    version = report.counts["version"]
    assert catalog.bundle_versions(trained, "swept") == [version]
    about = read_about(trained, "swept", version)
    assert about["metrics"]["validation_nats"] == pytest.approx(tried[0].validation_nats)
    assert bundle.load(trained, "swept", version).about["settings"]["learning_rate"] >= 1e-3
    assert not list(folder_of(trained).glob("runs/swept-*/checkpoints"))
    again, _ = sweep(trained, settings, "2026-01-02", RaySettings())
    assert (again.units, again.counts["version"]) == (0, version)
