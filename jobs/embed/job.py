"""embed: from an images snapshot and a bundle to embeddings, scores and reconstructions.

Plan: image ids that this model version has not embedded, shard by shard of a pinned snapshot.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from jobs.bundles.manifest import Compute, compute_of, read_about, require_same_images
from jobs.cluster.pool_job import PoolJob
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import ImportedWorker, WorkerFactory, Workers
from jobs.embed.flag_batch import flag_batch
from jobs.embed.payloads import EmbedRows
from jobs.embed.reconcile import PER_IMAGE, EmbedSettle
from jobs.embed.sampling import in_sample
from jobs.embed.settings import EmbedSettings
from jobs.embed.tables import EmbedTables, embed_tables
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit, slices
from jobs.hashing import digest
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.dataset import PREPROCESSING, image_shape_of
from jobs.schemas.model import EMBED_TABLES, RECONSTRUCTIONS
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.image_ids import IdSet, digests
from jobs.tables.shards import read_digests, read_shard

log = logging.getLogger("latentlake")

UNIT_ROWS = 8192  # images a unit at most; a killed worker has two to do again


def _extreme(p_value: pa.ChunkedArray, alpha: float) -> pa.ChunkedArray:
    return pc.fill_null(pc.less_equal(p_value, alpha), False)  # type: ignore[attr-defined]


def _by_tables(lacking: dict[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
    """Rows of a shard by the tables that lack them, of (N,) of bool by table."""
    found: dict[tuple[str, ...], np.ndarray] = {}
    for chosen in itertools.product((True, False), repeat=len(lacking)):
        alike = np.logical_and.reduce(
            [lacks == wanted for lacks, wanted in zip(lacking.values(), chosen, strict=True)]
        )
        tables = tuple(itertools.compress(lacking, chosen))
        if tables and alike.any():
            found[tables] = np.flatnonzero(alike)
    return found


def _pieces(rows: np.ndarray, count: int) -> Iterator[tuple[tuple[int, int], list[int] | None]]:
    """Span and rows of a shard of `count`, as much as a unit has at once; None: all of the span."""
    for start, stop in slices(len(rows), UNIT_ROWS):
        part = rows[start:stop]
        whole = len(rows) == count
        span = (int(part[0]), int(part[-1]) + 1)
        yield span, None if whole else part.tolist()


class EmbedJob(PoolJob):
    """One call of `latentlake embed`."""

    name = "embed"
    rows_counted = "embedded"

    def __init__(
        self, lake: LakePaths, settings: EmbedSettings, night: str, ray_settings: RaySettings
    ) -> None:
        catalog.require_dataset(lake, settings.dataset)
        model, version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, model, night, ray_settings, settings.workers)
        self.settings = settings
        self.redo = settings.redo
        self.version = version
        self.about = read_about(lake, model, version)
        # Where it was calibrated, so that its p-values hold.
        on_gpu = self.about["scoring"].get("device") == "cuda"
        device = settings.device if settings.device != "auto" or on_gpu else "cpu"
        self.workers = Workers(settings.workers, settings.min_workers, device, units_at_once=2)

    @property
    def partition(self) -> dict[str, str]:
        """Return the partition of the model's tables that it writes."""
        return {"model_version": self.version, "dataset": self.settings.dataset}

    @property
    @override
    def first_table(self) -> str:
        return self.lake.model(self.target, RECONSTRUCTIONS.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        own = [self.lake.model(self.target, table) for table in EMBED_TABLES]
        return [self.lake.dataset(self.settings.dataset, "images"), *own]

    @override
    def tables(self, plan: Plan) -> EmbedTables:
        return embed_tables(self.lake, self.target, plan.settings["latent_dim"])

    @override
    def plan(self) -> Plan:
        images = catalog.images_snapshot(self.lake, self.settings.dataset)
        name, shape = f"{self.target}@{self.version}", image_shape_of(images.schema)
        require_same_images(self.about, name, self.settings.dataset, shape)
        self._tell_compute()
        fingerprint = self._fingerprint()
        snapshots = {name: open_snapshot(self.lake.model(self.target, name)) for name in PER_IMAGE}
        commits = {name: table.commits if table else 0 for name, table in snapshots.items()}
        work = self._work(images, fingerprint)
        part = work["units"][: self.settings.commit_every]
        plan = Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={"images": images.version},
            settings={
                **self.partition,
                **self._outputs(),
                "commits": commits,
                "model": self.target,
                "latent_dim": self.about["config"]["latent_dim"],
                "images_version": images.version,
                "whole": len(part) == len(work["units"]),
            },
            **(work | {"units": part}),
        )
        table = snapshots["embeddings"]
        if table is not None and table.has(plan.job_id):
            # Published once, and dropped since: by its old name it would be done already.
            return dataclasses.replace(plan, key=[*plan.key, "again", table.commits])
        return plan

    @override
    def is_whole(self, plan: Plan) -> bool:
        return plan.settings["whole"]

    def _tell_compute(self) -> None:
        compute = self._compute("cpu" if self.workers.device == "cpu" else "cuda")
        log.info("embed %s: %s", self.target, compute)
        if compute.fingerprint != self._calibrated:
            log.warning(
                "embed %s: device, batch shape or torch differ from those of the calibration; "
                "scores agree to about 1e-5, not bit for bit (1e-2 where that was in bfloat16)",
                self.target,
            )

    def _compute(self, device: str) -> Compute:
        return compute_of(self.about, device, self.settings.batch_size)

    @property
    def _calibrated(self) -> str:
        return self.about["scoring"]["compute_fingerprint"]

    def _work(self, images: Snapshot, fingerprint: str) -> dict[str, Any]:
        """Units of the images that are missing; a key where rows have to leave."""
        redo = self.redo
        embedded = {name: IdSet() if redo else self._held_ids(name) for name in PER_IMAGE}
        anomalies = self._held_ids("anomalies")
        may_leave = any(len(ids) for ids in (*embedded.values(), anomalies))
        extreme = self._extreme_ids()
        elsewhere = IdSet() if self.settings.backfill else self._of_other_versions()
        units, found = [], []
        for path, ids in images.digests_each():
            if may_leave:  # else nobody asks which images there are
                found.append(ids)
            of_nights = self._of_nights(join(images.uri, path), len(ids))
            known = embedded["embeddings"].has(ids)
            new = of_nights & ~known & ~elsewhere.has(ids)
            drawn = self._drawn(ids, new, extreme) & ~embedded["reconstructions"].has(ids)
            drawn &= new | (of_nights & known)
            for tables, wanted in _by_tables({"embeddings": new, "reconstructions": drawn}).items():
                units += [
                    EmbedRows(path, span, rows, list(tables)).unit(fingerprint)
                    for span, rows in _pieces(wanted, len(ids))
                ]
        present = IdSet(found)
        leaves = any(not ids.within(present) for ids in (*embedded.values(), anomalies))
        if redo:
            now = open_snapshot(self.lake.model(self.target, "embeddings"))
            return {"units": units, "key": ["redo", now.version if now is not None else -1]}
        return {"units": units, "key": ["leaving", images.version] if leaves else []}

    def _of_nights(self, shard: str, count: int) -> np.ndarray:
        """Which of a shard's images were staged in the nights that are requested, (N,) of bool."""
        since, until = self.settings.since, self.settings.until
        kept = np.ones(count, bool)
        if since is None and until is None:
            return kept
        night = read_shard(shard, ["night"])["night"]
        # Dates as ISO writes them come in the order of time.
        if since is not None:
            kept &= pc.greater_equal(night, since.isoformat()).to_numpy()  # type: ignore[attr-defined]
        if until is not None:
            kept &= pc.less_equal(night, until.isoformat()).to_numpy()  # type: ignore[attr-defined]
        return kept

    def _of_other_versions(self) -> IdSet:
        """Images of the dataset that another version of the model has embedded."""
        dataset = {"dataset": self.settings.dataset}
        snapshot = open_snapshot(self.lake.model(self.target, "embeddings"))
        if snapshot is None:
            return IdSet()
        others = [file for file in snapshot.files(dataset) if file.partition != self.partition]
        return IdSet(read_digests(join(snapshot.uri, file.path)) for file in others)

    def _drawn(self, ids: np.ndarray, new: np.ndarray, extreme: IdSet) -> np.ndarray:
        """Whose reconstructions to make, of images by digest, (N,) of bool.

        Of new images all that may be wanted: the worker, who has the p-values, leaves out the rest.
        """
        wanted = self.settings.reconstructions
        if wanted == "none":
            return np.zeros(len(ids), bool)
        rule = {"all": np.ones_like(new), "sample": in_sample(ids), "anomalies": extreme.has(ids)}
        return new | rule[wanted]

    def _extreme_ids(self) -> IdSet:
        """Embedded images whose reconstructions `anomalies` asks for."""
        snapshot = open_snapshot(self.lake.model(self.target, "embeddings"))
        if snapshot is None or self.settings.reconstructions != "anomalies":
            return IdSet()
        each = snapshot.read_each(["image_id", "p_value"], self.partition)
        return IdSet(
            digests(rows["image_id"].filter(_extreme(rows["p_value"], self.settings.alpha)))
            for _, rows in each
        )

    def _held_ids(self, table: str) -> IdSet:
        """Image ids in this job's partition of a table."""
        snapshot = open_snapshot(self.lake.model(self.target, table))
        return snapshot.image_ids(self.partition) if snapshot is not None else IdSet()

    @override
    def owns(self, plan: Plan) -> bool:
        return plan.fingerprint == self._fingerprint()

    @override
    def post_commit(self, plan: Plan) -> None:
        self.redo = False  # published, it is not done again; what came later is added to it

    def planned_removals(self) -> list[str]:
        """All files of the version, where they are replaced."""
        tables = [open_snapshot(self.lake.model(self.target, name)) for name in PER_IMAGE]
        replaced = [table for table in tables if table is not None and self.redo]
        return [uri for table in replaced for uri in table.file_uris(self.partition)]

    def _fingerprint(self) -> str:
        return digest(PREPROCESSING, self.partition, self._outputs())

    def _outputs(self) -> dict[str, Any]:
        return {
            "batch_size": self._compute("cpu").batch_size,
            "reconstructions": self.settings.reconstructions,
            "alpha": self.settings.alpha,
            "scores": self.settings.scores,
            "redo": self.redo,
            **self.settings.model_dump(mode="json", include={"backfill", "since", "until"}),
        }

    @override
    def worker(self) -> WorkerFactory:
        return ImportedWorker("jobs.embed.worker", "EmbedWorker")

    def close(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        """Flag the batch."""
        return flag_batch(plan, self.tables(plan), unit, attempt)

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        return EmbedSettle(self.lake, self.about, plan, self.tables(plan)).settle(completions)
