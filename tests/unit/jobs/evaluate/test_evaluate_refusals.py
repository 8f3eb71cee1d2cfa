"""evaluate where something is missing: a sentence, and all the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.engine import runner
from jobs.errors import InputError
from jobs.evaluate import results as evaluate_results
from jobs.lake.paths import LakePaths
from jobs.schemas.dataset import split_of
from jobs.tables import catalog
from tests.helpers import image_ids, write_source
from tests.inline import InlineEvaluate, InlineStage, InlineTrain

ALL = set(evaluate_results.METRICS)


def rows_of(
    lake: LakePaths, model: str = "m", dataset: str = "d", **settings
) -> list[dict[str, Any]]:
    runner.run(InlineEvaluate(lake, model=model, dataset=dataset, **settings))
    name, version = catalog.resolve_model(lake, model)
    return evaluate_results.latest(lake, name, version, dataset)


def lacking(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Metrics without a number, and why; every one that has a number is finite and has its ends."""
    for row in rows:
        if row["value"] is not None:
            assert math.isfinite(row["value"]), row
            assert (row["low"] is None) == (row["confidence"] is None), row
    assert {row["metric"] for row in rows} == ALL
    return {row["metric"]: row["note"] for row in rows if row["value"] is None}


class OtherDataset(InlineStage):
    def __init__(self, lake: LakePaths, source: Path, **settings) -> None:
        super().__init__(lake, source, **settings)
        self.target = "e"
        self.settings = self.settings.model_copy(update={"dataset": "e"})


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("nothing", "dataset 'd' has no column 'nothing' (known: half, is_anomaly, kind, label"),
        ("same", "'same' is 'one' for all images of the train split"),
        ("unlabelled", "no image of the train split has a label in 'unlabelled'"),
        ("many", "values in the train split: no class label"),
    ],
)
def test_a_useless_label_costs_the_probe_alone(judged: LakePaths, label: str, told: str) -> None:
    missing = lacking(rows_of(judged, label=label))
    assert missing.keys() == {"probe_accuracy", "probe_accuracy_pca", "bits_per_dim"}
    assert told in missing["probe_accuracy"]


@pytest.mark.parametrize(
    ("anomaly", "told"),
    [
        ("nothing=1", "dataset 'd' has no column 'nothing' (known: half"),
        ("normal", "by 'normal' all test images are normal"),
        ("same=one", "by 'same=one' all test images are anomalous"),
        ("kind", "'kind' tells of no test image whether it is anomalous: write COLUMN=VALUE"),
    ],
)
def test_a_useless_anomaly_column_costs_the_ranks_alone(
    judged: LakePaths, anomaly: str, told: str
) -> None:
    missing = lacking(rows_of(judged, anomaly=anomaly))
    assert missing.keys() == {"auroc", "average_precision", "bits_per_dim"}
    assert told in missing["auroc"]


def test_without_either_column_and_with_few_images_the_rest_is_there(trained: LakePaths) -> None:
    rows = rows_of(trained)
    missing = lacking(rows)
    assert missing.keys() == {"auroc", "average_precision", "bits_per_dim"}
    assert missing["auroc"] == "dataset 'd' has no column 'is_anomaly' (name one with --anomaly)"
    images = next(row["images"] for row in rows if row["metric"] == "kl")
    assert images < 50
    for row in rows:
        narrow = f"{images} test images: intervals of fewer than 50 are too narrow"
        of_images = row["low"] is not None and row["metric"] != "nearest_train_samples"
        assert (narrow in (row["note"] or "")) == of_images, row


def test_a_dataset_without_labels_has_no_probe(judged: LakePaths, tmp_path: Path) -> None:
    """That of the training images has some."""
    (tmp_path / "files").mkdir()
    from tests.helpers import image_bytes

    for row, data in enumerate(image_bytes(range(3000, 3100))):
        (tmp_path / "files" / f"{row}.png").write_bytes(data)
    runner.run(OtherDataset(judged, tmp_path / "files"))
    missing = lacking(rows_of(judged, dataset="e"))
    assert missing["probe_accuracy"] == (
        "dataset 'e' has no column 'label' (name one with --label)"
    )


def test_an_empty_test_split_is_refused(trained: LakePaths, tmp_path: Path) -> None:
    rows = [
        n
        for n, one in zip(range(900, 1000), image_ids(range(900, 1000)), strict=True)
        if split_of(one) != "test"
    ]
    write_source(tmp_path / "e" / "a.parquet", rows)
    runner.run(OtherDataset(trained, tmp_path / "e"))
    with pytest.raises(InputError, match="'e' has no images in its test split at version 1"):
        rows_of(trained, dataset="e")


def test_a_model_of_another_image_size_is_refused(trained: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "e" / "a.parquet", range(900, 1000))
    runner.run(OtherDataset(trained, tmp_path / "e", height=16, width=16))
    with pytest.raises(InputError, match=r"\(16, 16, 1\).*\(28, 28, 1\)"):
        rows_of(trained, dataset="e")


def test_a_champion_that_does_not_exist_yet_is_told(trained: LakePaths) -> None:
    runner.run(InlineTrain(trained, model="new", alias="candidate"))
    with pytest.raises(InputError, match="unknown version or alias of model 'new': 'champion'"):
        rows_of(trained, model="new")
    with pytest.raises(InputError, match="unknown model 'none'; known: m, new"):
        rows_of(trained, model="none")
    with pytest.raises(InputError, match="unknown dataset 'x'; known: d"):
        rows_of(trained, dataset="x")


def test_another_latent_size_is_refused_before_any_work(trained: LakePaths) -> None:
    runner.run(InlineTrain(trained, latent_dim=6, alias="wide"))
    runner.run(InlineEvaluate(trained))
    with pytest.raises(InputError, match="'embedding' has dimension 4 in the table, 6 in this run"):
        InlineEvaluate(trained, model="m@wide").plan()
