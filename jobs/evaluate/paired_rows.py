"""The two sides of a comparison: what evaluate published of each bundle, of the same images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bundles.manifest import config_of, read_about
from jobs.errors import InputError
from jobs.evaluate.results import MEANS, evaluated, measure_of, of_rows
from jobs.lake.paths import LakePaths
from jobs.schemas.vectors import vectors_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from vae_core.families.base import scores_of
from vae_core.families.registry import family_of
from vae_core.scores.names import SCORES

COLUMNS = (
    "image_id",
    "images_version",
    "samples",
    "embedding",
    "probe_right",
    "is_anomaly",
    "job_id",
)


@dataclasses.dataclass(frozen=True)
class Side:
    """One bundle's rows of `evaluated`, by image id.

    measure: what its likelihood's nats are of. judged: names of its scores. label: the column that
    its probe read.
    """

    name: str
    dataset: str
    rows: pa.Table
    measure: str
    judged: list[str]
    label: str | None

    def take(self, rows: np.ndarray) -> Side:
        """Return the side's rows at these places, in their order."""
        return dataclasses.replace(self, rows=self.rows.take(rows))

    def numbers(self, column: str) -> np.ndarray:
        """(N,), NaN for null."""
        return self.rows[column].cast(pa.float64()).to_numpy(zero_copy_only=False)

    @property
    def codes_ND(self) -> np.ndarray:
        """Return the embeddings, (N, D)."""
        return vectors_of(self.rows["embedding"])

    def each(self, column: str) -> set[Any]:
        """Return the values of a column."""
        return set(self.rows[column].unique().to_pylist())


def sides(lake: LakePaths, first: str, second: str, dataset: str | None) -> tuple[Side, Side]:
    """Both with the same images in the same order. See `compare.compare`."""
    names = [catalog.resolve_model(lake, reference) for reference in (first, second)]
    tables = [evaluated(lake, *name) for name in names]
    on = dataset or _common_dataset(lake, names, tables)
    one, other = (_side(lake, *name, on, table) for name, table in zip(names, tables, strict=True))
    ids = [side.rows["image_id"].to_numpy(zero_copy_only=False) for side in (one, other)]
    _, of_one, of_other = np.intersect1d(*ids, assume_unique=True, return_indices=True)
    if not len(of_one):
        raise InputError(
            f"{one.name} and {other.name} were evaluated on different images of {on!r}, none of "
            "them the same; run latentlake evaluate with both"
        )
    return one.take(of_one), other.take(of_other)


def _side(
    lake: LakePaths, model: str, version: str, dataset: str, snapshot: Snapshot | None
) -> Side:
    means = [name for name in MEANS if name not in SCORES]
    partition = {"model_version": version, "dataset": dataset}
    rows = snapshot.read([*COLUMNS, *means, *SCORES], partition) if snapshot is not None else None
    if rows is None:
        catalog.require_dataset(lake, dataset)
        raise _not_evaluated(model, version, dataset)
    config = config_of(lake, model, version, read_about(lake, model, version))
    # Of the job that wrote the rows: another one may have read another label.
    numbers = of_rows(lake, rows)
    label = next((row["of"] for row in numbers if row["metric"] == "probe_accuracy"), None)
    judged = scores_of(family_of(config), config)
    measure = measure_of(config.likelihood)
    return Side(f"{model}@{version}", dataset, rows, measure, judged, label)


def _not_evaluated(model: str, version: str, dataset: str) -> InputError:
    return InputError(
        f"{model}@{version} has not been evaluated on {dataset!r}; run latentlake evaluate "
        f"--dataset {dataset} --model {model}@{version}"
    )


def _common_dataset(
    lake: LakePaths, names: list[tuple[str, str]], tables: list[Snapshot | None]
) -> str:
    """Return the one that both were evaluated on; of several, the second one's own."""
    found = []
    for (model, version), table in zip(names, tables, strict=True):
        if table is None:
            own = read_about(lake, model, version)["data"]["dataset"]
            raise _not_evaluated(model, version, own)
        files = table.files({"model_version": version})
        found.append({file.partition["dataset"] for file in files})
    common, own = sorted(found[0] & found[1]), read_about(lake, *names[1])["data"]["dataset"]
    if len(common) == 1 or own in common:
        return own if own in common else common[0]
    known = "; ".join(
        f"{model}@{version} on {', '.join(sorted(datasets))}"
        for (model, version), datasets in zip(names, found, strict=True)
    )
    raise InputError(f"evaluated were {known}: say which with --dataset, or evaluate both on one")
