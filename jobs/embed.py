"""embed: from an images snapshot and a bundle to embeddings, scores and reconstructions.

Plan: image ids that this model version has not embedded, shard by shard of a pinned snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs import catalog
from jobs.bundle_about import read_about
from jobs.config import EmbedSettings, RaySettings
from jobs.corrections import correction_unit, latest_completions
from jobs.errors import InputError
from jobs.job import Job
from jobs.lake import Lake
from jobs.schema import PREPROCESSING, RECONSTRUCTIONS, embeddings_spec, image_shape_of
from jobs.shards import read_shard
from jobs.storage import join
from jobs.tables import Snapshot, Table, open_snapshot
from jobs.units import Completion, Output, Plan, Unit, digest, total_counts


def embed_tables(lake: Lake, model: str, latent_dim: int) -> list[Table]:
    """In commit order."""
    specs = (RECONSTRUCTIONS, embeddings_spec(latent_dim))
    return [Table(lake.model(model, spec.name), spec) for spec in specs]


class EmbedJob(Job):
    """One call of `latentlake embed`."""

    name = "embed"
    rows_counted = "embedded"

    def __init__(
        self, lake: Lake, settings: EmbedSettings, night: str, ray_settings: RaySettings
    ) -> None:
        catalog.require_dataset(lake, settings.dataset)
        model, version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, model)
        self.settings = settings
        self.version = version
        self.about = read_about(lake, model, version)
        self.night = night
        self.ray_settings = ray_settings

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
        fingerprint = self._fingerprint()
        embeddings = open_snapshot(self.lake.model(self.target, "embeddings"))
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={
                "images": images.version,
                "embeddings": embeddings.version if embeddings is not None else -1,
            },
            settings={
                **self.partition,
                **self._outputs(),
                "model": self.target,
                "latent_dim": self.about["config"]["latent_dim"],
                "images_version": images.version,
            },
            units=self._units(images, embeddings, fingerprint),
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

    def _units(self, images: Snapshot, embedded: Snapshot | None, fingerprint: str) -> list[Unit]:
        paths = images.paths()
        known: set[str] = set()
        if embedded is not None:
            # The embedded images are among those of the snapshot: equal counts, equal sets.
            if embedded.partition_rows(self.partition) == images.partition_rows({}):
                return []
            held = embedded.read(["image_id"], self.partition)
            known = set(held["image_id"].to_pylist()) if held is not None else set()
        trained_on = self._trained_on()
        units = []
        for path in paths:
            ids = read_shard(join(images.uri, path), ["image_id"])["image_id"].to_pylist()
            wanted = [row for row, image_id in enumerate(ids) if image_id not in known]
            if wanted:
                rows = None if len(wanted) == len(ids) else wanted
                inputs = {"path": path, "rows": rows, "trained_on": path in trained_on}
                units.append(Unit.of(fingerprint, inputs))
        return units

    def _trained_on(self) -> set[str]:
        """Shards of the snapshot that the bundle was trained and calibrated on."""
        data = self.about["data"]
        if data["dataset"] != self.settings.dataset:
            return set()
        snapshot = catalog.images_snapshot(self.lake, data["dataset"], data["images_version"])
        return set(snapshot.paths())

    def claims(self, plan: Plan) -> bool:
        return plan.fingerprint == self._fingerprint()

    def is_current(self, plan: Plan) -> bool:
        return True  # it names its snapshot and its bundle, which stay

    def _fingerprint(self) -> str:
        return digest(PREPROCESSING, self.partition, self._outputs())

    def _outputs(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "reconstructions": self.settings.reconstructions}

    def execute(self, plan: Plan, units: Sequence[Unit]) -> None:
        from jobs import execute
        from jobs.embed_worker import EmbedWorker

        execute.run_units(
            EmbedWorker,
            self.lake,
            plan,
            units,
            workers=self.settings.workers,
            ray_settings=self.ray_settings,
            report_count=self.rows_counted,
        )

    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | dict[str, list[Output]]:
        latest = latest_completions(completions)
        tables = self.tables(plan)
        published = self._published_since(plan, tables[-1])
        corrections = []
        for completion in latest.values():
            output = completion.output("embeddings")
            if output is None or published is None:
                continue
            ids = read_shard(join(tables[-1].uri, output.path), ["image_id"])["image_id"]
            held = ids.filter(pc.is_in(ids, published)).to_pylist()  # type: ignore[attr-defined]
            if held:
                corrections.append(correction_unit(plan.fingerprint, completion, {"lost": held}))
        if corrections:
            return corrections
        return {
            table.uri: [
                output
                for unit in plan.units
                if (output := latest[unit.unit_id].output(table.spec.name)) is not None
            ]
            for table in tables
        }

    def _published_since(self, plan: Plan, embeddings: Table) -> pa.ChunkedArray | None:
        """Image ids in this job's partition, where another job has committed to the table."""
        now = embeddings.snapshot()
        assert now is not None
        if now.version == max(plan.base["embeddings"], 0):
            return None
        held = now.read(["image_id"], {k: plan.settings[k] for k in self.partition})
        return held["image_id"] if held is not None else None

    def summarise(
        self, plan: Plan, completions: dict[str, Completion], files: dict[str, list[Output]]
    ) -> dict[str, Any]:
        counts = total_counts(list(latest_completions(completions).values()))
        return {**counts, "model_version": plan.settings["model_version"]}
