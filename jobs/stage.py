"""stage: from a source to the images table.

Plan: source files that the sources table does not know, cut into ranges of rows. Execute: hash,
drop what is known, decode, write. Settle: what two units or two jobs both hold stays once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from jobs.config import RaySettings, StageSettings
from jobs.corrections import correction_unit, latest_completions
from jobs.errors import InputError, JobError
from jobs.job import Job
from jobs.lake import Lake, valid_name
from jobs.schema import PREPROCESSING, QUARANTINE, SOURCES, images_spec, passthrough_of, type_named
from jobs.shards import read_shard
from jobs.sources import SourceFile, SourceShape, current_etag, list_source, read_shape
from jobs.storage import join
from jobs.tables import Snapshot, Table, open_snapshot
from jobs.units import Completion, Output, Plan, Unit, digest, slices, total_counts

log = logging.getLogger("latentlake")

FOOTER_THREADS = 16


def stage_tables(lake: Lake, dataset: str, settings: dict[str, Any]) -> list[Table]:
    """In commit order; settings are those of the plan."""
    passthrough = pa.schema(
        [pa.field(name, type_named(kind)) for name, kind in settings["passthrough"]]
    )
    images = images_spec(tuple(settings["image_shape"]), passthrough)
    return [Table(lake.dataset(dataset, spec.name), spec) for spec in (QUARANTINE, SOURCES, images)]


class StageJob(Job):
    """One call of `latentlake stage`."""

    name = "stage"
    rows_counted = "rows_in"

    def __init__(
        self, lake: Lake, settings: StageSettings, night: str, ray_settings: RaySettings
    ) -> None:
        super().__init__(lake, valid_name("dataset", settings.dataset))
        self.settings = settings
        self.night = night
        self.ray_settings = ray_settings

    @property
    def first_table(self) -> str:
        return self.lake.dataset(self.target, QUARANTINE.name)

    def tables(self, plan: Plan) -> list[Table]:
        return stage_tables(self.lake, self.target, plan.settings)

    def plan(self) -> Plan:
        files = list_source(self.settings.source)
        images = open_snapshot(self.lake.dataset(self.target, "images"))
        sources = open_snapshot(self.lake.dataset(self.target, "sources"))
        known = _known_files(sources)
        new = [file for file in files if (file.uri, file.etag) not in known]
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            shapes = list(pool.map(lambda f: read_shape(f.uri, self.settings.image_column), new))
        if images is None and sum(shape.rows for shape in shapes) == 0:
            raise InputError(f"the source {self.settings.source} is empty: no file has a row")
        passthrough = _passthrough(images, new, shapes)
        fingerprint = self._fingerprint()
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={"images": images.version if images is not None else -1},
            settings={
                "source": self.settings.source,
                "image_shape": list(self.settings.image_shape),
                "passthrough": passthrough,
                "dataset": self.target,
            },
            units=plan_units(new, shapes, self.settings.rows_per_unit, fingerprint),
        )

    def claims(self, plan: Plan) -> bool:
        return (
            plan.settings["source"] == self.settings.source
            and plan.fingerprint == self._fingerprint()
        )

    def is_current(self, plan: Plan) -> bool:
        pinned = {(r["uri"], r["etag"]) for unit in plan.units for r in unit.inputs["ranges"]}
        return all(current_etag(uri) == etag for uri, etag in pinned)

    def _fingerprint(self) -> str:
        return digest(PREPROCESSING, self.settings.fingerprint_of())

    def execute(self, plan: Plan, units: Sequence[Unit]) -> None:
        from jobs import execute
        from jobs.stage_worker import StageWorker

        execute.run_units(
            StageWorker,
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
        _require_few_refused(latest, self.settings.max_refused)
        lost, published = self._already_held(plan, latest)
        corrections = [
            correction_unit(
                plan.fingerprint,
                completion,
                {"lost": lost.get(unit_id, []), "published": published},
            )
            for unit_id, completion in latest.items()
            if lost.get(unit_id) or _touches(completion, published)
        ]
        if corrections:
            return corrections
        return {
            table.uri: [
                output
                for unit in plan.units
                if (output := latest[unit.unit_id].output(table.spec.name)) is not None
            ]
            for table in self.tables(plan)
        }

    def _already_held(
        self, plan: Plan, latest: dict[str, Completion]
    ) -> tuple[dict[str, list[str]], list[list[str]]]:
        """By unit, the image ids that an earlier unit or another job holds; and source files
        that another job has published since the plan was made."""
        _, sources, images = self.tables(plan)
        seen: set[str] = set()
        published: list[list[str]] = []
        now = images.snapshot()
        assert now is not None
        if now.version != max(plan.base["images"], 0):
            held = now.read(["image_id"])
            seen.update(held["image_id"].to_pylist() if held is not None else [])
            published = [list(pair) for pair in sorted(_known_files(sources.snapshot()))]
        lost: dict[str, list[str]] = {}
        for unit in plan.units:
            output = latest[unit.unit_id].output("images")
            if output is None:
                continue
            ids = read_shard(join(images.uri, output.path), ["image_id"])["image_id"].to_pylist()
            lost[unit.unit_id] = [image_id for image_id in ids if image_id in seen]
            seen.update(ids)
        return lost, published

    def summarise(
        self, plan: Plan, completions: dict[str, Completion], files: dict[str, list[Output]]
    ) -> dict[str, Any]:
        return total_counts(list(latest_completions(completions).values()))


def _known_files(sources: Snapshot | None) -> set[tuple[str, str]]:
    if sources is None:
        return set()
    rows = sources.read(["source_uri", "etag"])
    if rows is None:
        return set()
    distinct = rows.group_by(["source_uri", "etag"]).aggregate([])
    return set(zip(distinct["source_uri"].to_pylist(), distinct["etag"].to_pylist(), strict=True))


def _passthrough(
    images: Snapshot | None, files: list[SourceFile], shapes: list[SourceShape]
) -> list[list[str]]:
    """Name and type of each passthrough column: the table's, or those of the first file.

    Raises InputError where a file has such a column in another type.
    """
    if images is not None:
        schema = passthrough_of(images.schema)
    else:
        schema = shapes[0].passthrough if shapes else pa.schema([])
    for file, shape in zip(files, shapes, strict=True):
        for field in shape.passthrough:
            at = schema.get_field_index(field.name)
            if at >= 0 and schema.field(at).type != field.type:
                raise InputError(
                    f"{file.uri}: column {field.name!r} is {field.type}, in the dataset it is "
                    f"{schema.field(at).type}; write one type, or stage into another dataset"
                )
    return [[field.name, str(field.type)] for field in schema]


def plan_units(
    files: Sequence[SourceFile], shapes: Sequence[SourceShape], rows_per_unit: int, fingerprint: str
) -> list[Unit]:
    """Every row of every file in one unit, in order; small files share a unit."""
    units: list[Unit] = []
    ranges: list[dict[str, Any]] = []
    filled = 0

    def close() -> None:
        nonlocal ranges, filled
        if ranges:
            units.append(Unit.of(fingerprint, {"ranges": ranges}))
        ranges, filled = [], 0

    for file, shape in zip(files, shapes, strict=True):
        for start, stop in slices(shape.rows, rows_per_unit):
            if filled + (stop - start) > rows_per_unit:
                close()
            filled += stop - start
            ranges.append(
                {
                    "uri": file.uri,
                    "etag": file.etag,
                    "start": start,
                    "stop": stop,
                    "image_column": shape.image_column,
                }
            )
    close()
    return units


def _touches(completion: Completion, published: list[list[str]]) -> bool:
    """Whether rows of source files that are published already are among the outputs."""
    files = completion.details["files"] if completion.outputs else []
    return any(pair in published for pair in files)


def _require_few_refused(latest: dict[str, Completion], max_refused: float) -> None:
    counts = total_counts(list(latest.values()))
    rows, refused = counts["rows_in"], counts["refused"]
    told = counts["staged"] + refused + counts["duplicates"]
    if told != rows:
        raise JobError(f"stage lost count: {rows} rows in, {told} accounted for; please report it")
    if rows and refused / rows > max_refused:
        reasons = {
            name.removeprefix("refused_"): count
            for name, count in sorted(counts.items())
            if name.startswith("refused_")
        }
        listed = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise JobError(
            f"{refused} of {rows} rows refused ({refused / rows:.1%}; {listed}), more than "
            f"--max-refused {max_refused:.1%}; nothing was published. Mend the source, or allow "
            "more and run it again: the work done is kept"
        )
