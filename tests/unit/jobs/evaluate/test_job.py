"""evaluate as a whole, but for Ray: numbers that can be had otherwise, rows once, crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.distributions import MultivariateNormal, kl_divergence

from jobs.bundles import bundle
from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.evaluate import results as evaluate_results
from jobs.lake.paths import LakePaths
from jobs.lake.storage import read_if_there
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.inline import (
    InlineCompact,
    InlineEmbed,
    InlineEvaluate,
    InlineStage,
    InlineTrain,
    OvertakenEvaluate,
)
from tests.labelled import write_labelled
from vae_core.autoencoder import Autoencoder
from vae_core.scores.names import SCORES

PROVENANCE = ("night", "job_id", "unit_id")


@pytest.fixture
def lake(judged: LakePaths) -> LakePaths:
    """Evaluated once."""
    return judged


def version(lake: LakePaths) -> str:
    return catalog.resolve_model(lake, "m")[1]


def latest(lake: LakePaths) -> list[dict[str, Any]]:
    return evaluate_results.latest(lake, "m", version(lake), "d")


def metric(lake: LakePaths, name: str, of: str | None = None) -> dict[str, Any]:
    found = [row for row in latest(lake) if row["metric"] == name and of in (None, row["of"])]
    assert len(found) == 1, (name, found)
    return found[0]


def value(lake: LakePaths, name: str, of: str | None = None) -> float:
    return metric(lake, name, of)["value"]


def evaluated(lake: LakePaths) -> pa.Table:
    return views.sql(lake, "SELECT * FROM evaluated ORDER BY image_id")


def column(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def again(lake: LakePaths, **settings) -> InlineEvaluate:
    evaluation = InlineEvaluate(lake, **settings)
    runner.run(evaluation)
    return evaluation


def test_there_is_one_row_a_test_image_with_the_numbers_that_embed_has(lake: LakePaths) -> None:
    rows = evaluated(lake)
    test = views.sql(lake, "SELECT image_id FROM images WHERE split = 'test' ORDER BY image_id")
    assert rows["image_id"].equals(test["image_id"])
    assert len(rows) >= 50
    runner.run(InlineEmbed(lake))
    embedded = views.sql(
        lake, "SELECT e.* FROM embeddings e JOIN evaluated USING (image_id) ORDER BY image_id"
    )
    for name in ("embedding", "embedding_log_var", "p_value", *SCORES):
        assert rows[name].equals(embedded[name]), name


def test_means_are_those_of_the_rows(lake: LakePaths) -> None:
    rows = evaluated(lake)
    for name in ("log_likelihood", "neg_elbo", "recon_nll", "kl", "recon_mse"):
        row = metric(lake, name)
        assert row["value"] == pytest.approx(column(rows, name).mean(), rel=1e-12), name
        assert row["low"] < row["value"] < row["high"]
        assert (row["images"], row["confidence"]) == (len(rows), 0.95)
    assert value(lake, "neg_elbo") == pytest.approx(value(lake, "recon_nll") + value(lake, "kl"))
    assert value(lake, "inference_gap") > 0
    assert "density" in metric(lake, "bits_per_dim")["note"]
    share = value(lake, "calibration_share", "neg_elbo")
    assert share == pytest.approx((column(rows, "p_value") <= 0.05).mean())


def test_more_samples_tighten_the_bound(lake: LakePaths) -> None:
    few = value(lake, "log_likelihood")
    again(lake, samples=32)
    assert value(lake, "log_likelihood") > few + 1.0
    assert evaluated(lake)["samples"].unique().to_pylist() == [32]


def test_codes_are_held_against_the_prior(lake: LakePaths) -> None:
    rows = evaluated(lake)
    mean_ND = np.array(rows["embedding"].to_pylist())
    log_var_ND = np.array(rows["embedding_log_var"].to_pylist())
    active = int((mean_ND.var(axis=0) > 0.01).sum())
    assert value(lake, "active_units") == active
    kl_D = 0.5 * (mean_ND**2 + np.exp(log_var_ND) - 1 - log_var_ND).mean(axis=0)
    found = [row for row in latest(lake) if row["metric"] == "kl_dimension"]
    assert [row["of"] for row in found] == ["0", "1", "2", "3"]
    np.testing.assert_allclose([row["value"] for row in found], kl_D, rtol=1e-9)
    assert value(lake, "kl") == pytest.approx(kl_D.sum(), rel=1e-5)
    covariance = np.cov(mean_ND.T, bias=True) + np.diag(np.exp(log_var_ND).mean(axis=0))
    fitted = MultivariateNormal(
        torch.from_numpy(mean_ND.mean(axis=0)), covariance_matrix=torch.from_numpy(covariance)
    )
    prior = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    known = float(kl_divergence(fitted, prior))
    assert value(lake, "aggregate_posterior_kl") == pytest.approx(known)


def test_scores_rank_anomalies_as_scikit_learn_says(lake: LakePaths) -> None:
    rows = evaluated(lake)
    told = views.sql(
        lake,
        "SELECT image_id, i.is_anomaly FROM images i JOIN evaluated USING (image_id) ORDER BY ALL",
    )
    assert rows["is_anomaly"].equals(told["is_anomaly"])
    anomalous = column(rows, "is_anomaly")
    judged = [row["of"] for row in latest(lake) if row["metric"] == "auroc"]
    assert {"neg_elbo", "recon_mse", "latent_mahalanobis", "typicality"} <= set(judged)
    assert not {"bits_per_dim", "complexity_bits"} & set(judged)
    for score in judged:
        scores = column(rows, score)
        assert value(lake, "auroc", score) == pytest.approx(roc_auc_score(anomalous, scores))
        precision = average_precision_score(anomalous, scores)
        row = metric(lake, "average_precision", score)
        assert row["value"] == pytest.approx(precision)
        assert f"{anomalous.mean():.3g} would be chance" in row["note"]
    again(lake, anomaly="kind=scratch")
    kind = views.sql(
        lake, "SELECT image_id, kind FROM images JOIN evaluated USING (image_id) ORDER BY ALL"
    )
    expected = [one == "scratch" for one in kind["kind"].to_pylist()]
    assert evaluated(lake)["is_anomaly"].to_pylist() == expected


def test_the_probe_reads_labels_as_well_as_scikit_learns(lake: LakePaths) -> None:
    runner.run(InlineEmbed(lake))
    told = views.sql(
        lake,
        "SELECT image_id, split, label, embedding FROM images JOIN embeddings USING (image_id) "
        "WHERE split IN ('train', 'test') ORDER BY image_id",
    )
    codes, label = np.array(told["embedding"].to_pylist()), told["label"].to_numpy()
    of_test = told["split"].to_numpy(zero_copy_only=False) == "test"
    fitted = LogisticRegression(C=10.0, max_iter=2000).fit(codes[~of_test], label[~of_test])
    known = fitted.predict(codes[of_test]) == label[of_test]
    right = column(evaluated(lake), "probe_right")
    assert (right == known).mean() > 0.85  # the penalty differs a little
    row = metric(lake, "probe_accuracy", "label")
    assert row["value"] == pytest.approx(right.mean())
    assert 0.2 < row["low"] < row["value"] < row["high"]
    assert 0.4 < value(lake, "probe_accuracy_pca", "label") < 0.9
    again(lake, label="half")
    unlabelled = evaluated(lake)["probe_right"].null_count
    assert 0 < unlabelled < len(right)
    assert metric(lake, "probe_accuracy", "half")["images"] == len(right) - unlabelled


def test_p_values_are_judged_by_the_scores_they_come_from(lake: LakePaths) -> None:
    held = bundle.load(lake, "m", version(lake)).calibration_scores
    known = ks_2samp(column(evaluated(lake), "neg_elbo"), held, method="exact").pvalue
    row = metric(lake, "calibration_p", "neg_elbo")
    assert row["value"] == pytest.approx(known, rel=1e-6)
    assert (row["low"], row["confidence"]) == (None, None)
    assert f"{len(held)} calibration images" in row["note"]
    assert "otherwise" not in row["note"]


def test_test_images_are_as_far_from_training_images_as_they_are(lake: LakePaths) -> None:
    told = views.sql(lake, "SELECT image_id, split, image FROM images ORDER BY image_id")
    x_NP = np.stack([np.frombuffer(one, np.uint8) for one in told["image"].to_pylist()]) / 255.0
    split = told["split"].to_numpy(zero_copy_only=False)
    train, test = x_NP[split == "train"], x_NP[split == "test"]
    nearest = [np.sqrt(((train - one) ** 2).sum(axis=1)).min() for one in test]
    row = metric(lake, "nearest_train_heldout")
    assert row["value"] == pytest.approx(np.median(nearest), rel=1e-4)
    assert row["low"] < row["value"] < row["high"]
    assert "copied" in metric(lake, "memorisation")["note"]


def test_a_model_that_draws_its_training_images_is_found_out(lake: LakePaths, monkeypatch) -> None:
    told = views.sql(lake, "SELECT image FROM images WHERE split = 'train' ORDER BY image_id")
    x_NP = np.stack([np.frombuffer(one, np.uint8) for one in told["image"].to_pylist()])
    train = torch.from_numpy(x_NP).reshape(-1, 1, 28, 28).float() / 255.0

    def copied(self: Autoencoder, count: int, generator: torch.Generator, *_) -> torch.Tensor:
        return train[torch.randint(0, len(train), (count,), generator=generator)]

    assert abs(value(lake, "memorisation")) < 3
    monkeypatch.setattr(Autoencoder, "sample", copied)
    again(lake, samples=5)
    assert value(lake, "memorisation") < -3
    assert value(lake, "nearest_train_samples") == pytest.approx(0.0, abs=0.01)


def test_a_second_run_does_nothing_nor_does_one_after_compaction(lake: LakePaths) -> None:
    assert again(lake, night="2026-01-02").executed == []
    assert runner.run(InlineCompact.of(lake)).counts["rows_merged"]
    evaluation = InlineEvaluate(lake, night="2026-01-03")
    report = runner.run(evaluation)
    assert (evaluation.executed, report.counts["model_version"]) == ([], version(lake))
    assert len(views.sql(lake, "SELECT DISTINCT job_id FROM evaluations")) == 1


def test_another_rule_or_new_images_take_its_place(lake: LakePaths, tmp_path: Path) -> None:
    first = latest(lake)
    again(lake, resamples=200, night="2026-01-02")
    assert len(evaluated(lake)) == first[0]["images"]
    second = latest(lake)
    assert {row["night"] for row in second} == {"2026-01-02"}
    for before, after in zip(first, second, strict=True):
        assert (before["value"], before["of"]) == (after["value"], after["of"])
    # And back, on the same night: the same units, and yet another job.
    assert again(lake).executed
    assert {row["night"] for row in latest(lake)} == {"2026-01-01"}
    write_labelled(tmp_path / "more" / "b.parquet", range(3000, 3200))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    again(lake, night="2026-01-02")
    rows = evaluated(lake)
    assert len(rows) > first[0]["images"]
    assert len(set(rows["image_id"].to_pylist())) == len(rows)
    held = catalog.images_snapshot(lake, "d").version
    assert latest(lake)[0]["images_version"] == held
    # An older snapshot may be requested; the newest one's evaluation is still the latest.
    again(lake, images_version=first[0]["images_version"], night="2026-01-03")
    assert len(evaluated(lake)) == first[0]["images"]
    assert latest(lake)[0]["images_version"] == held


def test_one_unit_or_several_the_numbers_are_the_same(lake: LakePaths, monkeypatch) -> None:
    whole, rows = latest(lake), evaluated(lake)
    monkeypatch.setattr("jobs.evaluate.job.TEST_ROWS", 7)
    monkeypatch.setattr("jobs.evaluate.job.TRAIN_ROWS", 90)
    monkeypatch.setattr("jobs.evaluate.job.LAYOUT", -1)
    many = again(lake, night="2026-01-02")
    assert len(many.executed) > 15
    for before, after in zip(whole, latest(lake), strict=True):
        assert {k: v for k, v in before.items() if k not in PROVENANCE} == {
            k: v for k, v in after.items() if k not in PROVENANCE
        }
    names = [name for name in rows.column_names if name not in PROVENANCE]
    assert rows.select(names).equals(evaluated(lake).select(names))


def test_a_sample_of_the_test_split_is_always_the_same(lake: LakePaths) -> None:
    every = evaluated(lake)["image_id"].to_pylist()
    again(lake, max_images=50, train_images=60)
    assert evaluated(lake)["image_id"].to_pylist() == every[:50]
    assert "60 training images" in metric(lake, "probe_accuracy")["note"]


def test_the_bundle_tells_of_it_too(lake: LakePaths) -> None:
    folder = Path(lake.bundle("m", version(lake)).removeprefix("file://"))
    (path,) = folder.glob("evaluation-d-*.json")
    told = json.loads(path.read_text())
    assert told["metrics"] == latest(lake)
    assert told["rule"]["samples"] == 4
    assert path.name.startswith(f"evaluation-d-{latest(lake)[0]['images_version']}-")


@pytest.mark.parametrize("table", ["evaluated", "evaluations", "runs"])
def test_killed_between_commits_a_rerun_completes_it_once(
    lake: LakePaths, monkeypatch, table: str
) -> None:
    """Between the last unit and the first table, between the tables, and before the runs table."""
    before = len(latest(lake))
    one = engine_commit._commit_one

    def killed(uri: str, *rest) -> None:
        if uri.endswith(f"/{table}"):
            raise KeyboardInterrupt
        one(uri, *rest)

    if table == "evaluated":
        monkeypatch.setattr(engine_commit, "commit", lambda *_: killed("/evaluated"))
    elif table == "evaluations":
        monkeypatch.setattr(engine_commit, "_commit_one", killed)
    else:
        monkeypatch.setattr(engine_commit, "record_run", lambda *_: killed("/runs"))
    settings = {"samples": 5, "night": "2026-01-02"}
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEvaluate(lake, **settings))
    # Until it is complete, what is read is the earlier one, whole.
    assert {row["night"] for row in latest(lake)} == {"2026-01-01"}
    assert evaluated(lake)["samples"].unique().to_pylist() == [4]
    monkeypatch.undo()
    assert again(lake, **settings).executed == []
    assert {row["night"] for row in latest(lake)} == {"2026-01-02"}
    assert len(latest(lake)) == before
    rows = evaluated(lake)
    assert rows["samples"].unique().to_pylist() == [5]
    assert len(set(rows["image_id"].to_pylist())) == len(rows)
    assert set(rows["job_id"].to_pylist()) == {row["job_id"] for row in latest(lake)}
    assert again(lake, **settings).executed == []
    assert not records.unfinished_plans(lake, "evaluate", "m")


def test_killed_in_its_units_it_goes_on_where_it_was(lake: LakePaths, monkeypatch) -> None:
    class Killed(InlineEvaluate):
        def settle(self, *arguments):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(Killed(lake, samples=5))
    assert len(again(lake, samples=5, night="2026-01-09").executed) == 1  # which sums up
    # The night of the plan that was begun.
    assert {row["night"] for row in latest(lake)} == {"2026-01-01"}


def test_a_plan_of_images_that_have_changed_is_given_up(lake: LakePaths, tmp_path: Path) -> None:
    class Killed(InlineEvaluate):
        def settle(self, *arguments):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(Killed(lake, samples=5))
    write_labelled(tmp_path / "more" / "b.parquet", range(3000, 3200))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    again(lake, samples=5, night="2026-01-02")
    assert latest(lake)[0]["images_version"] == catalog.images_snapshot(lake, "d").version
    jobs = views.sql(lake, "SELECT DISTINCT job_id FROM evaluations")
    assert len(jobs) == 2  # that of the fixture, and this one
    assert not records.unfinished_plans(lake, "evaluate", "m")


@pytest.mark.parametrize("samples", [5, 6])
def test_of_two_evaluations_at_once_one_is_left_whole(lake: LakePaths, samples: int) -> None:
    """The same one twice; or of two rules, where the one that came second is done again."""
    rival = InlineEvaluate(lake, samples=samples, night="2026-01-02")
    ours = OvertakenEvaluate(lake, rival, samples=5, night="2026-01-02")
    runner.run(ours)
    rows = evaluated(lake)
    assert rows["samples"].unique().to_pylist() == [5]
    assert len(set(rows["image_id"].to_pylist())) == len(rows)
    assert set(rows["job_id"].to_pylist()) == {row["job_id"] for row in latest(lake)}
    jobs = views.sql(lake, "SELECT count(*) AS n FROM evaluations GROUP BY job_id")
    assert jobs["n"].to_pylist() == [len(latest(lake))] * (2 + (samples == 6))
    assert not records.unfinished_plans(lake, "evaluate", "m")


def test_two_versions_and_two_datasets_stand_beside_each_other(
    lake: LakePaths, tmp_path: Path
) -> None:
    runner.run(InlineTrain(lake, seed=5, alias="other"))
    rival = InlineEvaluate(lake, model="m@other")
    runner.run(OvertakenEvaluate(lake, rival, samples=5))
    counts = views.sql(lake, "SELECT count(*) AS n FROM evaluated GROUP BY model_version")
    assert len(set(counts["n"].to_pylist())) == 1
    assert len(counts) == 2


def test_what_it_replaced_is_vacuumed_and_what_holds_is_kept(lake: LakePaths) -> None:
    again(lake, samples=5)
    uri = lake.model("m", "evaluated")
    snapshot = open_snapshot(uri)
    assert snapshot is not None
    found = vacuum(lake, [], ["m"], keep_days=0, grace_s=-60)
    assert [path for path in found.paths if "/evaluated/" in path]
    assert len(evaluated(lake)) >= 50
    assert all(read_if_there(one) for one in snapshot.file_uris())


def test_nothing_is_left_in_the_units_folder(lake: LakePaths) -> None:
    again(lake, samples=5)
    assert not [p for p in Path(lake.all_units.removeprefix("file://")).rglob("*") if p.is_file()]
