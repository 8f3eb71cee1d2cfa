"""embed: from an images snapshot and a bundle to embeddings, scores and reconstructions.

Plan: image ids that this model version has not embedded, shard by shard of a pinned snapshot.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import catalog
from jobs.bundle_about import compute_fingerprint, read_about
from jobs.config import EmbedSettings, RaySettings
from jobs.corrections import correction_unit, latest_completions
from jobs.errors import InputError
from jobs.idset import IdSet, digests
from jobs.job import PoolJob, WorkerFactory
from jobs.lake import Lake
from jobs.schema import PREPROCESSING, RECONSTRUCTIONS, embeddings_spec, image_shape_of
from jobs.shards import read_shard
from jobs.storage import join
from jobs.tables import Snapshot, Table, open_snapshot
from jobs.units import Completion, Plan, Settled, Unit, digest, total_counts

log = logging.getLogger("latentlake")


def _by_rows(missing: dict[str, list[int]], count: int) -> list[tuple[list[int] | None, list[str]]]:
    """The rows of a shard and the tables that lack them; None for rows: all of them."""
    found: list[tuple[list[int] | None, list[str]]] = []
    for name, rows in missing.items():
        wanted = None if len(rows) == count else rows
        same = next((tables for held, tables in found if held == wanted), None)
        if same is not None:
            same.append(name)
        elif rows:
            found.append((wanted, [name]))
    return found


def embed_tables(lake: Lake, model: str, latent_dim: int) -> list[Table]:
    """In commit order."""
    specs = (RECONSTRUCTIONS, embeddings_spec(latent_dim))
    return [Table(lake.model(model, spec.name), spec) for spec in specs]


class EmbedJob(PoolJob):
    """One call of `latentlake embed`."""

    name = "embed"
    rows_counted = "embedded"

    def __init__(
        self, lake: Lake, settings: EmbedSettings, night: str, ray_settings: RaySettings
    ) -> None:
        catalog.require_dataset(lake, settings.dataset)
        model, version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, model, night, ray_settings, settings.workers)
        self.settings = settings
        self.version = version
        self.about = read_about(lake, model, version)

    @property
    def partition(self) -> dict[str, str]:
        return {"model_version": self.version, "dataset": self.settings.dataset}

    @property
    def first_table(self) -> str:
        return self.lake.model(self.target, RECONSTRUCTIONS.name)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size or self.about["scoring"]["batch_size"]

    def tables(self, plan: Plan) -> list[Table]:
        return embed_tables(self.lake, self.target, plan.settings["latent_dim"])

    def plan(self) -> Plan:
        images = catalog.images_snapshot(self.lake, self.settings.dataset)
        self._require_same_images(images)
        self._warn_of_other_digits()
        fingerprint = self._fingerprint()
        base = {"images": images.version}
        for name in ("reconstructions", "embeddings"):
            snapshot = open_snapshot(self.lake.model(self.target, name))
            base[name] = snapshot.version if snapshot is not None else -1
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base=base,
            settings={
                **self.partition,
                **self._outputs(),
                "model": self.target,
                "latent_dim": self.about["config"]["latent_dim"],
                "images_version": images.version,
            },
            **self._work(images, fingerprint),
        )

    def _require_same_images(self, images: Snapshot) -> None:
        held, wanted = image_shape_of(images.schema), tuple(self.about["config"]["image_shape"])
        if held != wanted:
            raise InputError(
                f"dataset {self.settings.dataset!r} has images of {held} (H, W, C), model "
                f"{self.target}@{self.version} was trained on {wanted}; stage at that size"
            )
        if self.about["data"]["preprocessing"] != PREPROCESSING:
            raise InputError(
                f"model {self.target}@{self.version} was trained on preprocessing "
                f"{self.about['data']['preprocessing']}, this release stages {PREPROCESSING}; "
                "train again"
            )

    def _warn_of_other_digits(self) -> None:
        calibrated = self.about["scoring"]["compute_fingerprint"]
        if compute_fingerprint(self.batch_size) != calibrated:
            log.warning(
                "embed %s: batch shape or torch differ from those of the calibration; scores "
                "agree to about 1e-5, not bit for bit",
                self.target,
            )

    def _work(self, images: Snapshot, fingerprint: str) -> dict[str, Any]:
        """Units of the images that are missing; a key where only rows have to leave."""
        wanted = self._wanted_tables()
        held = {name: self._held_ids(name) for name in wanted}
        units, found = [], []
        for path, rows in images.read_each(["image_id"]):
            ids = digests(rows["image_id"])
            found.append(ids)
            missing = {name: np.flatnonzero(~held[name].has(ids)).tolist() for name in wanted}
            units += [
                Unit.of(fingerprint, {"path": path, "rows": rows, "tables": tables})
                for rows, tables in _by_rows(missing, len(ids))
            ]
        known = IdSet(found)
        leaves = any(not held[name].within(known) for name in wanted)
        return {"units": units, "key": ["leaving", images.version] if leaves else []}

    def _wanted_tables(self) -> list[str]:
        return ["embeddings", *(["reconstructions"] if self.settings.reconstructions else [])]

    def _held_ids(self, table: str) -> IdSet:
        """Image ids in this job's partition of a table."""
        snapshot = open_snapshot(self.lake.model(self.target, table))
        if snapshot is None:
            return IdSet()
        each = snapshot.read_each(["image_id"], self.partition)
        return IdSet(digests(rows["image_id"]) for _, rows in each)

    def claims(self, plan: Plan) -> bool:
        return plan.fingerprint == self._fingerprint()

    def _fingerprint(self) -> str:
        return digest(PREPROCESSING, self.partition, self._outputs())

    def _outputs(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "reconstructions": self.settings.reconstructions}

    def worker(self) -> WorkerFactory:
        from jobs.embed_worker import EmbedWorker

        return EmbedWorker

    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | Settled:
        made = {u: c for u, c in completions.items() if "rewrites" not in c.details}
        latest = latest_completions(made)
        tables = self.tables(plan)
        published = {table.spec.name: self._published_since(plan, table) for table in tables}
        corrections = []
        for completion in latest.values():
            lost = {
                table.spec.name: _held(completion, table, published[table.spec.name])
                for table in tables
            }
            if any(lost.values()):
                corrections.append(correction_unit(plan.fingerprint, completion, {"lost": lost}))
        if corrections:
            return corrections
        rewrites = self._rewrites(plan, tables)
        missing = [unit for unit in rewrites if unit.unit_id not in completions]
        if missing:
            return missing
        removals = [completions[unit.unit_id] for unit in rewrites]
        done = [*(latest[unit.unit_id] for unit in plan.units), *removals]
        return Settled(
            files={t.uri: [o for c in done for o in c.outputs_of(t.spec.name)] for t in tables},
            removed={
                t.uri: [p for c in done for p in c.replaces.get(t.spec.name, [])] for t in tables
            },
            counts={
                "embedded": 0,
                **total_counts([*latest.values(), *removals]),
                "model_version": plan.settings["model_version"],
            },
        )

    def _rewrites(self, plan: Plan, tables: list[Table]) -> list[Unit]:
        """Published files of this job's partition that hold images which have left the dataset."""
        partition = {key: plan.settings[key] for key in self.partition}
        # The newest: another job may have embedded images that the plan's snapshot has not yet.
        images = catalog.images_snapshot(self.lake, partition["dataset"])
        known = IdSet(digests(rows["image_id"]) for _, rows in images.read_each(["image_id"]))
        units = []
        for table in tables:
            snapshot = table.snapshot()
            assert snapshot is not None
            for path, rows in snapshot.read_each(["image_id"], partition):
                if not known.has(digests(rows["image_id"])).all():
                    inputs = {"rewrite": table.spec.name, "path": path}
                    units.append(Unit.of(plan.fingerprint, {**inputs, "images": images.version}))
        return units

    def _published_since(self, plan: Plan, table: Table) -> pa.Array | None:
        """Image ids in this job's partition, where another job has committed to the table."""
        now = table.snapshot()
        assert now is not None
        if now.version == max(plan.base[table.spec.name], 0):
            return None
        held = now.read(["image_id"], {k: plan.settings[k] for k in self.partition})
        return held["image_id"].combine_chunks() if held is not None else None


def _held(completion: Completion, table: Table, published: pa.Array | None) -> list[str]:
    """Image ids of a unit's output that another job has published meanwhile."""
    found: list[str] = []
    for output in completion.outputs_of(table.spec.name) if published is not None else ():
        ids = read_shard(join(table.uri, output.path), ["image_id"])["image_id"]
        found += ids.filter(pc.is_in(ids, published)).to_pylist()  # type: ignore[attr-defined]
    return found
