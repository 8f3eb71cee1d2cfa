"""The evaluations of bundles: which numbers there are, and the rows of the last ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import EVALUATIONS
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot
from vae_core.config import LIKELIHOOD_FACTS, LikelihoodConfig


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """better: higher / lower / none."""

    unit: str
    better: str


FEW = 50  # images; intervals of fewer are not to be relied on
_INTENSITY = "squared intensity in [0, 1]"
# In the order of their rows.
METRICS: dict[str, MetricRow] = {
    "log_likelihood": MetricRow("nats", "higher"),
    "neg_elbo": MetricRow("nats", "lower"),
    "recon_nll": MetricRow("nats", "lower"),
    "kl": MetricRow("nats", "none"),
    "bits_per_dim": MetricRow("bits", "lower"),
    "recon_mse": MetricRow(_INTENSITY, "lower"),
    "inference_gap": MetricRow("nats", "lower"),
    "active_units": MetricRow("dimensions", "higher"),
    "aggregate_posterior_kl": MetricRow("nats", "lower"),
    "probe_accuracy": MetricRow("share", "higher"),
    "probe_accuracy_pca": MetricRow("share", "none"),
    "auroc": MetricRow("probability", "higher"),
    "average_precision": MetricRow("share", "higher"),
    "nearest_train_heldout": MetricRow("intensity", "none"),
    "nearest_train_samples": MetricRow("intensity", "none"),
    "memorisation": MetricRow("standard deviations", "none"),
    "calibration_p": MetricRow("probability", "none"),
    "calibration_share": MetricRow("share", "none"),
    "kl_dimension": MetricRow("nats", "none"),
}
# Of each image, in `evaluated`; the metric is their mean.
MEANS = ("log_likelihood", "neg_elbo", "recon_nll", "kl", "bits_per_dim", "recon_mse")
# Binarised pixels are another target of recon_mse, too.
_BY_MEASURE = ("log_likelihood", "neg_elbo", "recon_nll", "bits_per_dim", "recon_mse")


def is_by_measure(metric: str) -> bool:
    """Whether its numbers of two models mean the same only where `measure_of` is the same."""
    return metric in _BY_MEASURE


def measure_of(likelihood: LikelihoodConfig) -> str:
    """Return what a likelihood's nats are of: densities, and masses of other events, do not
    compare."""
    if likelihood.kind == "bernoulli":
        return f"pixels binarised by {likelihood.binarisation}, {likelihood.threshold}"
    return "values of 256" if LIKELIHOOD_FACTS[likelihood.kind].discrete else "densities"


def few_note(images: int) -> str | None:
    """Return what is said of an interval of so few images; None where they are enough."""
    if images >= FEW:
        return None
    return f"{images} test images: intervals of fewer than {FEW} are too narrow"


def evaluated(lake: LakePaths, model: str, version: str) -> Snapshot | None:
    """Return the table of that name, as the last finished job published it; None where it has
    nothing of the version."""
    uri = lake.model(model, "evaluated")
    published = catalog.published_versions(lake).get(uri.removeprefix(lake.uri + "/"))
    snapshot = open_snapshot(uri, published) if published is not None else None
    return snapshot if snapshot is not None and snapshot.paths({"model_version": version}) else None


def standing(lake: LakePaths, model: str, version: str, dataset: str) -> list[dict[str, Any]]:
    """Rows of the evaluation whose images `evaluated` has; none if there is none.

    That is the one which was made last, of whichever images. Whoever reads images' pairs beside
    these numbers reads one evaluation so.
    """
    snapshot = evaluated(lake, model, version)
    partition = {"model_version": version, "dataset": dataset}
    rows = snapshot.read(["job_id"], partition) if snapshot is not None else None
    if rows is None:
        return []
    return of_rows(lake, rows)


def latest(
    lake: LakePaths, model: str, version: str, dataset: str, images_version: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the last finished evaluation; none if there is none.

    images_version: of the images that were read; the newest that were if None.
    """
    wanted = {"model": model, "model_version": version, "dataset": dataset}
    finished = {run["job_id"]: number for number, run in enumerate(catalog.runs(lake))}
    rows = [
        row
        for row in catalog.catalog_rows(lake, EVALUATIONS.name)
        if row["job_id"] in finished
        and all(row[name] == value for name, value in wanted.items())
        and images_version in (None, row["images_version"])
    ]
    if not rows:
        return []
    _, last = max((row["images_version"], finished[row["job_id"]]) for row in rows)
    return ordered([row for row in rows if finished[row["job_id"]] == last])


def of_job(lake: LakePaths, job_id: str) -> list[dict[str, Any]]:
    """Return the rows that one job published."""
    rows = catalog.catalog_rows(lake, EVALUATIONS.name)
    return ordered([row for row in rows if row["job_id"] == job_id])


def of_rows(lake: LakePaths, images: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of the job that also published these rows of the table `evaluated`."""
    job_ids = images["job_id"].unique().to_pylist()
    return [row for job_id in job_ids for row in of_job(lake, job_id)]


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of METRICS; of one metric as they come, dimensions by number."""
    places = {name: place for place, name in enumerate(METRICS)}

    def place(row: dict[str, Any]) -> tuple[int, int]:
        of = row["of"] or ""
        return places.get(row["metric"], len(places)), int(of) if of.isdigit() else -1

    return sorted(rows, key=place)
