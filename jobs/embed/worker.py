"""What an embed unit does: read a shard's images, encode, score, write."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.bundles import bundle as bundles
from jobs.datasets.splits import pixels_of
from jobs.embed.payloads import EmbedRewrite, EmbedRows, payload_of
from jobs.embed.sampling import in_sample
from jobs.embed.tables import embed_tables
from jobs.engine.corrections import Correction
from jobs.engine.plan import Completion, JobContext, Unit
from jobs.imaging.decode import encode_png
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.model import RECONSTRUCTIONS
from jobs.schemas.vectors import vector_column
from jobs.tables import catalog
from jobs.tables.delta import Table, open_snapshot, still_there
from jobs.tables.image_ids import IdSet, digests
from jobs.tables.shards import ShardWriter, read_shard, read_span, row_groups, write_shard
from vae_core.scores.per_image import ScoredBatch
from vae_core.stats.conformal import p_values

TRAINED = ("train", "validation")


class EmbedWorker:
    """One a worker process; holds the bundle."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        settings = context.settings
        self.context = context
        self.partition = {key: settings[key] for key in ("model_version", "dataset")}
        self.images_uri = lake.dataset(settings["dataset"], "images")
        self.bundle = bundles.load(lake, settings["model"], settings["model_version"])
        device = settings.get("device", "cpu")  # as the actor got it
        compute = self.bundle.compute(device, settings["batch_size"])
        self.scorer = self.bundle.scorer(compute)
        self.compute = compute.fingerprint
        self.tables = embed_tables(lake, settings["model"], settings["latent_dim"])
        self.trained_on = _snapshot_ids(lake, self.bundle.about["data"])
        self.turn = threading.Lock()  # units come on threads: one reads or writes, one computes

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Do one unit; see Worker."""
        started = time.monotonic()
        match payload_of(unit):
            case EmbedRewrite() as rewrite:
                return self._rewritten(rewrite, unit, attempt)
            case Correction() as correction:
                rows, details = self._corrected(correction), correction.details
            case EmbedRows() as wanted:
                rows, details = self._embedded(wanted, unit.unit_id), {"compute": self.compute}
        name = f"{unit.unit_id}-{attempt}"
        outputs = [
            write_shard(table.uri, table.spec, rows[table.spec.name], name, self.partition)
            for table in self.tables
            if table.spec.name in rows and rows[table.spec.name].num_rows
        ]
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=outputs,
            counts={
                "embedded": rows["embeddings"].num_rows if "embeddings" in rows else 0,
                "reconstructed": rows["reconstructions"].num_rows
                if "reconstructions" in rows
                else 0,
            },
            seconds=time.monotonic() - started,
            details=details,
            kind=unit.kind,
        )

    def _rewritten(self, rewrite: EmbedRewrite, unit: Unit, attempt: str) -> Completion:
        """Write a published file anew without the images that have left the dataset."""
        started = time.monotonic()
        name, path = rewrite.table, rewrite.path
        table = next(table for table in self.tables if table.spec.name == name).as_published()
        known = self._ids(rewrite.images)
        before = 0
        writer = ShardWriter(table.uri, table.spec, f"{unit.unit_id}-{attempt}", self.partition)
        for rows in row_groups(join(table.uri, path)):
            before += rows.num_rows
            writer.write(rows.filter(pa.array(known.has(digests(rows["image_id"])))))
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[writer.close()] if writer.rows else [],
            counts={f"removed_{name}": before - writer.rows},
            seconds=time.monotonic() - started,
            replaces={name: [path]},
            kind=unit.kind,
        )

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a worker lives as long as its process
    def _ids(self, images_version: int) -> IdSet:
        """Return the images of a snapshot of the dataset."""
        images = open_snapshot(self.images_uri, images_version)
        return still_there(images, self.images_uri).image_ids()

    def _embedded(self, work: EmbedRows, unit_id: str) -> dict[str, pa.Table]:
        uri = join(self.images_uri, work.path)
        (start, stop), rows = work.span, work.rows
        images = read_span(uri, start, stop, ["image_id", "image", "split"])
        wanted = np.arange(len(images)) if rows is None else np.array(rows) - start
        # Sorted, so that a look-up by id reads few row groups. Pixels are moved once, by numpy.
        order = pc.sort_indices(images["image_id"].take(wanted)).to_numpy()  # type: ignore[attr-defined]
        wanted = wanted[order]
        pixels = pixels_of(images["image"], self.bundle.config.image_shape)[wanted]
        images = images.select(["image_id", "split"]).take(wanted)
        ids = images["image_id"].to_pylist()
        scored = self._scored(pixels, ids)
        del pixels  # another unit's are being read
        stamp = {
            "night": self.context.night,
            "job_id": self.context.job_id,
            "unit_id": unit_id,
        }
        model_split = np.array(images["split"].to_pylist(), object)
        model_split[~self.trained_on.has(digests(ids))] = None
        p_value = self._p_values(scored, model_split)
        made: dict[str, pa.Table] = {}
        if "embeddings" in work.tables:
            made["embeddings"] = self._embedding_rows(ids, scored, model_split, p_value, stamp)
        if "reconstructions" in work.tables:
            # Of images that are embedded already, the plan has chosen.
            kept = self._drawn(ids, p_value) if "embeddings" in made else range(len(ids))
            assert scored.reconstruction_NHWC is not None, "reconstructions come with scores"
            pngs = [encode_png(scored.reconstruction_NHWC[row]) for row in kept]
            columns = {"image_id": [ids[row] for row in kept], "png": pngs}
            columns |= _repeated(stamp, len(kept))
            made["reconstructions"] = pa.table(columns, schema=RECONSTRUCTIONS.file_schema)
        return made

    def _scored(self, pixels_NHWC: np.ndarray, ids: list[str]) -> ScoredBatch:
        only_codes = self.context.settings["scores"] == "none"
        with self.turn:
            torch.set_num_threads(1)  # which OpenMP holds for each thread
            return (self.scorer.encode if only_codes else self.scorer.score)(pixels_NHWC, ids)

    def _drawn(self, ids: list[str], p_value: np.ndarray) -> list[int]:
        """Rows whose reconstructions are wanted."""
        settings = self.context.settings
        wanted = {
            "all": np.ones(len(ids), bool),
            "sample": in_sample(digests(ids)),
            "anomalies": p_value <= settings["alpha"],  # null is NaN: none
        }
        return np.flatnonzero(wanted[settings["reconstructions"]]).tolist()

    def _p_values(self, scored: ScoredBatch, model_split: np.ndarray) -> np.ndarray:
        """(N,), NaN for none."""
        calibration = self.bundle.calibration_scores
        scores = scored.scores[self.bundle.about["decision_score"]]
        if scores is None or not len(calibration):
            return np.full(len(model_split), np.nan)
        # Images that shaped the model get none; its calibration images, leave-one-out. By id, not
        # by dataset: the same image may be staged in several.
        values = p_values(scores, calibration)
        alone = p_values(scores, calibration, leave_one_out=True)
        values = np.where(model_split == "calibration", alone, values)
        return np.where(np.isin(model_split, TRAINED), np.nan, values)

    def _embedding_rows(
        self,
        ids: list[str],
        scored: ScoredBatch,
        model_split: np.ndarray,
        p_value: np.ndarray,
        stamp: dict[str, str],
    ) -> pa.Table:
        count, log_var_ND, places = len(ids), scored.log_var_ND, scored.max_patch_yx_N2
        columns: dict[str, Any] = {
            "image_id": ids,
            "images_version": [self.context.settings["images_version"]] * count,
            "embedding": vector_column(scored.mean_ND),
            "embedding_log_var": pa.nulls(count)
            if log_var_ND is None
            else vector_column(log_var_ND),
            "max_patch_y": pa.nulls(count) if places is None else places[:, 0],
            "max_patch_x": pa.nulls(count) if places is None else places[:, 1],
            "model_split": pa.array(model_split, pa.string()),
            "p_value": pa.array(p_value, from_pandas=True),
            **_repeated(stamp, count),
        }
        for name, values in scored.scores.items():
            columns[name] = pa.nulls(count, pa.float64()) if values is None else pa.array(values)
        schema = self.tables.embeddings.spec.file_schema
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _corrected(self, correction: Correction) -> dict[str, pa.Table]:
        """Return an earlier unit's rows, less the images that another job has embedded
        meanwhile."""
        rows = {}
        for table in self.tables:
            for path in correction.outputs.get(table.spec.name, []):
                batch = read_shard(join(table.uri, path))
                lost = pa.array(correction.drop["lost"][table.spec.name], pa.string())
                rows[table.spec.name] = _without(batch, table, lost)
        return rows


def _snapshot_ids(lake: LakePaths, data: dict[str, Any]) -> IdSet:
    """Ids of the images in the snapshot that a bundle was trained and calibrated on."""
    images = catalog.images_snapshot(lake, data["dataset"], data["images_version"])
    return images.image_ids()


def _without(batch: pa.Table, table: Table, image_ids: pa.Array) -> pa.Table:
    kept = batch.filter(pc.invert(pc.is_in(batch["image_id"], image_ids)))  # type: ignore[attr-defined]
    return kept.select(table.spec.file_schema.names)


def _repeated(stamp: dict[str, str], count: int) -> dict[str, list[str]]:
    return {name: [value] * count for name, value in stamp.items()}
