"""stage: from a source to the images table.

Plan: files that the sources table does not know as they are, cut into units while the listing
comes in. Execute: hash, drop what is known, decode, write. Settle: what two units or two jobs both
hold stays once, and what has left the source leaves the next snapshot.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from typing_extensions import override

from jobs.cluster.pool_job import PoolJob
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import ImportedWorker, WorkerFactory
from jobs.engine import records
from jobs.engine.corrections import correction_unit, latest_completions
from jobs.engine.job import StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit, total_counts
from jobs.errors import JobError
from jobs.hashing import digest
from jobs.lake.paths import LakePaths, valid_name
from jobs.schemas.dataset import DATASET_TABLES, PREPROCESSING, QUARANTINE, passthrough_of
from jobs.sources.listing import list_files
from jobs.stage.plan import Pair, UnitStream
from jobs.stage.reconcile import (
    StageState,
    already_held,
    removals,
    require_whole_files,
    still_gone,
)
from jobs.stage.settings import StageSettings
from jobs.stage.tables import StageTables, stage_tables
from jobs.tables.delta import Snapshot, open_snapshot

log = logging.getLogger("latentlake")


class StageJob(PoolJob):
    """One call of `latentlake stage`."""

    name = "stage"
    rows_counted = "rows_in"

    def __init__(
        self, lake: LakePaths, settings: StageSettings, night: str, ray_settings: RaySettings
    ) -> None:
        target = valid_name("dataset", settings.dataset)
        super().__init__(lake, target, night, ray_settings, settings.workers)
        self.settings = settings
        self._planned: tuple[UnitStream, Iterator[Unit]] | None = None
        self._gone: dict[str, list[Pair]] = {}  # by job id
        self._resumed: set[str] = set()  # job ids whose units were saved by an earlier run
        self._unsteady: set[str] = set()  # files that changed while their parts were read

    @property
    @override
    def first_table(self) -> str:
        return self.lake.dataset(self.target, QUARANTINE.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self.lake.dataset(self.target, table) for table in DATASET_TABLES]

    @override
    def tables(self, plan: Plan) -> StageTables:
        return stage_tables(self.lake, self.target, plan.settings)

    @override
    def plan(self) -> Plan:
        images = self._published("images")
        stream = self._stream()
        units = iter(stream)
        first = next(units, None)
        nothing = first is None and not stream.gone
        self._planned = (stream, units if first is None else itertools.chain([first], units))
        base = {"images": images.version if images is not None else -1}
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=self._fingerprint(),
            night=self.night,
            base=base,
            settings={
                "source": self.settings.source,
                "passthrough": _columns(stream),
                "dataset": self.target,
                "target": {
                    **self.settings.preprocessing_of(),
                    "max_pixels": self.settings.max_pixels,
                },
                "array_shape": self.settings.array_shape,
                "rows_per_shard": stream.rows_per_unit,
            },
            # The units are not known yet; what is published names the work as well.
            key=[] if nothing else [self.settings.source, max(base["images"], 0)],
        )

    def _stream(self) -> UnitStream:
        sources, images = (self._published(name) for name in ("sources", "images"))
        stream = UnitStream(self.settings, self._fingerprint(), sources, images)
        stream.unread |= self._unsteady
        return stream

    def _published(self, table: str) -> Snapshot | None:
        """Return the newest snapshot; a table that has only been created is as good as none."""
        snapshot = open_snapshot(self.lake.dataset(self.target, table))
        return snapshot if snapshot is not None and snapshot.is_published else None

    def units(self, plan: Plan) -> Iterator[Unit]:
        """As the listing gives them; once it has ended they are saved, and hold.

        Of those that an earlier run saved, the ones whose files are still what they were: the
        others' files are planned anew after this plan.
        """
        saved = records.load_units(self.lake, plan)
        if saved is not None:
            units, gone = self._current(saved[0], [(u, e) for u, e in saved[1]["gone"]])
            if not units and not gone:
                raise StalePlan("its source has changed")
            self._gone[plan.job_id] = gone
            self._resumed.add(plan.job_id)
            yield from units
            return
        units = []
        stream, coming = self._planned or ((fresh := self._stream()), iter(fresh))
        self._planned = None
        for unit in coming:
            if _columns(stream) != plan.settings["passthrough"]:
                raise StalePlan("its source has other columns now")
            units.append(unit)
            yield unit
        self._gone[plan.job_id] = stream.gone
        found = {"gone": [list(pair) for pair in stream.gone]}
        records.save_units(self.lake, plan.job_id, units, found)

    def _current(self, units: list[Unit], gone: list[Pair]) -> tuple[list[Unit], list[Pair]]:
        """Return what of a saved plan still fits the source, by one listing."""
        pairs = {u.unit_id: {(p["uri"], p["etag"]) for p in u.inputs["parts"]} for u in units}
        missing = set().union(*pairs.values())
        left, listed = set(gone), set()
        for file in list_files(self.settings.source):
            missing.discard((file.uri, file.etag))
            left.discard((file.uri, file.etag))
            listed.add(file.uri)
        kept = [u for u in units if not pairs[u.unit_id] & missing]
        # What is there in another version leaves with the unit that reads that. And what left may
        # lie in files that are planned anew: where there are such, only what kept units replace.
        read = {uri for u in kept for uri, _ in pairs[u.unit_id]}
        all_kept = len(kept) == len(units)
        left = {(u, e) for u, e in left if u in read or (all_kept and u not in listed)}
        return kept, sorted(left)

    @override
    def planned_units(self, plan: Plan) -> list[Unit]:
        assert self._planned is not None
        return list(self._planned[1])

    def planned_removals(self) -> list[str]:
        """Source files whose rows leave: after planned_units."""
        assert self._planned is not None
        return [uri for uri, _ in self._planned[0].gone]

    @override
    def owns(self, plan: Plan) -> bool:
        return (
            plan.settings["source"] == self.settings.source
            and plan.fingerprint == self._fingerprint()
            and self._has_columns(plan.settings["passthrough"])
        )

    def _has_columns(self, passthrough: list[list[str]]) -> bool:
        """Whether the dataset has the columns of a plan that was made before it had any."""
        images = self._published("images")
        if images is None:
            return True
        columns = {f.name: str(f.type) for f in passthrough_of(images.schema)}
        return all(columns.get(name) == kind for name, kind in passthrough)

    def _fingerprint(self) -> str:
        return digest(PREPROCESSING, self.settings.fingerprint_of())

    @override
    def worker(self) -> WorkerFactory:
        return ImportedWorker("jobs.stage.worker", "StageWorker")

    def close(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        """Keep what leaves in the completion, for the rewrites."""
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=[],
            counts={},
            seconds=0.0,
            details=unit.inputs,
            kind=unit.kind,
        )

    @override
    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        read = [c for c in completions.values() if c.kind in ("work", "correction")]
        latest = latest_completions({completion.unit_id: completion for completion in read})
        _require_few_refused(latest, self.settings.max_refused)
        tonight = StageState(self.lake, plan, self.tables(plan), list(latest.values()), head)
        self._unsteady |= {uri for c in read for uri in c.details.get("skipped", [])}
        require_whole_files(tonight)
        gone = still_gone(self._gone[plan.job_id], read, tonight.sources)
        corrections = [
            correction_unit(plan.fingerprint, latest[unit_id], drop)
            for unit_id, drop in already_held(tonight, gone).items()
        ]
        if corrections:
            return corrections
        leaving = removals(tonight, gone)
        few = leaving.removed_images <= self.settings.max_removed * leaving.images
        if not few and plan.job_id in self._resumed:
            raise StalePlan("what has left may have come back elsewhere")
        _require_few_removed(leaving.removed_images, leaving.images, self.settings.max_removed)
        corrections = [
            correction_unit(plan.fingerprint, latest[unit_id], {"promoted": rows})
            for unit_id, rows in leaving.promoted.items()
        ]
        if corrections:
            return corrections
        orders, rewrites = leaving.units(plan.fingerprint)
        for units in (orders, rewrites):
            missing = [unit for unit in units if unit.unit_id not in completions]
            if missing:
                return missing
        done = [*latest.values(), *(completions[unit.unit_id] for unit in rewrites)]
        return CommitPlan(
            files={
                table.uri: [o for c in done for o in c.outputs_of(table.spec.name)]
                for table in tonight.tables
            },
            removed={
                table.uri: [p for c in done for p in c.replaces.get(table.spec.name, [])]
                for table in tonight.tables
            },
            counts={
                **total_counts(list(latest.values())),
                "removed_rows": leaving.removed_rows,
                "removed_images": leaving.removed_images,
            },
        )

    def post_commit(self, plan: Plan) -> None:
        """Write the dataset card of the snapshot."""
        from jobs.datasets.card import dataset_card

        dataset_card(self.lake, self.target)


def _columns(stream: UnitStream) -> list[list[str]]:
    return [[field.name, str(field.type)] for field in stream.passthrough or ()]


def _require_few_refused(latest: dict[str, Completion], max_refused: float) -> None:
    counts = total_counts(list(latest.values()))
    rows, refused = counts.get("rows_in", 0), counts.get("refused", 0)
    total = counts.get("staged", 0) + refused + counts.get("duplicates", 0)
    if total != rows or counts.get("rows_read", 0) != rows:
        raise JobError(
            f"stage lost count: {counts.get('rows_read', 0)} rows read, {rows} rows in, {total} "
            "accounted for; please report it"
        )
    files, lost = counts.get("files_in", 0), counts.get("files_refused", 0)
    for what, bad, all_ in (("rows", refused, rows), ("files", lost, files)):
        if all_ and bad / all_ > max_refused:
            mark = "refused_"
            reasons = {n.removeprefix(mark): c for n, c in counts.items() if n.startswith(mark)}
            listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
            raise JobError(
                f"{bad} of {all_} {what} refused ({bad / all_:.1%}; {listed}), more than "
                f"--max-refused {max_refused:.1%}; nothing was published. Mend the source, or "
                "allow more and run it again: the work done is kept"
            )


def _require_few_removed(removed: int, images: int, max_removed: float) -> None:
    if removed and removed / images > max_removed:
        raise JobError(
            f"{removed} of {images} images have left the source ({removed / images:.1%}), more "
            f"than --max-removed {max_removed:.1%}; nothing was published. If that is meant, "
            "allow more and run it again"
        )
