"""What an evaluate unit does: encode and score images, with the bound of log p(x); or sum up."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bundles import bundle as bundles
from jobs.datasets.split_sample import read_pieces
from jobs.datasets.splits import pixels_of
from jobs.engine.plan import Completion, JobContext, Unit
from jobs.evaluate.anomaly_column import AnomalyColumn, texts
from jobs.evaluate.partials import part_spec, parts_uri
from jobs.evaluate.summary import sum_up
from jobs.lake.paths import LakePaths
from jobs.schemas.vectors import vector_column
from jobs.tables import catalog
from jobs.tables.shards import write_shard
from vae_core.scores.per_image import ScoredBatch
from vae_core.stats.conformal import p_values


class EvaluateWorker:
    """One a worker process; holds the bundle."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        settings = context.settings
        self.lake, self.context = lake, context
        self.bundle = bundles.load(lake, settings["model"], settings["model_version"])
        compute = self.bundle.compute(settings.get("device", "cpu"))  # as the actor got it
        self.scorer = self.bundle.scorer(compute)
        self.compute = compute.fingerprint
        self.spec = part_spec(settings["latent_dim"])
        self.rule = settings["rule"]

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Do one unit; see Worker."""
        if unit.kind == "summary":
            return sum_up(self.lake, self.context, self.bundle, unit, attempt)
        started = time.monotonic()
        of_test = unit.inputs["split"] == "test"
        rows = self._part(unit, of_test)
        uri = parts_uri(self.lake, self.context.job_id)
        part = write_shard(uri, self.spec, rows, f"{unit.unit_id}-{attempt}")
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[],
            counts={"evaluated" if of_test else "encoded": len(rows)},
            seconds=time.monotonic() - started,
            details={"split": unit.inputs["split"], "part": part.path, "compute": self.compute},
        )

    def _part(self, unit: Unit, of_test: bool) -> pa.Table:
        read = self.context.settings["read"][unit.inputs["split"]]
        images = catalog.images_snapshot(self.lake, read["dataset"], read["images_version"])
        label, anomaly = read["label"], read["anomaly"]
        names = {"image_id", "image", *filter(None, [label, anomaly and anomaly[0]])}
        schema = pa.schema([field for field in images.schema if field.name in names])
        parts = []
        for rows in read_pieces(images.uri, unit.inputs["pieces"], schema):
            pixels = pixels_of(rows["image"], self.bundle.config.image_shape)
            ids = rows["image_id"].to_pylist()
            columns = self._scored(pixels, ids) if of_test else self._coded(pixels, ids)
            columns |= {name: rows[name] for name in ("image_id", "shard", "row")}
            if label:
                columns["label"] = pa.array(texts(rows[label]), pa.string())
            if anomaly:
                is_anomaly = AnomalyColumn(*anomaly).read(rows[anomaly[0]])
                columns["is_anomaly"] = pa.array(is_anomaly, from_pandas=True)
            parts.append(self._rows(columns, len(ids)))
        return pa.concat_tables(parts).sort_by("image_id")

    def _rows(self, columns: dict[str, Any], count: int) -> pa.Table:
        for field in self.spec.file_schema:
            if columns.get(field.name) is None:
                columns[field.name] = pa.nulls(count, field.type)
        names = self.spec.file_schema.names
        return pa.table([columns[name] for name in names], schema=self.spec.file_schema)

    def _coded(self, pixels_NHWC: np.ndarray, ids: list[str]) -> dict[str, Any]:
        return _codes(self.scorer.encode(pixels_NHWC, ids))

    def _scored(self, pixels_NHWC: np.ndarray, ids: list[str]) -> dict[str, Any]:
        scored = self.scorer.score(pixels_NHWC, ids)
        columns = _codes(scored) | {k: v for k, v in scored.scores.items() if v is not None}
        if scored.log_var_ND is not None:
            bound_N, gap_N = self.scorer.bounds(
                pixels_NHWC, ids, samples=self.rule["samples"], seed=self.rule["seed"]
            )
            columns |= {"log_likelihood": bound_N, "inference_gap": gap_N}
        decisive = scored.scores[self.bundle.about["decision_score"]]
        if decisive is not None and len(self.bundle.calibration_scores):
            # No model is trained on an image of the test split, whichever snapshot has it.
            columns["p_value"] = p_values(decisive, self.bundle.calibration_scores)
        return columns


def _codes(scored: ScoredBatch) -> dict[str, Any]:
    log_var = scored.log_var_ND
    return {
        "embedding": vector_column(scored.mean_ND),
        "embedding_log_var": None if log_var is None else vector_column(log_var),
    }
