"""drift: a night's arrivals against the model's own reference; which p-values are not valid.

One unit, in this process: samples are small. Where drift was found, the p-values of the arrivals'
batches stand on a calibration that they are not exchangeable with, and their rows say so.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from jobs.drift import results as drift_results
from jobs.drift.settings import DriftRule, DriftSettings
from jobs.engine import records
from jobs.engine.interruptible import apart
from jobs.engine.job import Job, StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit
from jobs.errors import InputError
from jobs.hashing import digest
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.catalog import DRIFT
from jobs.schemas.model import ANOMALIES, BATCHES, EMBED_TABLES, RECONSTRUCTIONS
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, Table, open_snapshot
from jobs.tables.shards import ShardWriter, read_shard, row_groups, write_shard

LAYOUT = 2  # raised when the same images would be judged otherwise
MARKED = (ANOMALIES.name, BATCHES.name)


class DriftJob(Job):
    """One call of `latentlake drift`."""

    name = "drift"
    rows_counted = "arrivals"

    def __init__(self, lake: LakePaths, settings: DriftSettings, night: str) -> None:
        catalog.require_dataset(lake, settings.dataset)
        model, self.version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, model)
        self.settings = settings
        self.night = night

    @property
    def first_table(self) -> str:
        """That of embed: what it publishes and what drift marks come one after the other."""
        return self.lake.model(self.target, RECONSTRUCTIONS.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        own = [self.lake.model(self.target, table) for table in EMBED_TABLES]
        images = self.lake.dataset(self.settings.dataset, "images")
        return [images, *own, self.lake.catalog(DRIFT.name)]

    @property
    def _partition(self) -> dict[str, str]:
        return {"model_version": self.version, "dataset": self.settings.dataset}

    @property
    def _rule(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", include=set(DriftRule.model_fields))

    @override
    def tables(self, plan: Plan) -> list[Table]:
        of_model = [RECONSTRUCTIONS, ANOMALIES, BATCHES]
        tables = [Table(self.lake.model(self.target, spec.name), spec) for spec in of_model]
        return [*tables, Table(self.lake.catalog(DRIFT.name), DRIFT)]

    def plan(self) -> Plan:
        """Empty where no image has come since the last judgement.

        What a job of embed has published is judged once, or, where there was too little to test,
        again together with what comes next. Jobs, not versions of the images, are what has been
        judged: images may be embedded later than newer ones, or again.
        """
        images = catalog.images_snapshot(self.lake, self.settings.dataset)
        _require_column(images, self.settings)
        earlier = self._judgements()
        waiting, ends = self._waiting(earlier)
        tested = {job_id for row in earlier for job_id in row["embed_jobs"] or ()}
        is_new = bool(set(waiting) - tested) or not (earlier or self._has_embeddings())
        fingerprint = digest(LAYOUT, self._partition, self._rule)
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={"images": images.version, "embeddings": self._embeddings_version},
            settings={
                **self._partition,
                **self._rule,
                "model": self.target,
                "judgements": len(earlier),
                "first_version": ends[0],
                "last_version": ends[1],
            },
            units=[Unit.of(fingerprint, {"embed_jobs": waiting})] if is_new else [],
        )

    def _judgements(self) -> list[dict[str, Any]]:
        return drift_results.judgements(self.lake, self.target, **self._named)

    @property
    def _named(self) -> dict[str, str]:
        return {"version": self.version, "dataset": self.settings.dataset}

    def _waiting(self, earlier: list[dict[str, Any]]) -> tuple[list[str], tuple[Any, Any]]:
        """Jobs of embed with arrivals that no test has seen, and the ends of their versions."""
        tested = [row for row in earlier if row["drifted"] is not None]
        seen = pa.array([i for row in tested for i in row["embed_jobs"] or ()], pa.string())
        found: set[str] = set()
        ends: list[int] = []
        for rows in self._arrivals():
            rows = rows.filter(pc.invert(pc.is_in(rows["job_id"], seen)))  # type: ignore[attr-defined]
            if len(rows):
                found.update(pc.unique(rows["job_id"]).to_pylist())  # type: ignore[attr-defined]
                between = pc.min_max(rows["images_version"]).as_py()  # type: ignore[attr-defined]
                ends += [between["min"], between["max"]]
        return sorted(found), (min(ends), max(ends)) if ends else (None, None)

    def _arrivals(self) -> Iterator[pa.Table]:
        """Job and images' version of embedded images that the model's snapshot did not have."""
        embeddings = self._embeddings()
        if embeddings is not None:
            columns = ["model_split", "job_id", "images_version"]
            for _, rows in embeddings.read_each(columns, self._partition):
                if "model_split" in rows.column_names:
                    yield rows.filter(pc.is_null(rows["model_split"]))  # type: ignore[attr-defined]

    def _embeddings(self) -> Snapshot | None:
        return open_snapshot(self.lake.model(self.target, "embeddings"))

    @property
    def _embeddings_version(self) -> int:
        embeddings = self._embeddings()
        return embeddings.version if embeddings is not None else -1

    def _has_embeddings(self) -> bool:
        embeddings = self._embeddings()
        return embeddings is not None and embeddings.partition_rows(self._partition) > 0

    @override
    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        return "nothing to do: no image has come since the last judgement", {}

    def owns(self, plan: Plan) -> bool:
        """Also of other settings: what was begun is finished, and judged once."""
        return all(plan.settings[name] == value for name, value in self._partition.items())

    def units(self, plan: Plan) -> Iterator[Unit]:
        """Of a plan that was left behind, only while nobody else has judged its arrivals."""
        self._require_current(plan)
        return iter(plan.units)

    def _require_current(self, plan: Plan) -> None:
        if len(self._judgements()) != plan.settings["judgements"]:
            raise StalePlan("another job has judged meanwhile")
        if self._embeddings_version == plan.base["embeddings"]:
            return
        live = {i for rows in self._arrivals() for i in rows["job_id"].unique().to_pylist()}
        if not set(_embed_jobs(plan)) <= live:
            raise StalePlan("its images have been embedded again, or have left")

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        for unit in units:
            do = self._marked if unit.kind == "rewrite" else self._judged
            records.save_completion(self.lake, plan.job_id, do(plan, unit, uuid.uuid4().hex[:8]))

    def _judged(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        from jobs.drift.decision import decide  # brings the tests: only where there is work
        from jobs.drift.samples import Question, read_sides

        started = time.monotonic()
        rule = DriftRule.model_validate({n: plan.settings[n] for n in DriftRule.model_fields})
        question = Question(
            self.target, self.version, self.settings.dataset, plan.base["images"], _embed_jobs(plan)
        )
        sides = read_sides(self.lake, question, rule)
        decision = apart(lambda: decide(sides, rule))  # long steps of numpy
        common = {
            "model": self.target,
            **self._partition,
            "sequence": plan.settings["judgements"] + 1,
            "first_version": plan.settings["first_version"],
            "last_version": plan.settings["last_version"],
            "night": plan.night,
            "job_id": plan.job_id,
            "unit_id": unit.unit_id,
        }
        rows = [row | common for row in decision.rows]
        rows[0]["embed_jobs"] = list(question.embed_jobs)
        uri, name = self.lake.catalog(DRIFT.name), f"{unit.unit_id}-{attempt}"
        table = pa.Table.from_pylist(rows, schema=DRIFT.schema)
        outcome = {n: rows[0][n] for n in ("drifted", "p_value", "alpha", "arrivals", "reference")}
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[write_shard(uri, DRIFT, table, name)],
            counts={},
            seconds=time.monotonic() - started,
            details={**outcome, "note": decision.note},
        )

    def _marked(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        """Write a published file anew, whose rows of the arrivals say that their p-values do not
        hold."""
        started = time.monotonic()
        name, path = unit.inputs["rewrite"], unit.inputs["path"]
        table = next(t for t in self.tables(plan) if t.spec.name == name).as_published()
        writer = ShardWriter(table.uri, table.spec, f"{unit.unit_id}-{attempt}", self._partition)
        jobs = pa.array(_embed_jobs(plan), pa.string())
        marked = 0
        for rows in row_groups(join(table.uri, path)):
            theirs = _unmarked(rows, jobs)
            marked += pc.sum(theirs).as_py() or 0  # type: ignore[attr-defined]
            valid = pc.if_else(theirs, False, rows["calibration_valid"])  # type: ignore[attr-defined]
            at = rows.schema.get_field_index("calibration_valid")
            writer.write(rows.set_column(at, "calibration_valid", valid))
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[writer.close()],
            counts={f"marked_{name}": marked},
            seconds=time.monotonic() - started,
            replaces={name: [path]},
            kind=unit.kind,
        )

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        self._require_current(plan)
        judged = completions[plan.units[0].unit_id]
        rewrites = self._rewrites(plan) if judged.details["drifted"] else []
        missing = [unit for unit in rewrites if unit.unit_id not in completions]
        if missing:
            return missing
        done = [completions[unit.unit_id] for unit in rewrites]
        tables = self.tables(plan)
        return CommitPlan(
            files={
                t.uri: [o for c in [*done, judged] for o in c.outputs_of(t.spec.name)]
                for t in tables
            },
            removed={
                t.uri: [p for c in done for p in c.replaces.get(t.spec.name, [])] for t in tables
            },
            counts={
                **judged.details,
                "marked": sum(c.counts.get(f"marked_{ANOMALIES.name}", 0) for c in done),
                "model_version": self.version,
            },
        )

    def _rewrites(self, plan: Plan) -> list[Unit]:
        """Return rewrites of published files with rows of the arrivals that are not marked yet."""
        jobs = pa.array(_embed_jobs(plan), pa.string())
        units = []
        for table in self.tables(plan):
            snapshot = table.snapshot() if table.spec.name in MARKED else None
            for path in snapshot.paths(self._partition) if snapshot is not None else []:
                rows = read_shard(join(table.uri, path), ["job_id", "calibration_valid"])
                if pc.any(_unmarked(rows, jobs)).as_py():  # type: ignore[attr-defined]
                    inputs = {"rewrite": table.spec.name, "path": path}
                    units.append(Unit.of(plan.job_id, inputs, "rewrite"))
        return units


def _embed_jobs(plan: Plan) -> list[str]:
    return plan.units[0].inputs["embed_jobs"]


def _unmarked(rows: pa.Table, jobs: pa.Array) -> Any:
    """Which rows are of those jobs and not marked yet."""
    theirs = pc.is_in(rows["job_id"], jobs)  # type: ignore[attr-defined]
    return pc.and_(theirs, pc.fill_null(rows["calibration_valid"], True))  # type: ignore[attr-defined]


def _require_column(images: Snapshot, settings: DriftSettings) -> None:
    known = [name for name in images.schema.names if name not in ("image", "image_id")]
    if settings.block_by is not None and settings.block_by not in known:
        raise InputError(
            f"dataset {settings.dataset!r} has no column {settings.block_by!r} to make blocks by; "
            f"it has {', '.join(sorted(known))}"
        )
