"""Trainings that die anywhere and go on: bit for bit what an undisturbed one is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from jobs.bundles import bundle
from jobs.bundles.manifest import read_about
from jobs.datasets import splits
from jobs.engine import runner
from jobs.engine.plan import Unit
from jobs.engine.records import load_completions
from jobs.errors import JobError, StorageError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.tables import catalog
from jobs.telemetry.metrics import Listener, Telemetry
from jobs.train import checkpoints, finalize
from jobs.train import loop as train_loop
from jobs.train.finalize import complete_publication, find_published
from jobs.train.loop import Training
from jobs.train.settings import TrainSettings
from tests.inline import InlineTrain
from tests.unit.jobs.train.test_job import weights


def kill_at(monkeypatch, step: int, beat: int = 2) -> None:
    """The process dies in a step, with a checkpoint at every beat before it."""
    real = Training._step

    def dies(self: Training, share) -> None:
        self._saver.wait()  # else a slow disk would leave checkpoints out
        if self.position.step == step:
            raise KeyboardInterrupt
        real(self, share)

    monkeypatch.setattr(train_loop, "BEAT_STEPS", beat)
    monkeypatch.setattr(Training, "_step", dies)


SAVING = {"run": {"checkpoint_s": 0.0}}


@pytest.mark.parametrize("step", [0, 1, 3, 8, 9, 15])
@pytest.mark.parametrize("data", ["resident", "streamed"])
def test_a_killed_training_goes_on_in_mid_epoch_and_ends_bit_for_bit_the_same(
    staged: LakePaths, trained_once: Path, monkeypatch, data: str, step: int
) -> None:
    settings = {"run": {"checkpoint_s": 0.0, "data": data}}
    kill_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, **settings))
    assert catalog.bundle_versions(staged, "m") == []
    monkeypatch.undo()
    taken: list[int] = []
    real = Training._step
    monkeypatch.setattr(
        Training, "_step", lambda self, x: (taken.append(self.position.step), real(self, x))
    )
    runner.run(InlineTrain(staged, **settings))
    # From the last beat of the epoch that it died in, or from its beginning.
    assert taken == list(range(8 * (step // 8) + (step % 8) // 2 * 2, 16))
    undisturbed = LakePaths((trained_once / "lake").as_uri())
    for name, value in weights(staged).items():
        assert torch.equal(value, weights(undisturbed)[name]), name
    histories = [
        read_about(lake, *catalog.resolve_model(lake, "m"))["history"]
        for lake in (staged, undisturbed)
    ]
    for entry, expected in zip(*histories, strict=True):
        timed = ("seconds", "images_per_s")
        told = {name: value for name, value in entry.items() if name not in timed}
        assert told == {name: value for name, value in expected.items() if name not in timed}


RICH = {
    "ema_decay": 0.9,
    "flip": True,
    "crop": 2,
    "weight_decay": 0.01,
    "clip_norm": 5.0,
    "warmup_steps": 3,
    "epochs": 3,
    "objective": {"kl_warmup_steps": 6},
    "likelihood": {"kind": "optimal_gaussian"},
}


def test_all_of_the_state_is_in_a_checkpoint(
    staged: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    root = local_path(staged.uri)
    assert root is not None
    shutil.copytree(root, tmp_path / "other")
    whole = LakePaths((tmp_path / "other").as_uri())
    runner.run(InlineTrain(whole, **RICH, **SAVING))
    for step in (5, 13, 20):
        kill_at(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            runner.run(InlineTrain(staged, **RICH, **SAVING))
        monkeypatch.undo()
    runner.run(InlineTrain(staged, **RICH, **SAVING))
    expected = weights(whole)
    for name, value in weights(staged).items():
        assert torch.equal(value, expected[name]), name


def test_the_newest_checkpoints_are_kept_and_the_best_weights_with_them(
    staged: LakePaths, monkeypatch
) -> None:
    kill_at(monkeypatch, 15)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, **SAVING))
    (run,) = (local_path(staged.uri) / "runs").iterdir()
    names = sorted(path.name.split("-")[0] for path in (run / "checkpoints").iterdir())
    assert names == ["best", "step", "step", "step", "step"]  # two of state and JSON
    steps = sorted(path.name for path in (run / "checkpoints").glob("*.json"))
    assert steps == ["step-0000000012.json", "step-0000000014.json"]


def test_training_goes_on_while_checkpoints_cannot_be_saved(
    staged: LakePaths, trained_once: Path, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO", "latentlake")
    real, tries = checkpoints.create_or_keep, []

    def away(uri: str, data: bytes) -> bool:
        tries.append(uri)
        if len(tries) < 6:
            raise StorageError(f"cannot write {uri}: the lake is away")
        return real(uri, data)

    monkeypatch.setattr(checkpoints, "create_or_keep", away)
    monkeypatch.setattr(train_loop, "BEAT_STEPS", 1)
    runner.run(InlineTrain(staged, **SAVING))
    assert "the lake is away; training goes on" in caplog.text
    undisturbed = weights(LakePaths((trained_once / "lake").as_uri()))
    assert all(torch.equal(v, undisturbed[n]) for n, v in weights(staged).items())
    # What was saved after that can be gone on from: the best weights, too.
    assert any("best-" in uri for uri in tries[5:])


def test_a_resident_training_needs_no_lake_after_its_first_epoch(
    staged: LakePaths, trained_once: Path, monkeypatch
) -> None:
    real, away = splits.read_row_group, []

    def read(uri: str, *arguments) -> pa.Table:
        if away:
            raise StorageError(f"cannot read {uri}: the lake is away")
        return real(uri, *arguments)

    monkeypatch.setattr(splits, "read_row_group", read)
    monkeypatch.setattr("jobs.train.loop.PICTURES_S", 0.0)

    class Ear(Listener):
        def flush(self) -> None:
            away.append(True)

        def close(self) -> None:
            away.clear()

    telemetry = Telemetry([Ear()])
    monkeypatch.setattr("tests.inline.TELEMETRY", telemetry)
    real_publish = finalize.publish
    monkeypatch.setattr(
        finalize, "publish", lambda *a, **k: (telemetry.close(), real_publish(*a, **k))
    )
    runner.run(InlineTrain(staged))
    undisturbed = weights(LakePaths((trained_once / "lake").as_uri()))
    assert all(torch.equal(v, undisturbed[n]) for n, v in weights(staged).items())


def test_a_checkpoint_of_another_model_is_refused(staged: LakePaths, monkeypatch) -> None:
    kill_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, **SAVING))
    monkeypatch.undo()
    real = TrainSettings.model_config_of
    monkeypatch.setattr(
        TrainSettings,
        "model_config_of",
        lambda self, shape: dataclasses.replace(real(self, shape), latent_dim=5),
    )
    with pytest.raises(JobError, match=r"(?s)of another model .*--fresh"):
        runner.run(InlineTrain(staged, **SAVING))


def test_moments_are_laid_out_as_their_weights_again(staged: LakePaths, monkeypatch) -> None:
    """A fused optimiser goes by memory: rows of another layout would be other numbers."""
    settings = {
        "network": {"kind": "conv", "widths": [8, 8], "hidden": 16},
        "run": {"checkpoint_s": 0.0, "channels_last": True},
    }
    runner.run(InlineTrain(staged, model="whole", **settings))
    kill_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, **settings))
    monkeypatch.undo()
    runner.run(InlineTrain(staged, **settings))
    expected = bundle.load(staged, *catalog.resolve_model(staged, "whole")).weights
    for name, value in weights(staged).items():
        assert torch.equal(value, expected[name]), name


def test_a_rerun_brings_its_own_way_of_running(staged: LakePaths, monkeypatch) -> None:
    kill_at(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, workers=2, **SAVING))
    monkeypatch.undo()
    orders = []
    real = InlineTrain.fit
    monkeypatch.setattr(InlineTrain, "fit", lambda self, o: (orders.append(o), real(self, o)))
    runner.run(InlineTrain(staged, workers=1, run={"max_bad_steps": 50}))
    (order,) = orders
    assert (order.train_settings.workers, order.train_settings.run.max_bad_steps) == (1, 50)


def test_a_restart_after_the_bundle_is_there_trains_nothing(trained: LakePaths) -> None:
    work = InlineTrain(trained)
    plan = work.plan()
    unit = Unit.of(plan.fingerprint, {"version": plan.fingerprint})
    order = work.order_of(plan, unit)
    assert find_published(order)
    assert not load_completions(trained, order.job_id, [unit.unit_id])  # a question writes nothing
    complete_publication(order)
    (completion,) = load_completions(trained, order.job_id, [unit.unit_id]).values()
    assert completion.counts["steps"] == 16
    assert set(completion.details) >= {"train_nats", "validation_nats"}
    assert not find_published(dataclasses.replace(order, version="0" * 12))


def test_what_another_attempt_has_yet_to_name_is_left_alone(tmp_path: Path) -> None:
    """A late attempt puts state, another one thins out, then the first one names its state."""
    folder = tmp_path.as_uri()
    late = checkpoints.Saver(folder, "late", 1, print)
    other = checkpoints.Saver(folder, "other", 1, print)
    tensors = {"model.w": torch.zeros(3)}
    late._put("step-0000000200-late.safetensors", tensors)
    for step in (100, 150):
        other.save(checkpoints.Position(step=step), tensors, None)
        other.wait()
    names = {path.name for path in tmp_path.iterdir()}
    assert "step-0000000200-late.safetensors" in names
    assert "step-0000000100-other.safetensors" not in names
    assert checkpoints.newest(folder) == "step-0000000150.json"
    late.save(checkpoints.Position(step=200), tensors, None)
    late.wait()
    assert checkpoints.load(folder, checkpoints.newest(folder)).position.step == 200


def test_a_checkpoint_that_lacks_a_part_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path.as_uri()
    saver = checkpoints.Saver(folder, "a", 2, print)
    for step in (1, 2):
        saver.save(checkpoints.Position(step=step), {"model.w": torch.zeros(3)}, None)
        saver.wait()
    (tmp_path / "step-0000000002-a.safetensors").unlink()
    assert checkpoints.newest(folder) == "step-0000000001.json"
    (tmp_path / "step-0000000001-a.safetensors").unlink()
    assert checkpoints.newest(folder) is None
