"""compare: pairs of the same images; what it says where numbers cannot be held together."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jobs.engine import runner
from jobs.errors import InputError
from jobs.evaluate.compare import Comparison, Difference, compare
from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.helpers import write_source
from tests.inline import InlineEvaluate, InlineStage, InlineTrain
from tests.labelled import write_labelled


@pytest.fixture(scope="module")
def two_once(judged_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(judged_once / "lake", folder / "lake")
    lake = LakePaths((folder / "lake").as_uri())
    runner.run(InlineTrain(lake, model="wide", latent_dim=8, epochs=4))
    runner.run(InlineEvaluate(lake, model="wide"))
    return folder


@pytest.fixture
def lake(two_once: Path, tmp_path: Path) -> LakePaths:
    """Two models, evaluated on the same images."""
    shutil.copytree(two_once / "lake", tmp_path / "two")
    return LakePaths((tmp_path / "two").as_uri())


def by_metric(found: Comparison) -> dict[tuple[str, str | None], Difference]:
    return {(row.metric, row.of): row for row in found.differences}


def pairs(lake: LakePaths, column: str) -> tuple[np.ndarray, np.ndarray]:
    rows = views.sql(
        lake,
        f"SELECT a.{column} AS a, b.{column} AS b FROM evaluated a JOIN evaluated b "
        "USING (image_id) WHERE a.model = 'm' AND b.model = 'wide' ORDER BY image_id",
    )
    return tuple(rows[side].to_numpy(zero_copy_only=False).astype(float) for side in "ab")


def test_differences_are_those_of_the_pairs_with_intervals_of_pairs(lake: LakePaths) -> None:
    found = by_metric(compare(lake, "m", "wide"))
    for name in ("log_likelihood", "neg_elbo", "recon_nll", "kl", "recon_mse"):
        first, second = pairs(lake, name)
        row = found[name, None]
        assert (row.first, row.second) == pytest.approx((first.mean(), second.mean()))
        gap = second - first
        assert row.difference == pytest.approx(gap.mean())
        assert row.images == len(gap)
        assert row.low < row.difference < row.high
        # As wide as the pairs' own standard error says.
        width = 2 * 1.96 * gap.std() / np.sqrt(len(gap))
        assert row.high - row.low == pytest.approx(width, rel=0.15)
        assert row.note is None
    assert found["log_likelihood", None].better == "higher"
    right = pairs(lake, "probe_right")
    row = found["probe_accuracy", "label"]
    assert row.difference == pytest.approx(right[1].mean() - right[0].mean())
    anomalous = pairs(lake, "is_anomaly")[0]
    for score in ("neg_elbo", "recon_mse", "typicality"):
        areas = [roc_auc_score(anomalous, values) for values in pairs(lake, score)]
        row = found["auroc", score]
        assert (row.first, row.second) == pytest.approx(tuple(areas))
        assert row.difference == pytest.approx(areas[1] - areas[0])
        assert row.low <= row.difference <= row.high
        assert row.rarer == anomalous.sum() < len(anomalous) / 2
    assert found["kl", None].rarer is None
    active = found["active_units", None]
    assert (active.low, active.high) == (None, None)
    assert active.difference == active.second - active.first


def test_the_other_way_round_it_is_the_negative(lake: LakePaths) -> None:
    there, back = (by_metric(compare(lake, *names)) for names in (("m", "wide"), ("wide", "m")))
    assert there.keys() == back.keys()
    for key, row in there.items():
        other = back[key]
        assert other.difference == pytest.approx(-row.difference)
        if row.low is not None:
            assert (other.low, other.high) == pytest.approx((-row.high, -row.low))


def test_against_itself_nothing_differs(lake: LakePaths) -> None:
    for row in compare(lake, "m", "m@champion").differences:
        assert row.difference == 0.0
        assert (row.low, row.high) in ((0.0, 0.0), (None, None))


def test_only_images_that_both_have_are_compared(lake: LakePaths, tmp_path: Path) -> None:
    write_labelled(tmp_path / "more" / "b.parquet", range(3000, 3200))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    before = by_metric(compare(lake, "m", "wide"))
    runner.run(InlineEvaluate(lake, model="wide", night="2026-01-02"))
    after = by_metric(compare(lake, "m", "wide"))
    for key, row in after.items():
        assert row.images == before[key].images
        assert "different snapshots" in row.note
        if key[0] != "probe_accuracy":
            assert row.difference == pytest.approx(before[key].difference)


@pytest.mark.parametrize(
    ("likelihood", "measure"),
    [
        ({"kind": "bernoulli"}, "pixels binarised by threshold, 0.5"),
        ({"kind": "logistic_mixture", "components": 2}, "values of 256"),
        ({"kind": "optimal_gaussian"}, None),
    ],
)
def test_nats_of_other_measures_are_marked(lake: LakePaths, likelihood: dict, measure: str) -> None:
    runner.run(InlineTrain(lake, model="other", likelihood=likelihood, epochs=1))
    runner.run(InlineEvaluate(lake, model="other"))
    found = by_metric(compare(lake, "m", "other"))
    for name in ("log_likelihood", "neg_elbo", "recon_nll", "recon_mse"):
        note = found[name, None].note
        expected = f"of different likelihoods (densities against {measure})"
        assert (note is None) if measure is None else note.startswith(expected), note
    for key in (("kl", None), ("probe_accuracy", "label"), ("auroc", "neg_elbo")):
        assert found[key].note is None, key
    if measure is not None:
        bits = found["bits_per_dim", None]
        assert (bits.first, bits.difference) == (None, None)
        assert bits.second > 0
        assert "has none" in bits.note


def test_what_one_family_does_not_have_is_told_of_it(lake: LakePaths) -> None:
    plain = {"posterior": "deterministic", "objective": {"kind": "reconstruction"}}
    runner.run(InlineTrain(lake, model="plain", **plain))
    runner.run(InlineEvaluate(lake, model="plain", samples=8, label="kind", anomaly="kind=scratch"))
    found = by_metric(compare(lake, "m", "plain"))
    for key in (("log_likelihood", None), ("kl", None), ("auroc", "kl")):
        row = found[key]
        assert (row.second, row.difference, row.low) == (None, None, None)
        assert row.first is not None
        assert "plain@" in row.note
        assert "has none" in row.note
    assert found["recon_nll", None].difference is not None
    assert "of different columns: label and kind" in found["probe_accuracy", "kind"].note
    row = found["auroc", "recon_nll"]
    assert "different anomaly columns" in row.note
    marked = views.sql(
        lake,
        "SELECT a.recon_nll, b.is_anomaly FROM evaluated a JOIN evaluated b USING (image_id) "
        "WHERE a.model = 'm' AND b.model = 'plain'",
    ).to_pandas()
    assert row.first == pytest.approx(roc_auc_score(marked.is_anomaly, marked.recon_nll))


def test_samples_of_another_number_are_marked(lake: LakePaths) -> None:
    runner.run(InlineEvaluate(lake, model="wide", samples=9))
    found = by_metric(compare(lake, "m", "wide"))
    assert "different numbers of samples" in found["log_likelihood", None].note
    assert found["neg_elbo", None].note is None


def test_who_has_not_been_evaluated_is_told_how(lake: LakePaths, tmp_path: Path) -> None:
    runner.run(InlineTrain(lake, model="new"))
    told = r"new@\w+ has not been evaluated on 'd'; run latentlake evaluate --dataset d --model new"
    with pytest.raises(InputError, match=told):
        compare(lake, "m", "new")
    with pytest.raises(InputError, match=told):
        compare(lake, "new", "m", "d")
    with pytest.raises(InputError, match="unknown dataset 'x'; known: d"):
        compare(lake, "m", "wide", "x")
    with pytest.raises(InputError, match="unknown model 'none'"):
        compare(lake, "m", "none")


def test_who_shares_no_image_is_told(lake: LakePaths, tmp_path: Path) -> None:
    class Other(InlineStage):
        def __init__(self) -> None:
            super().__init__(lake, tmp_path / "e")
            self.target = "e"
            self.settings = self.settings.model_copy(update={"dataset": "e"})

    write_source(tmp_path / "e" / "a.parquet", range(3000, 3100))
    runner.run(Other())
    runner.run(InlineTrain(lake, model="new"))
    runner.run(InlineEvaluate(lake, model="new", dataset="e"))
    with pytest.raises(InputError, match=r"evaluated were m@\w+ on d; new@\w+ on e: say which"):
        compare(lake, "m", "new")
    # Of several datasets, the second one's own.
    runner.run(InlineEvaluate(lake, model="new"))
    runner.run(InlineEvaluate(lake, dataset="e"))
    assert compare(lake, "m", "new").images > 50
    few = compare(lake, "m", "new", "e")
    assert (few.dataset, few.images) == ("e", few.differences[0].images)
    told = f"{few.images} test images: intervals of fewer than 50 are too narrow"
    for row in few.differences:
        assert (told in (row.note or "")) == (row.low is not None), row


def test_it_needs_neither_torch_nor_ray() -> None:
    room = "jobs.evaluate"
    code = f"import sys, {room}.compare, {room}.job, {room}.results; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "prefect"} & set(done.stdout.split())
