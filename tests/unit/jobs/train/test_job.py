"""train as a whole, but for Ray: bundles, aliases, resuming, the same numbers for any ranks."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.bundles import bundle
from jobs.bundles.manifest import read_about
from jobs.engine import runner
from jobs.errors import InputError, JobError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.query import views
from jobs.tables import catalog
from jobs.telemetry.metrics import BadStep, Telemetry
from jobs.train import loop as train_loop
from jobs.train.data.loader import image_ids
from jobs.train.loop import Training
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineEvaluate, InlineStage, InlineTrain


def weights(lake: LakePaths) -> dict[str, torch.Tensor]:
    return bundle.load(lake, *catalog.resolve_model(lake, "m")).weights


def test_a_bundle_tells_what_it_is_and_the_champion_names_it(trained: LakePaths) -> None:
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


def test_a_rerun_trains_nothing_and_another_config_is_another_version(trained: LakePaths) -> None:
    again = InlineTrain(trained, night="2026-01-02")
    assert runner.run(again).units == 0
    assert again.executed == []
    champion = catalog.aliases(trained, "m")["champion"]
    other = InlineTrain(trained, seed=1)
    report = runner.run(other)
    assert report.counts["version"] != champion
    assert len(catalog.bundle_versions(trained, "m")) == 2
    assert catalog.aliases(trained, "m") == {"champion": champion}
    runner.run(InlineTrain(trained, seed=1, promote=True))
    assert catalog.aliases(trained, "m") == {"champion": report.counts["version"]}


def test_an_alias_moves_there_and_back_again_on_one_night(trained: LakePaths) -> None:
    first = catalog.aliases(trained, "m")["champion"]
    second = runner.run(InlineTrain(trained, seed=1, promote=True)).counts["version"]
    for seed, version in ((0, first), (1, second), (0, first)):
        runner.run(InlineTrain(trained, seed=seed, promote=True))
        assert catalog.aliases(trained, "m") == {"champion": version}


def test_a_killed_training_is_no_business_of_another_dataset(
    staged: LakePaths, trained_source: Path, monkeypatch
) -> None:
    other = InlineStage(staged, trained_source)
    other.target = "e"
    runner.run(other)
    monkeypatch.setattr(InlineTrain, "fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged, dataset="e"))
    monkeypatch.undo()
    mine = InlineTrain(staged)
    runner.run(mine)
    assert len(mine.executed) == 1
    champion = catalog.aliases(staged, "m")["champion"]
    assert read_about(staged, "m", champion)["data"]["dataset"] == "d"


def test_a_resumed_training_is_not_followed_by_one_on_newer_images(
    staged: LakePaths, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(InlineTrain, "fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged))
    monkeypatch.undo()
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(staged, tmp_path / "more", night="2026-01-02"))
    again = InlineTrain(staged, night="2026-01-02")
    runner.run(again)
    assert len(again.executed) == 1
    assert len(catalog.bundle_versions(staged, "m")) == 1


def test_worker_counts_and_names_are_no_part_of_the_version(trained: LakePaths) -> None:
    plan = InlineTrain(trained).plan().fingerprint
    assert InlineTrain(trained, workers=7).plan().fingerprint == plan
    assert InlineTrain(trained, alias="candidate").plan().fingerprint == plan
    assert InlineTrain(trained, epochs=3).plan().fingerprint != plan
    assert InlineTrain(trained, batch_size=32).plan().fingerprint != plan


def test_the_batch_is_no_larger_than_the_split(staged: LakePaths) -> None:
    with pytest.raises(InputError, match=r"batch_size 4096 is more than the \d+ images"):
        runner.run(InlineTrain(staged, batch_size=4096))


def bad_batches(monkeypatch, steps: set[int]) -> None:
    real = train_loop.to_unit_range

    def spoil(pixels, **options):
        x = real(pixels, **options)
        return x * math.nan if spoil.step in steps else x

    original = Training._step

    def step(self: Training, share) -> None:
        spoil.step = self.position.step
        original(self, share)

    monkeypatch.setattr(train_loop, "to_unit_range", spoil)
    monkeypatch.setattr(Training, "_step", step)


def test_a_few_bad_steps_are_skipped_and_their_images_named(
    staged: LakePaths, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO", "latentlake")
    heard: list[BadStep] = []

    class Ear:
        def bad_step(self, bad: BadStep) -> None:
            heard.append(bad)

        def __getattr__(self, name: str):
            return lambda *_: None

    monkeypatch.setattr("tests.inline.TELEMETRY", Telemetry([Ear()]))
    bad_batches(monkeypatch, {3, 9})
    runner.run(InlineTrain(staged))
    assert [bad.step for bad in heard] == [3, 9]
    model, version = catalog.resolve_model(staged, "m")
    about = read_about(staged, model, version)
    assert about["bad_steps"] == 2
    assert all(math.isfinite(entry["train_nats"]) for entry in about["history"])
    found = views.sql(staged, "SELECT image_id, split FROM images").to_pylist()
    train = {row["image_id"] for row in found if row["split"] == "train"}
    for bad in heard:
        assert len(bad.image_ids) == len(set(bad.image_ids)) == 64
        assert set(bad.image_ids) <= train
    assert heard[0].image_ids[0] in caplog.text


def test_the_images_of_a_bad_step_are_those_it_saw(staged: LakePaths, monkeypatch) -> None:
    seen: dict[int, bytes] = {}
    original = Training._step

    def step(self: Training, share) -> None:
        seen[self.position.step] = share.pixels_NHWC.numpy().tobytes()
        original(self, share)

    monkeypatch.setattr(Training, "_step", step)
    made: list[Training] = []
    init = Training.__init__
    monkeypatch.setattr(
        Training, "__init__", lambda self, *a: (made.append(self), init(self, *a))[1]
    )
    runner.run(InlineTrain(staged))
    images = catalog.images_snapshot(staged, "d").read(["image_id", "image"])
    pixels = dict(zip(images["image_id"].to_pylist(), images["image"].to_pylist(), strict=True))
    part = made[0].part
    for at, data in seen.items():
        ids = image_ids(part, at // part.batches, at % part.batches)
        assert b"".join(pixels[i] for i in ids) == data


def test_too_many_bad_steps_end_the_training(staged: LakePaths, monkeypatch) -> None:
    bad_batches(monkeypatch, {2, 5, 6, 7})
    with pytest.raises(JobError, match=r"4 steps had no finite loss, run.max_bad_steps is 3"):
        runner.run(InlineTrain(staged))
    assert catalog.bundle_versions(staged, "m") == []


def test_the_best_epoch_is_published_and_patience_ends_the_rest(
    staged: LakePaths, monkeypatch
) -> None:
    told = iter([500.0, 400.0, 450.0, 460.0, 390.0])
    states: list[dict] = []
    real = train_loop.validate

    def validated(model, *arguments):
        found = real(model, *arguments)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return dataclasses.replace(found, entry={**found.entry, "validation_nats": next(told)})

    monkeypatch.setattr(train_loop, "validate", validated)
    runner.run(InlineTrain(staged, epochs=9, patience=2))
    about = read_about(staged, *catalog.resolve_model(staged, "m"))
    assert [entry["epoch"] for entry in about["history"]] == [1, 2, 3, 4]
    assert about["metrics"]["epoch"] == 2
    assert all(torch.equal(v, states[1][n]) for n, v in weights(staged).items())


def test_epochs_of_the_warm_up_are_never_the_best(staged: LakePaths, monkeypatch) -> None:
    told = iter([100.0, 200.0, 300.0, 250.0])
    real = train_loop.validate
    monkeypatch.setattr(
        train_loop,
        "validate",
        lambda *a: dataclasses.replace(
            found := real(*a), entry={**found.entry, "validation_nats": next(told)}
        ),
    )
    runner.run(InlineTrain(staged, epochs=4, objective={"kl_warmup_steps": 20}))
    about = read_about(staged, *catalog.resolve_model(staged, "m"))
    assert about["metrics"]["epoch"] == 4


def test_a_crash_after_the_bundle_publishes_the_alias_without_training(staged, monkeypatch) -> None:
    monkeypatch.setattr(InlineTrain, "settle", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineTrain(staged))
    monkeypatch.undo()
    assert catalog.aliases(staged, "m") == {}
    again = InlineTrain(staged, night="2026-01-02")
    runner.run(again)
    assert again.executed == []
    assert list(catalog.aliases(staged, "m")) == ["champion"]


def test_validation_covers_the_whole_split_whatever_the_scoring_batch(staged: LakePaths) -> None:
    reports = [
        runner.run(InlineTrain(staged, model=f"m{size}", score_batch=size)) for size in (7, 64)
    ]
    found = [report.counts["validation_nats"] for report in reports]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(staged: LakePaths) -> None:
    with pytest.raises(JobError, match=r"nan.*Lower --learning-rate"):
        runner.run(InlineTrain(staged, learning_rate=1e12, epochs=20))
    assert catalog.bundle_versions(staged, "m") == []
    assert catalog.aliases(staged, "m") == {}


def test_unknown_names_list_the_known_ones(trained: LakePaths) -> None:
    with pytest.raises(InputError, match="unknown dataset 'x'; known: d"):
        runner.run(InlineTrain(trained, dataset="x"))
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        catalog.resolve_model(trained, "x")
    with pytest.raises(InputError, match=r"'prod'; known: .*champion"):
        catalog.resolve_model(trained, "m@prod")


def test_a_snapshot_that_is_gone_is_told(staged: LakePaths) -> None:
    with pytest.raises(InputError, match=r"99.*(known|newest)"):
        runner.run(InlineTrain(staged, images_version=99))
    shards = [*(local_path(staged.uri) / "datasets").rglob("images/**/*.parquet")]
    assert shards
    for path in shards:
        path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*parquet: it does not exist"):
        runner.run(InlineTrain(staged))


def test_too_few_images_for_the_splits_are_told(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_source(tmp_path / "s" / "a.parquet", range(2))
    runner.run(InlineStage(lake, tmp_path / "s"))
    with pytest.raises(InputError, match=r"no images in its \w+ split \(2 images in all\)"):
        runner.run(InlineTrain(lake))


def test_damaged_bundles_are_refused(trained: LakePaths) -> None:
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


@pytest.mark.parametrize("table", ["embeddings", "evaluated"])
def test_another_latent_size_is_refused_before_it_is_trained(
    trained: LakePaths, table: str
) -> None:
    """No table of the model would take its codes."""
    is_embedded = table == "embeddings"
    early = InlineTrain(trained, latent_dim=6, alias="early")
    runner.run(early)  # nothing is there yet
    runner.run(InlineEmbed(trained) if is_embedded else InlineEvaluate(trained))
    what = "embeddings" if is_embedded else "an evaluation"
    told = (
        f"model 'm' has {what} of 4 latent dimensions, these settings have 8: use another model "
        "name"
    )
    with pytest.raises(InputError, match=told):
        InlineTrain(trained, latent_dim=8).plan()
    assert InlineTrain(trained, latent_dim=4, seed=3).plan().units
    assert InlineTrain(trained, latent_dim=8, model="n").plan().units
    # What is trained already may still get an alias.
    assert InlineTrain(trained, latent_dim=6, alias="late").plan().units
