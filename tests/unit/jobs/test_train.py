"""train as a whole, but for Ray: bundles, aliases, resuming, the same numbers for any ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import bundle, catalog, checkpoints, job
from jobs.bundle_about import read_about
from jobs.errors import InputError, JobError
from jobs.lake import Lake
from jobs.storage import local_path
from tests.helpers import write_source
from tests.inline import InlineStage, InlineTrain


@pytest.fixture
def staged(trained: Lake) -> Lake:
    """The trained lake without its model: staged images only."""
    root = local_path(trained.uri)
    assert root is not None
    shutil.rmtree(root / "models")
    shutil.rmtree(root / "catalog" / "aliases")
    runs = root / "catalog" / "runs"
    assert runs.exists()
    return trained


def weights(lake: Lake) -> dict[str, torch.Tensor]:
    return bundle.load(lake, *catalog.resolve_model(lake, "m")).weights


def test_a_bundle_tells_what_it_is_and_the_champion_names_it(trained: Lake) -> None:
    model, version = catalog.resolve_model(trained, "m")
    assert (model, len(version)) == ("m", 12)
    assert catalog.resolve_model(trained, f"m@{version}") == (model, version)
    about = read_about(trained, model, version)
    held = bundle.load(trained, model, version)
    assert about["data"]["dataset"] == "d"
    assert about["data"]["images_version"] == 1
    assert about["decision_score"] == "neg_elbo"
    assert len(held.calibration_scores) == about["data"]["calibration_images"] > 30
    assert np.all(np.diff(held.calibration_scores) >= 0)
    history = about["history"]
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[1]["train_nats"] < history[0]["train_nats"]
    files = {p.name for p in local_path(trained.bundle(model, version)).iterdir()}
    assert files == {"model.json", *about["files"].values()}


def test_a_rerun_trains_nothing_and_another_config_is_another_version(trained: Lake) -> None:
    again = InlineTrain(trained, night="2026-01-02")
    assert job.run(again).units == 0
    assert again.executed == []
    champion = catalog.aliases(trained, "m")["champion"]
    other = InlineTrain(trained, seed=1)
    report = job.run(other)
    assert report.counts["version"] != champion
    assert len(catalog.bundle_versions(trained, "m")) == 2
    assert catalog.aliases(trained, "m") == {"champion": champion}
    job.run(InlineTrain(trained, seed=1, promote=True))
    assert catalog.aliases(trained, "m") == {"champion": report.counts["version"]}


def test_an_alias_moves_there_and_back_again_on_one_night(trained: Lake) -> None:
    first = catalog.aliases(trained, "m")["champion"]
    second = job.run(InlineTrain(trained, seed=1, promote=True)).counts["version"]
    for seed, version in ((0, first), (1, second), (0, first)):
        job.run(InlineTrain(trained, seed=seed, promote=True))
        assert catalog.aliases(trained, "m") == {"champion": version}


def test_a_killed_training_is_no_business_of_another_dataset(
    staged: Lake, trained_source: Path, monkeypatch
) -> None:
    other = InlineStage(staged, trained_source)
    other.target = "e"
    job.run(other)
    monkeypatch.setattr(InlineTrain, "fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged, dataset="e"))
    monkeypatch.undo()
    mine = InlineTrain(staged)
    job.run(mine)
    assert len(mine.executed) == 1
    champion = catalog.aliases(staged, "m")["champion"]
    assert read_about(staged, "m", champion)["data"]["dataset"] == "d"


def test_a_resumed_training_is_not_followed_by_one_on_newer_images(
    staged: Lake, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(InlineTrain, "fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged))
    monkeypatch.undo()
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    job.run(InlineStage(staged, tmp_path / "more", night="2026-01-02"))
    again = InlineTrain(staged, night="2026-01-02")
    job.run(again)
    assert len(again.executed) == 1
    assert len(catalog.bundle_versions(staged, "m")) == 1


def test_worker_counts_and_names_are_no_part_of_the_version(trained: Lake) -> None:
    plan = InlineTrain(trained).plan().fingerprint
    assert InlineTrain(trained, workers=7).plan().fingerprint == plan
    assert InlineTrain(trained, alias="candidate").plan().fingerprint == plan
    assert InlineTrain(trained, epochs=3).plan().fingerprint != plan
    assert InlineTrain(trained, batch_size=32).plan().fingerprint != plan


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_a_killed_training_goes_on_and_ends_bit_for_bit_the_same(
    staged: Lake, trained_once: Path, monkeypatch, epochs_done: int
) -> None:
    real = checkpoints.save

    def save_and_die(folder, attempt, checkpoint):
        real(folder, attempt, checkpoint)
        if checkpoint.epochs == epochs_done:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged))
    assert catalog.bundle_versions(staged, "m") == []
    monkeypatch.undo()
    saved: list[int] = []
    monkeypatch.setattr(checkpoints, "save", lambda f, a, c: saved.append(c.epochs))
    job.run(InlineTrain(staged))
    assert saved == list(range(epochs_done + 1, 3))
    undisturbed = weights(Lake((trained_once / "lake").as_uri()))
    for name, value in weights(staged).items():
        assert torch.equal(value, undisturbed[name]), name


def test_a_crash_after_the_bundle_publishes_the_alias_without_training(staged, monkeypatch) -> None:
    monkeypatch.setattr(InlineTrain, "settle", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.run(InlineTrain(staged))
    monkeypatch.undo()
    assert catalog.aliases(staged, "m") == {}
    again = InlineTrain(staged, night="2026-01-02")
    job.run(again)
    assert again.executed == []
    assert list(catalog.aliases(staged, "m")) == ["champion"]


def test_validation_covers_the_whole_split_whatever_the_scoring_batch(staged: Lake) -> None:
    reports = [job.run(InlineTrain(staged, model=f"m{size}", score_batch=size)) for size in (7, 64)]
    found = [report.counts["validation_nats"] for report in reports]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(staged: Lake) -> None:
    with pytest.raises(JobError, match=r"not finite|nan|inf"):
        job.run(InlineTrain(staged, learning_rate=1e12, epochs=20))
    assert catalog.bundle_versions(staged, "m") == []
    assert catalog.aliases(staged, "m") == {}


def test_unknown_names_list_the_known_ones(trained: Lake) -> None:
    with pytest.raises(InputError, match="unknown dataset 'x'; known: d"):
        job.run(InlineTrain(trained, dataset="x"))
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        catalog.resolve_model(trained, "x")
    with pytest.raises(InputError, match=r"'prod'; known: .*champion"):
        catalog.resolve_model(trained, "m@prod")


def test_too_few_images_for_the_splits_are_told(tmp_path: Path) -> None:
    lake = Lake((tmp_path / "lake").as_uri())
    write_source(tmp_path / "s" / "a.parquet", range(2))
    job.run(InlineStage(lake, tmp_path / "s"))
    with pytest.raises(InputError, match=r"no images in its \w+ split \(2 images in all\)"):
        job.run(InlineTrain(lake))


def test_damaged_bundles_are_refused(trained: Lake) -> None:
    model, version = catalog.resolve_model(trained, "m")
    folder = local_path(trained.bundle(model, version))
    assert folder is not None
    about = json.loads((folder / "model.json").read_text())
    path = folder / about["files"]["weights"]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="does not hold what was written"):
        bundle.load(trained, model, version)
    path.unlink()
    with pytest.raises(InputError, match=r"safetensors.*does not exist"):
        bundle.load(trained, model, version)
    (folder / "model.json").unlink()
    with pytest.raises(InputError, match="no complete bundle"):
        bundle.load(trained, model, version)
