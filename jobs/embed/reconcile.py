"""What an embed job did, compared with what is published: corrections, removals, anomalies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.embed.anomalies import FlaggedBatch
from jobs.embed.payloads import EmbedRewrite, FlagBatch
from jobs.embed.tables import EmbedTables
from jobs.engine.corrections import correction_unit, latest_completions
from jobs.engine.job import StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit, total_counts
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.model import BATCHES
from jobs.schemas.spec import MODEL_PARTITION
from jobs.tables import catalog
from jobs.tables.delta import Table, open_snapshot
from jobs.tables.shards import read_shard

PER_IMAGE = ("reconstructions", "embeddings")  # tables that units write


@dataclasses.dataclass(frozen=True)
class EmbedSettle:
    """about: of the bundle. tables: the job's, in commit order."""

    lake: LakePaths
    about: dict[str, Any]
    plan: Plan
    tables: EmbedTables

    @property
    def partition(self) -> dict[str, str]:
        """Return the partition of the model's tables that it writes."""
        return {key: self.plan.settings[key] for key in MODEL_PARTITION}

    def settle(self, completions: dict[str, Completion]) -> list[Unit] | CommitPlan:
        """Units that must run first, or what to publish. See Job.settle."""
        made = {u: c for u, c in completions.items() if c.kind in ("work", "correction")}
        latest = latest_completions(made)
        plan, tables = self.plan, self.tables
        of_units = [table for table in tables if table.spec.name in PER_IMAGE]
        redo = plan.settings["redo"]
        if redo and any(self._has_moved(table) for table in of_units):
            raise StalePlan("another job has published in between")
        published = {table.spec.name: self._published_since(table) for table in of_units}
        corrections = []
        for completion in latest.values():
            lost = {
                table.spec.name: _held(completion, table, published[table.spec.name])
                for table in of_units
            }
            if any(lost.values()):
                corrections.append(correction_unit(plan.fingerprint, completion, {"lost": lost}))
        if corrections:
            return corrections
        rewrites = [] if redo else self._rewrites()
        missing = [unit for unit in rewrites if unit.unit_id not in completions]
        if missing:
            return missing
        removals = [completions[unit.unit_id] for unit in rewrites]
        own = [o for unit in plan.units for o in latest[unit.unit_id].outputs_of("embeddings")]
        closed: list[Completion] = []
        if own:
            computed = {c.details["compute"] for c in made.values() if "compute" in c.details}
            flagging = FlagBatch(self._batch(computed), [output.path for output in own])
            unit = flagging.unit(plan.fingerprint)
            if unit.unit_id not in completions:
                return [unit]
            closed = [completions[unit.unit_id]]
        done = [*(latest[unit.unit_id] for unit in plan.units), *removals, *closed]
        files = {t.uri: [o for c in done for o in c.outputs_of(t.spec.name)] for t in tables}
        gone = {t.uri: [p for c in done for p in c.replaces.get(t.spec.name, [])] for t in tables}
        if redo:
            gone = {t.uri: t.now().paths(self.partition) for t in tables}
        return CommitPlan(
            files=files,
            removed=gone,
            counts={
                "embedded": 0,
                **total_counts([*latest.values(), *removals]),
                **(closed[0].details if closed else {}),
                "model_version": plan.settings["model_version"],
            },
        )

    def _rewrites(self) -> list[Unit]:
        """Return rewrites of published files that hold images which have left the dataset."""
        of_images = [table for table in self.tables if "image_id" in table.spec.schema.names]
        if not any(table.now().paths(self.partition) for table in of_images):
            return []
        # The newest: another job may have embedded images that the plan's snapshot has not yet.
        images = catalog.images_snapshot(self.lake, self.partition["dataset"])
        known = images.image_ids()
        units = []
        for table in of_images:
            for path, ids in table.now().digests_each(self.partition):
                if not known.has(ids).all():
                    rewrite = EmbedRewrite(table.spec.name, path, images.version)
                    units.append(rewrite.unit(self.plan.fingerprint))
        return units

    def _batch(self, computed: set[str]) -> FlaggedBatch:
        """Of what the plan publishes.

        computed: how its units' scores were, by fingerprint.
        """
        plan, about = self.plan, self.about
        last = plan.settings["images_version"]
        # A redo takes the place of all of them.
        ends = [] if plan.settings["redo"] else self._ends_of_batches()
        return FlaggedBatch(
            first=min(max(ends, default=-1) + 1, last),
            last=last,
            number=1 + ends.count(last),
            alpha=plan.settings["alpha"],
            decision_score=about["decision_score"],
            calibration=about["data"]["calibration_images"],
            valid=computed == {about["scoring"]["compute_fingerprint"]},
            image_shape=tuple(about["config"]["image_shape"]),
        )

    def _ends_of_batches(self) -> list[int]:
        """Return the last version of the images table of each batch so far."""
        batches = open_snapshot(self.lake.model(self.plan.target, BATCHES.name))
        rows = batches.read(["last_version"], self.partition) if batches is not None else None
        return rows["last_version"].to_pylist() if rows is not None else []

    def _published_since(self, table: Table) -> pa.Array | None:
        """Image ids in this job's partition, where another job has committed to the table."""
        if not self._has_moved(table):
            return None
        published = table.now().read(["image_id"], self.partition)
        return published["image_id"].combine_chunks() if published is not None else None

    def _has_moved(self, table: Table) -> bool:
        """Whether a job has committed to it since the plan was made."""
        return table.now().commits != self.plan.settings["commits"][table.spec.name]


def _held(completion: Completion, table: Table, published: pa.Array | None) -> list[str]:
    """Image ids of a unit's output that another job has published meanwhile."""
    found: list[str] = []
    for output in completion.outputs_of(table.spec.name) if published is not None else ():
        ids = read_shard(join(table.uri, output.path), ["image_id"])["image_id"]
        found += ids.filter(pc.is_in(ids, published)).to_pylist()  # type: ignore[attr-defined]
    return found
