"""A driver of jobs whose workers are simulated: what it takes by step, with as many units as asked.

The jobs are the real ones, and so are plan, records, settling and commits. Only `execute` is
another: it leaves what workers would, files of a few rows and completion records, without pixels'
work. Files are copies of one with other ids in it, because 10⁵ that are written one by one take
longer than all that is measured. One call is one process, so that its memory is its own:

    python -m tests.benchmarks.capacity_driver STEP FOLDER UNITS ROWS
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster.settings import RaySettings
from jobs.datasets.image_shards import STATISTICS, ImageStatistics
from jobs.embed.job import EmbedJob
from jobs.embed.settings import EmbedSettings
from jobs.engine import commit as engine_commit
from jobs.engine import records, runner
from jobs.engine.job import Job
from jobs.engine.plan import Completion, JobContext, Plan, Unit
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.stage.job import StageJob
from jobs.stage.settings import StageSettings
from jobs.tables.data_file import Output
from jobs.tables.delta import Table, open_snapshot
from jobs.tables.image_ids import IdSet
from jobs.tables.shards import write_shard

SHAPE = (4, 4, 1)
NIGHT = "2026-01-01"
SOME_URI, SOME_ETAG = "the-uri-of-a-file", "the-etag-of-a-file"


def memory_mib(what: str) -> float:
    """VmRSS: now. VmHWM: the most since `step` began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


class Steps:
    """Seconds, those of the processor among them, and the most memory, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}
        self.kept: dict[str, int] = {}  # by file beside the plan: bytes, before they go

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the high-water mark
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.process_time() - cpu
        self.peak_mib[name] = max(self.peak_mib.get(name, 0.0), memory_mib("VmHWM"))

    def timed(self, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            with self.step(name):
                return action(*arguments, **named)

        return run

    def watch(self, watched: Job) -> None:
        """Every step of a job that the driver does."""
        for holder, name, told in (
            (watched, "plan", "plan"),
            (records, "save_plan", "save the plan"),
            (records, "save_units", "save the plan"),
            (records, "load_completions", "read completions"),
            (watched, "settle", "settle"),
            (engine_commit, "commit", "commit"),
            (engine_commit, "record_run", "record the run"),
            (watched, "after", "after"),
        ):
            setattr(holder, name, self.timed(told, getattr(holder, name)))
        clear = self.timed("clear", records.clear)

        def weighed(lake: LakePaths, job_id: str) -> None:
            folder = Path(lake.units(job_id).removeprefix("file://"))
            self.kept = {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
            clear(lake, job_id)

        records.clear = weighed


def ids_of(number: int, rows: int) -> list[str]:
    """Of a unit's images."""
    text = hashlib.shake_256(b"%d" % number).hexdigest(32 * rows)
    return [text[start : start + 64] for start in range(0, 64 * rows, 64)]


class Template:
    """A file of a table that copies with other ids, URI and etag are made of."""

    def __init__(self, table: Table, count: int, pair: tuple[str, str], scratch: Path) -> None:
        """pair: URI and etag of a source file, as long as those of all others."""
        spec = table.spec
        self.spec, self.rows = spec, count
        self.some = (SOME_URI.ljust(len(pair[0]), "-"), SOME_ETAG.ljust(len(pair[1]), "-"))
        rows = sample_rows(table, count, self.some).cast(spec.file_schema)
        self.stats = write_shard(scratch.as_uri(), spec, rows, uuid.uuid4().hex).stats
        metadata = {}
        if spec.name == "images":
            statistics = ImageStatistics()
            statistics.add(rows, SHAPE)
            metadata = {STATISTICS: json.dumps(statistics.to_json())}
        path = scratch / "template.parquet"
        # Plain, so that the ids lie there as they are.
        with pq.ParquetWriter(
            path, spec.file_schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata({"latentlake.table": spec.name, **metadata})
        self.data = path.read_bytes()
        self.ids = _plain(ids_of(-1, count))
        assert self.ids in self.data

    def write(
        self, uri: str, name: str, ids: list[str], partition: dict[str, str], pair: tuple[str, str]
    ) -> Output:
        folders = "/".join(f"{key}={value}" for key, value in partition.items())
        path = f"{folders}/{name}.parquet" if folders else f"{name}.parquet"
        data = self.data.replace(self.ids, _plain(ids))
        for some, own in zip(self.some, pair, strict=True):
            data = data.replace(some.encode(), own.encode())
        where = Path(uri.removeprefix("file://")) / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(data)
        stats = json.loads(json.dumps(self.stats))
        for end, value in (("minValues", min(ids)), ("maxValues", max(ids))):
            if "image_id" in stats[end]:
                stats[end]["image_id"] = value
            if "source_uri" in stats[end]:
                stats[end]["source_uri"] = pair[0]
        return Output(
            table=self.spec.name,
            path=path,
            size=len(data),
            rows=self.rows,
            partition=partition,
            stats=stats,
        )


def _plain(values: list[str]) -> bytes:
    """Text as a plain page of Parquet has it."""
    return b"".join(len(v).to_bytes(4, "little") + v.encode() for v in values)


def sample_rows(table: Table, rows: int, pair: tuple[str, str]) -> pa.Table:
    """Random rows for a table of ours."""
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    ids, (uri, etag) = ids_of(-1, rows), pair
    text = {"source_uri": uri, "etag": etag, "fate": "staged", "split": "train", "night": NIGHT}
    for field in table.spec.file_schema:
        kind = field.type
        if field.name in ("image_id", "pixels_hash"):
            values: Any = ids
        elif field.name in text:
            values = [text[field.name]] * rows
        elif field.name in ("removed_night", "source_member", "model_split"):
            values = [None] * rows
        elif pa.types.is_fixed_size_binary(kind):
            values = [generator.bytes(kind.byte_width) for _ in range(rows)]
        elif pa.types.is_list(kind):
            dimension = int(field.metadata[b"dimension"])
            values = generator.normal(size=(rows, dimension)).tolist()
        elif field.name == "p_value":
            values = 0.01 + 0.99 * generator.random(rows)
        elif pa.types.is_floating(kind):
            values = generator.normal(size=rows)
        elif pa.types.is_integer(kind):
            values = generator.integers(1, 256, rows)
        else:
            values = ["some-16-letters-"] * rows
        columns[field.name] = pa.array(values, kind, from_pandas=True)
    return pa.table(columns)


class Simulated(Job):
    """Leaves what workers would."""

    folder: Path
    rows: int
    steps: Steps
    templates: dict[str, Template]
    written: tuple[str, ...]  # tables
    partition: Any
    counted: tuple[str, ...]
    counted_apart: dict[str, int]
    details: dict[str, Any]
    done = 0

    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        with self.steps.step("plan"):  # some jobs plan while units run
            coming = list(units)
        folder = Path(self.lake.units(plan.job_id).removeprefix("file://")) / "completions"
        folder.mkdir(parents=True, exist_ok=True)
        tables = [t for t in self.tables(plan) if t.spec.name in self.written]
        for unit in coming:
            completion = self._simulated(unit, tables)
            (folder / f"{unit.unit_id}.json").write_bytes(completion.to_json())
        self.done += len(coming)

    def _simulated(self, unit: Unit, tables: list[Table]) -> Completion:
        part = next(iter(unit.inputs.get("parts", ())), {"uri": "", "etag": ""})
        pair = (part["uri"], part["etag"])
        number = int((part["uri"] or unit.inputs["path"]).rsplit("/", 1)[-1][:16])
        ids, attempt = ids_of(number, self.rows), uuid.uuid4().hex[:8]
        outputs = []
        for table in tables:
            kind = table.spec.name
            if kind not in self.templates:
                scratch = self.folder / "scratch"
                self.templates[kind] = Template(table, self.rows, pair, scratch)
            name = f"{number:016d}-{attempt}" + ("-000" if kind == "images" else "")
            outputs.append(self.templates[kind].write(table.uri, name, ids, self.partition, pair))
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=outputs,
            counts=dict.fromkeys(self.counted, self.rows) | self.counted_apart,
            seconds=1.0,
            details=self.details,
        )


class SimulatedStage(Simulated, StageJob):
    written = ("images", "sources")
    partition: dict[str, str] = {}  # noqa: RUF012
    counted = ("rows_read", "rows_in", "staged")
    counted_apart = {"duplicates": 0, "refused": 0, "files_in": 1}  # noqa: RUF012
    details: dict[str, Any] = {}  # noqa: RUF012


class SimulatedEmbed(Simulated, EmbedJob):
    written = ("embeddings",)
    counted = ("embedded",)
    counted_apart = {"reconstructed": 0}  # noqa: RUF012
    details = {"compute": "0123456789abcdef"}  # noqa: RUF012


class IdleWorker:
    """Whose units are done at once."""

    def __init__(self, lake: LakePaths, context: JobContext) -> None:
        pass

    def execute(self, unit: Unit, attempt: str) -> Completion:
        return Completion(
            unit_id=unit.unit_id, attempt=attempt, outputs=[], counts={"embedded": 1}, seconds=0.0
        )


def source_of(folder: Path, units: int, rows: int) -> Path:
    """As many Parquet files of pixels, a unit each."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    pixels = pa.array([b"%016d" % row for row in range(rows)], pa.binary(16))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": pixels}), sink)
    data = sink.getvalue().to_pybytes()
    for number in range(len(list(source.iterdir())), units):
        (source / f"{number:016d}.parquet").write_bytes(data)
    return source


def run_job(kind: str, folder: Path, units: int, rows: int) -> dict[str, Any]:
    """A job of that many units, less what has been done before."""
    lake = LakePaths((folder / "lake").as_uri())
    ray = RaySettings()
    if kind == "stage":
        height, width, channels = SHAPE
        source = source_of(folder, units, rows)
        settings = StageSettings(
            source=str(source), dataset="big", array_shape=SHAPE, rows_per_unit=rows,
            height=height, width=width, channels=channels,
        )  # fmt: skip
        made: Any = SimulatedStage(lake, settings, NIGHT, ray)
    else:
        made = SimulatedEmbed(lake, EmbedSettings(dataset="big", model="m"), NIGHT, ray)
    made.folder, made.rows, made.steps, made.templates = folder, rows, Steps(), {}
    made.steps.watch(made)
    begun_mib = memory_mib("VmRSS")
    started = time.perf_counter()
    runner.run(made)
    whole = time.perf_counter() - started
    kept = made.steps.kept
    return {
        "units": made.done,
        "whole run, s": whole,
        "seconds": made.steps.seconds,
        "processor seconds": made.steps.cpu_s,
        "begun MiB": begun_mib,
        "peak MiB": made.steps.peak_mib,
        "plan, bytes": kept.get("plan.json", 0) + kept.get("units.json", 0),
        "completions, bytes": sum(
            size for name, size in kept.items() if not name.startswith(("plan", "units", "commit"))
        ),
        "commit record, bytes": sum(s for name, s in kept.items() if name.startswith("commit")),
        "log entries, bytes": newest_entries(folder / "lake"),
    }


def newest_entries(lake: Path) -> dict[str, int]:
    """Of each table: the largest entry of its log."""
    found: dict[str, int] = {}
    for entry in lake.glob("*/*/*/_delta_log/*.json"):
        name = entry.parent.parent.name
        found[name] = max(found.get(name, 0), entry.stat().st_size)
    return found


def opened(folder: Path) -> dict[str, Any]:
    """Tables with as many files: opening, listing, a checkpoint."""
    lake = LakePaths((folder / "lake").as_uri())
    found: dict[str, Any] = {}
    for uri in (lake.dataset("big", "images"), lake.model("m", "embeddings")):
        steps, name = Steps(), uri.rsplit("/", 1)[-1]
        with steps.step("open"):
            snapshot = open_snapshot(uri)
        assert snapshot is not None
        with steps.step("list files"):
            snapshot.files()
        with steps.step("checkpoint"):
            snapshot.handle.create_checkpoint()
        with steps.step("open from the checkpoint"):
            open_snapshot(uri)
        log = Path(join(uri, "_delta_log").removeprefix("file://"))
        found |= {f"{name}: {told}, s": seconds for told, seconds in steps.seconds.items()}
        found[f"{name}: checkpoint, bytes"] = sum(
            path.stat().st_size for path in log.glob("*.checkpoint*parquet")
        )
        found[f"{name}: most memory, MiB"] = max(steps.peak_mib.values())
    return found


def ids_held(folder: Path) -> dict[str, Any]:
    """What a worker holds of the images that are there: as stage's and embed's workers do."""
    images = open_snapshot(LakePaths((folder / "lake").as_uri()).dataset("big", "images"))
    assert images is not None
    images.paths()
    begun, steps = memory_mib("VmRSS"), Steps()
    with steps.step("ids"):
        ids: IdSet = images.image_ids()
    peak = steps.peak_mib["ids"]
    return {
        "images": len(ids),
        "seconds": steps.seconds["ids"],
        "held, bytes an image": (memory_mib("VmRSS") - begun) * 2**20 / len(ids),
        "at the most, bytes an image": (peak - begun) * 2**20 / len(ids),
    }


def main(step: str, folder: Path, units: int, rows: int) -> dict[str, Any]:
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    if step == "open":
        return opened(folder)
    if step == "ids":
        return ids_held(folder)
    return run_job(step, folder, units, rows)


if __name__ == "__main__":
    told = main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps(told) + "\n")
