"""Trainings that die anywhere and go on: bit for bit what an undisturbed one is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from jobs import catalog, checkpoints, job, training
from jobs.bundle_about import read_about
from jobs.config import TrainSettings
from jobs.errors import JobError, StorageError
from jobs.lake import Lake
from jobs.storage import local_path
from jobs.training import Training
from tests.inline import InlineTrain
from tests.unit.jobs.test_train import weights


def kill_at(monkeypatch, step: int, beat: int = 2) -> None:
    """The process dies in a step, with a checkpoint at every beat before it."""
    real = Training._step

    def dies(self: Training, share) -> None:
        self._saver.wait()  # else a slow disk would leave checkpoints out
        if self.position.step == step:
            raise KeyboardInterrupt
        real(self, share)

    monkeypatch.setattr(training, "BEAT_STEPS", beat)
    monkeypatch.setattr(Training, "_step", dies)


SAVING = {"run": {"checkpoint_s": 0.0}}


@pytest.mark.parametrize("step", [0, 1, 3, 8, 9, 15])
@pytest.mark.parametrize("data", ["resident", "streamed"])
def test_a_killed_training_goes_on_in_mid_epoch_and_ends_bit_for_bit_the_same(
    staged: Lake, trained_once: Path, monkeypatch, data: str, step: int
) -> None:
    settings = {"run": {"checkpoint_s": 0.0, "data": data}}
    kill_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged, **settings))
    assert catalog.bundle_versions(staged, "m") == []
    monkeypatch.undo()
    taken: list[int] = []
    real = Training._step
    monkeypatch.setattr(
        Training, "_step", lambda self, x: (taken.append(self.position.step), real(self, x))
    )
    job.run(InlineTrain(staged, **settings))
    # From the last beat of the epoch that it died in, or from its beginning.
    assert taken == list(range(8 * (step // 8) + (step % 8) // 2 * 2, 16))
    undisturbed = Lake((trained_once / "lake").as_uri())
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


def test_all_of_the_state_is_in_a_checkpoint(staged: Lake, tmp_path: Path, monkeypatch) -> None:
    root = local_path(staged.uri)
    assert root is not None
    shutil.copytree(root, tmp_path / "other")
    whole = Lake((tmp_path / "other").as_uri())
    job.run(InlineTrain(whole, **RICH, **SAVING))
    for step in (5, 13, 20):
        kill_at(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            job.run(InlineTrain(staged, **RICH, **SAVING))
        monkeypatch.undo()
    job.run(InlineTrain(staged, **RICH, **SAVING))
    expected = weights(whole)
    for name, value in weights(staged).items():
        assert torch.equal(value, expected[name]), name


def test_the_newest_checkpoints_are_kept_and_the_best_weights_with_them(
    staged: Lake, monkeypatch
) -> None:
    kill_at(monkeypatch, 15)
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged, **SAVING))
    (run,) = (local_path(staged.uri) / "runs").iterdir()
    names = sorted(path.name.split("-")[0] for path in (run / "checkpoints").iterdir())
    assert names == ["best", "step", "step", "step", "step"]  # two of state and JSON
    steps = sorted(path.name for path in (run / "checkpoints").glob("*.json"))
    assert steps == ["step-0000000012.json", "step-0000000014.json"]


def test_training_goes_on_while_checkpoints_cannot_be_saved(
    staged: Lake, trained_once: Path, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO", "latentlake")
    real, tries = checkpoints.create_or_keep, []

    def away(uri: str, data: bytes) -> bool:
        tries.append(uri)
        if len(tries) < 6:
            raise StorageError(f"cannot write {uri}: the lake is away")
        return real(uri, data)

    monkeypatch.setattr(checkpoints, "create_or_keep", away)
    monkeypatch.setattr(training, "BEAT_STEPS", 1)
    job.run(InlineTrain(staged, **SAVING))
    assert "the lake is away; training goes on" in caplog.text
    undisturbed = weights(Lake((trained_once / "lake").as_uri()))
    assert all(torch.equal(v, undisturbed[n]) for n, v in weights(staged).items())
    # What was saved after that can be gone on from: the best weights, too.
    assert any("best-" in uri for uri in tries[5:])


def test_a_checkpoint_of_another_model_is_refused(staged: Lake, monkeypatch) -> None:
    kill_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged, **SAVING))
    monkeypatch.undo()
    real = TrainSettings.model_config_of
    monkeypatch.setattr(
        TrainSettings,
        "model_config_of",
        lambda self, shape: dataclasses.replace(real(self, shape), latent_dim=5),
    )
    with pytest.raises(JobError, match=r"(?s)of another model .*--fresh"):
        job.run(InlineTrain(staged, **SAVING))
