"""evaluate says of a model's own images what it can say of those alone; numbers that are read
together are of one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.bundles import bundle
from jobs.engine import runner
from jobs.evaluate import results as evaluate_results
from jobs.evaluate.compare import compare
from jobs.lake.paths import LakePaths
from jobs.promote import gate
from jobs.promote.settings import GateRule
from jobs.query import views
from jobs.tables import catalog
from tests import drifted
from tests.helpers import write_source
from tests.inline import InlineEvaluate, InlineStage, InlineTrain
from tests.promotions import champion, gated
from vae_core.stats.bootstrap import intervals, mean

OF_OWN = ("memorisation", "nearest_train_heldout", "nearest_train_samples")


def version(lake: LakePaths, model: str = "m") -> str:
    return catalog.resolve_model(lake, model)[1]


def standing(lake: LakePaths, model: str = "m", dataset: str = "d") -> dict[str, dict[str, Any]]:
    """Rows by metric; of one that has several, the last."""
    rows = evaluate_results.standing(lake, model, version(lake, model), dataset)
    return {row["metric"]: row for row in rows}


def more(lake: LakePaths, folder: Path, rows: range, change: drifted.Change = drifted.same) -> None:
    drifted.write_changed(folder / "more" / f"{rows.start}.parquet", rows, change)
    runner.run(InlineStage(lake, folder / "more", night="2026-01-02"))


def test_images_of_another_camera_make_no_copier_of_the_model(trained: LakePaths, tmp_path) -> None:
    """Of test images that are negatives, none is the nearest to a sample."""
    runner.run(InlineEvaluate(trained))
    before = standing(trained)
    assert abs(before["memorisation"]["value"]) < 3
    more(trained, tmp_path, range(1000, 2000), drifted.negative)
    runner.run(InlineEvaluate(trained, night="2026-01-02"))
    after = standing(trained)
    assert after["kl"]["images"] > before["kl"]["images"] + 30
    for name in OF_OWN:
        told = ("value", "low", "high", "images")
        assert [after[name][key] for key in told] == [before[name][key] for key in told], name


def test_of_another_dataset_it_is_not_told_and_why(trained: LakePaths, tmp_path: Path) -> None:
    class Other(InlineStage):
        def __init__(self) -> None:
            super().__init__(trained, tmp_path / "e")
            self.target = "e"
            self.settings = self.settings.model_copy(update={"dataset": "e"})

    write_source(tmp_path / "e" / "a.parquet", range(3000, 3100))
    runner.run(Other())
    runner.run(InlineEvaluate(trained, dataset="e"))
    found = standing(trained, dataset="e")
    for name in ("memorisation", "nearest_train_heldout"):
        assert (found[name]["value"], found[name]["images"]) == (None, None)
        assert (
            "only known of 'd', which the model was trained on: images of 'e'"
            in (found[name]["note"])
        )
    assert found["nearest_train_samples"]["value"] > 0


def test_a_snapshot_without_test_images_has_nothing_to_hold_samples_against(
    trained: LakePaths, monkeypatch
) -> None:
    from jobs.evaluate import pixels

    of_split = pixels.sample_of
    monkeypatch.setattr(
        pixels, "sample_of", lambda images, _split, most: of_split(images, "none", most)
    )
    runner.run(InlineEvaluate(trained))
    found = standing(trained)
    told = "the snapshot that the model was trained on has no test images"
    assert [found[n]["note"] for n in ("memorisation", "nearest_train_heldout")] == [told, told]
    assert found["nearest_train_samples"]["value"] > 0


def test_the_share_below_a_twentieth_varies_with_calibration_images_too(judged: LakePaths) -> None:
    row = standing(judged)["calibration_share"]
    p_value = views.sql(judged, "SELECT p_value FROM evaluated ORDER BY image_id")["p_value"]
    below = (p_value.to_numpy() <= 0.05).astype(float)
    assert row["value"] == below.mean()
    drawn = {"resamples": 100, "confidence": 0.95, "seed": 0}
    alone = intervals({"it": mean(below)}, len(below), **drawn)["it"]
    held = len(bundle.load(judged, "m", version(judged)).calibration_scores)
    wider = np.sqrt(1 + len(below) / held)
    width = (row["high"] - row["low"]) / (alone.high - alone.low)
    assert width == pytest.approx(wider, rel=0.3)


@pytest.fixture
def mixed(judged: LakePaths, tmp_path: Path) -> LakePaths:
    """Evaluated on more images by another label, and then on the first ones again."""
    first = catalog.images_snapshot(judged, "d").version
    runner.run(InlineTrain(judged, model="m", seed=5, alias="other"))
    from tests.labelled import write_labelled

    write_labelled(tmp_path / "more" / "b.parquet", range(3000, 3300))
    runner.run(InlineStage(judged, tmp_path / "more", night="2026-01-02"))
    for model in ("m", "m@other"):
        runner.run(InlineEvaluate(judged, model=model, label="kind", night="2026-01-02"))
        runner.run(InlineEvaluate(judged, model=model, images_version=first, night="2026-01-03"))
    return judged


def test_the_numbers_that_stand_are_those_of_the_rows(mixed: LakePaths) -> None:
    newest = evaluate_results.latest(mixed, "m", version(mixed), "d")
    found = standing(mixed)
    counts = views.sql(mixed, "SELECT count(*) AS n FROM evaluated GROUP BY model_version")
    assert [found["kl"]["images"]] * 2 == counts["n"].to_pylist()
    assert newest[0]["images"] > found["kl"]["images"]
    assert found["kl"]["night"] == "2026-01-03"
    told = compare(mixed, "m", "m@other")
    assert told.images == found["kl"]["images"]
    assert [row.of for row in told.differences if row.metric == "probe_accuracy"] == ["label"]


def test_the_gate_reads_one_evaluation(mixed: LakePaths, monkeypatch) -> None:
    asked: list[tuple] = []
    verdict = gate.verdict

    def listening(*arguments) -> gate.Verdict:
        asked.append(arguments)
        return verdict(*arguments)

    monkeypatch.setattr("jobs.promote.job.gate.verdict", listening)
    held, other = champion(mixed), version(mixed, "m@other")
    gated(mixed, other, rule=GateRule(gain_nats=1000.0))
    ((_, differences, challenger, of_held),) = asked
    assert {row["model_version"] for row in challenger} == {other}
    assert {row["model_version"] for row in of_held} == {held}
    pairs = next(row.images for row in differences if row.metric == "neg_elbo")
    for rows in (challenger, of_held):
        images = {r["images"] for r in rows if r["metric"] in ("calibration_p", "active_units")}
        assert images == {pairs}
