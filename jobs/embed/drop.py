"""drop: a model version's embeddings, and all that came with them, leave the tables."""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import override

from jobs.bundles.manifest import read_about
from jobs.embed.settings import DropSettings
from jobs.embed.tables import embed_tables
from jobs.engine.job import Job
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit
from jobs.errors import InputError
from jobs.hashing import digest
from jobs.lake.paths import LakePaths
from jobs.lake.storage import delete_tree
from jobs.schemas.model import EMBED_TABLES, MAPS, RECONSTRUCTIONS
from jobs.search.index import index_folder
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, Table, open_snapshot


class DropJob(Job):
    """One commit; files go with the next `maintain`. The bundle stays."""

    name = "drop"
    rows_counted = "dropped"

    def __init__(self, lake: LakePaths, settings: DropSettings, night: str) -> None:
        """Find the version. Raises InputError where none is named, or a name is unknown."""
        model, dataset = settings.model, settings.dataset
        if "@" not in model:
            raise InputError(f"{model}: say which version to drop, as in {model}@VERSION")
        name, self.version = catalog.resolve_model(lake, model)
        super().__init__(lake, name)
        if dataset is not None:
            catalog.require_dataset(lake, dataset)
        self.dataset = dataset
        self.night = night

    @property
    @override
    def first_table(self) -> str:
        return self.lake.model(self.target, RECONSTRUCTIONS.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self.lake.model(self.target, table) for table in (*EMBED_TABLES, MAPS.name)]

    @property
    def _partition(self) -> dict[str, str]:
        given = {"model_version": self.version, "dataset": self.dataset}
        return {key: value for key, value in given.items() if value is not None}

    @override
    def tables(self, plan: Plan) -> list[Table]:
        tables = embed_tables(self.lake, self.target, plan.settings["latent_dim"])
        maps = Table(self.lake.model(self.target, MAPS.name), MAPS)
        return [tables.reconstructions, tables.anomalies, tables.batches, maps, tables.embeddings]

    def plan(self) -> Plan:
        """Empty where there is nothing to drop."""
        embeddings = open_snapshot(self.lake.model(self.target, "embeddings"))
        files = embeddings.paths(self._partition) if embeddings is not None else []
        version = embeddings.version if embeddings is not None else -1
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=digest(self._partition),
            night=self.night,
            base={"embeddings": version},
            settings={
                **self._partition,
                "latent_dim": read_about(self.lake, self.target, self.version)["config"][
                    "latent_dim"
                ],
            },
            units=[],
            key=["drop", version] if files else [],
        )

    @override
    def planned_removals(self) -> list[str]:
        embeddings = open_snapshot(self.lake.model(self.target, "embeddings"))
        return embeddings.file_uris(self._partition) if embeddings is not None else []

    @override
    def owns(self, plan: Plan) -> bool:
        return plan.fingerprint == digest(self._partition)

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        raise AssertionError("nothing has to be worked out")

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        tables = self.tables(plan)
        embeddings = self.lake.model(self.target, "embeddings")
        snapshots = {table.uri: table.snapshot() for table in tables}
        gone = {u: s.files(self._partition) if s is not None else [] for u, s in snapshots.items()}
        return CommitPlan(
            files={table.uri: [] for table in tables},
            removed={uri: [file.path for file in files] for uri, files in gone.items()},
            counts={
                "dropped": sum(file.rows for file in gone[embeddings]),
                "model_version": self.version,
            },
        )

    def post_commit(self, plan: Plan) -> None:
        """Remove what derives from the version's embeddings, too."""
        delete_tree(index_folder(self.lake, self.target, plan.settings["model_version"]))
