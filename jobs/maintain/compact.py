"""compact: small files of a table merged into files of the usual size; not a row changes.

A job like any other: its units merge, its commit swaps the files, and who commits in between wins:
a merge whose inputs have gone meanwhile is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from typing_extensions import override

from jobs.cluster.pool_job import PoolJob
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import ImportedWorker, WorkerFactory
from jobs.datasets.rewrite import shard_writer
from jobs.engine.job import StalePlan
from jobs.engine.plan import CommitPlan, Completion, JobContext, Plan, Unit, total_counts
from jobs.hashing import digest
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.dataset import (
    DATASET_TABLES,
    QUARANTINE,
    SOURCES,
    TableSpec,
    image_shape_of,
    images_spec,
    passthrough_of,
)
from jobs.schemas.model import EMBED_TABLES, MODEL_TABLES, RECONSTRUCTIONS, embeddings_spec
from jobs.tables.delta import Snapshot, Table, TableFile, open_snapshot, still_there
from jobs.tables.shards import ShardWriter, read_shard, row_groups, with_all_columns

TARGET_BYTES = 128 << 20
SMALL_BYTES = TARGET_BYTES // 2
LAYOUT = 2  # raised when merged files would come out otherwise


def merges(files: Iterable[TableFile]) -> list[list[TableFile]]:
    """Group of two or more small files, neighbours by path, that fill one file.

    Of one partition; every file in at most one group; what is large enough is left alone.
    """
    groups: list[list[TableFile]] = []
    waiting: list[TableFile] = []
    size = 0
    for file in sorted(files, key=lambda file: (sorted(file.partition.items()), file.path)):
        if file.size >= SMALL_BYTES:
            continue
        other = bool(waiting) and waiting[0].partition != file.partition
        if other or size + file.size > TARGET_BYTES:
            groups.append(waiting)
            waiting, size = [], 0
        waiting.append(file)
        size += file.size
    return [group for group in [*groups, waiting] if len(group) > 1]


class CompactJob(PoolJob):
    """Compaction of the tables of one dataset or one model."""

    name = "compact"
    rows_counted = "rows_merged"

    def __init__(
        self,
        lake: LakePaths,
        kind: str,
        part: str,
        night: str,
        ray_settings: RaySettings,
        workers: int | None = None,
    ) -> None:
        """kind: dataset or model. part: the name of one."""
        super().__init__(lake, f"{kind}-{part}", night, ray_settings, workers)
        self.kind = kind
        self.part = part

    @property
    @override
    def first_table(self) -> str:
        return self._uri((QUARANTINE if self.kind == "dataset" else RECONSTRUCTIONS).name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self._uri(table) for table in self._order]

    @property
    def _order(self) -> tuple[str, ...]:
        return DATASET_TABLES if self.kind == "dataset" else EMBED_TABLES

    def _uri(self, table: str) -> str:
        return self.lake.owned(self.kind, self.part, table)

    @override
    def tables(self, plan: Plan) -> list[Table]:
        return [Table(self._uri(name), self._spec(name)) for name in plan.settings["tables"]]

    def _spec(self, name: str) -> TableSpec:
        return spec_of(self._uri(name), name)

    @override
    def plan(self) -> Plan:
        snapshots = {name: open_snapshot(self._uri(name)) for name in self._order}
        fingerprint = digest(LAYOUT, TARGET_BYTES)
        units = [
            Unit.of(fingerprint, {"table": name, "paths": [file.path for file in group]})
            for name, snapshot in snapshots.items()
            if snapshot is not None
            for group in merges(snapshot.files())
        ]
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={name: s.version for name, s in snapshots.items() if s is not None},
            settings={
                "kind": self.kind,
                "target": self.part,
                "tables": [name for name in self._order if snapshots[name] is not None],
            },
            units=units,
        )

    def units(self, plan: Plan) -> Iterator[Unit]:
        """Those whose files are all still there."""
        live = {table.spec.name: set(table.now().paths()) for table in self.tables(plan)}
        units = [u for u in plan.units if set(u.inputs["paths"]) <= live[u.inputs["table"]]]
        if not units:
            raise StalePlan("its files have gone")
        return iter(units)

    @override
    def owns(self, plan: Plan) -> bool:
        return True

    @override
    def worker(self) -> WorkerFactory:
        return ImportedWorker("jobs.maintain.compact", "CompactWorker")

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        tables = self.tables(plan)
        live = {t.spec.name: set(t.now().paths()) for t in tables}
        kept = [
            c
            for c in completions.values()
            if all(set(paths) <= live[name] for name, paths in c.replaces.items())
        ]
        return CommitPlan(
            files={t.uri: [o for c in kept for o in c.outputs_of(t.spec.name)] for t in tables},
            removed={
                t.uri: [p for c in kept for p in c.replaces.get(t.spec.name, [])] for t in tables
            },
            counts=total_counts(kept),
            same_rows=True,
        )

    def post_commit(self, plan: Plan) -> None:
        """Make the card of the new snapshot: each has its own."""
        if self.kind == "dataset" and "images" in plan.settings["tables"]:
            from jobs.datasets.card import dataset_card

            dataset_card(self.lake, self.part)


def spec_of(uri: str, name: str) -> TableSpec:
    """Return the spec of a published table, with the shape, columns and contract that it has."""
    fixed = {QUARANTINE.name: QUARANTINE, SOURCES.name: SOURCES, **MODEL_TABLES}
    if name in fixed:
        return fixed[name]
    snapshot = still_there(open_snapshot(uri), uri)
    if name == "images":
        from jobs.datasets.card import look_of

        return images_spec(
            image_shape_of(snapshot.schema), passthrough_of(snapshot.schema), look_of(snapshot)
        )
    metadata = snapshot.schema.field("embedding").metadata or {}
    return embeddings_spec(int(metadata[b"dimension"]))


class CompactWorker:
    """Merges the files of one unit: row group by row group, unless their rows are sorted."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        self.lake = lake
        self.settings = context.settings

    def execute(self, unit: Unit, attempt: str) -> Completion:
        """Merge the files of one unit; see Worker."""
        started = time.monotonic()
        name, paths = unit.inputs["table"], unit.inputs["paths"]
        uri = self.lake.owned(self.settings["kind"], self.settings["target"], name)
        table = Table(uri, spec_of(uri, name)).as_published()
        writer = self._writer(table, f"{unit.unit_id}-{attempt}", paths[0])
        if table.spec.sort_by is None:
            for path in paths:
                for rows in row_groups(join(uri, path)):
                    writer.write(rows)
        else:
            schema = table.spec.file_schema
            parts = [with_all_columns(read_shard(join(uri, path)), schema) for path in paths]
            writer.write(pa.concat_tables(parts).sort_by(table.spec.sort_by))
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[writer.close()],
            counts={"files_merged": len(paths), "files_made": 1, "rows_merged": writer.rows},
            seconds=time.monotonic() - started,
            replaces={name: list(paths)},
        )

    def _writer(self, table: Table, name: str, path: str) -> ShardWriter:
        if not table.spec.partition_by:
            return shard_writer(table, name)
        folders = [folder.partition("=") for folder in path.split("/")[:-1]]
        partition: dict[str, Any] = {key: value for key, _, value in folders}
        return ShardWriter(table.uri, table.spec, name, partition)
