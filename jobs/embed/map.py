"""map: every embedding of a model version as a point on a plane, in a table of its own.

One unit, in this process: a plane is of all embeddings together. They go by file by file, so memory
does not grow with them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from typing_extensions import override

from jobs.embed.settings import MapSettings
from jobs.engine import records
from jobs.engine.job import Job, StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit, total_counts
from jobs.errors import InputError
from jobs.hashing import digest
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.model import EMBED_TABLES, MAPS, RECONSTRUCTIONS
from jobs.schemas.spec import MODEL_PARTITION
from jobs.schemas.vectors import vectors_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, Table, TableFile, open_snapshot
from jobs.tables.image_ids import digests
from jobs.tables.shards import ShardWriter, read_shard

LAYOUT = 1  # raised when the same embeddings would come out otherwise
FITTED = 50_000  # embeddings that UMAP lays out by itself; others are placed among them
FEWEST = 16  # that UMAP can lay out: its neighbours and one
SEED = 0

Projection = Callable[[np.ndarray], np.ndarray]  # (N, D) → (N, 2)


class MapJob(Job):
    """One call of `latentlake map`."""

    name = "map"
    rows_counted = "mapped"

    def __init__(self, lake: LakePaths, settings: MapSettings, night: str) -> None:
        """Find the version and its embeddings. Raises InputError where there are none."""
        name, self.version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, name)
        if settings.method == "umap":
            _umap()
        self.method: str = settings.method
        self.night = night
        self.embeddings = catalog.embeddings_snapshot(lake, name, self.version)

    @property
    def first_table(self) -> str:
        """That of embed: a map and a drop of its embeddings come one after the other."""
        return self.lake.model(self.target, RECONSTRUCTIONS.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self.lake.model(self.target, table) for table in (*EMBED_TABLES, MAPS.name)]

    @property
    def _uri(self) -> str:
        return self.lake.model(self.target, MAPS.name)

    @property
    def _partition(self) -> dict[str, str]:
        return {"model_version": self.version, "method": self.method}

    @override
    def tables(self, plan: Plan) -> list[Table]:
        return [Table(self.first_table, RECONSTRUCTIONS), Table(self._uri, MAPS)]

    def plan(self) -> Plan:
        """Empty where the map is of these very embeddings."""
        self.embeddings = catalog.embeddings_snapshot(self.lake, self.target, self.version)
        fingerprint = self._fingerprint()
        version = self.embeddings.version
        unit = Unit.of(fingerprint, {"embeddings_version": version, **self._partition})
        maps = open_snapshot(self._uri)
        files = maps.paths(self._partition) if maps is not None else []
        within = ("embeddings_version", version, version)
        is_new = maps is not None and files == maps.paths(self._partition, within)
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={"embeddings": version},
            settings=self._partition,
            units=[] if files and is_new else [unit],
        )

    def _fingerprint(self) -> str:
        return digest(LAYOUT, self._partition, self.embeddings.version)

    def owns(self, plan: Plan) -> bool:
        """Also of earlier embeddings: they are given up then."""
        return plan.settings == self._partition

    def units(self, plan: Plan) -> Iterator[Unit]:
        """Of a plan that was left behind, only while its embeddings are the newest."""
        if plan.fingerprint != self._fingerprint():
            raise StalePlan("the embeddings have changed")
        return iter(plan.units)

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        for unit in units:
            completion = self._mapped(plan, unit, uuid.uuid4().hex[:8])
            records.save_completion(self.lake, plan.job_id, completion)

    def _mapped(self, plan: Plan, unit: Unit, attempt: str) -> Completion:
        started = time.monotonic()
        embeddings = self.embeddings
        files = embeddings.files({"model_version": self.version})
        project = {"pca": fit_pca, "umap": fit_umap}[self.method](embeddings, files)
        writers: dict[str, ShardWriter] = {}
        for file in files:
            dataset = file.partition["dataset"]
            rows = read_shard(join(embeddings.uri, file.path), ["image_id", "embedding"])
            points_N2 = project(vectors_of(rows["embedding"])).astype(np.float32)
            if dataset not in writers:
                partition = {"model_version": self.version, "dataset": dataset}
                partition["method"] = self.method
                name = f"{unit.unit_id}-{attempt}"
                writers[dataset] = ShardWriter(self._uri, MAPS, name, partition)
            columns = {
                "image_id": rows["image_id"],
                "x": points_N2[:, 0],
                "y": points_N2[:, 1],
                "embeddings_version": pa.repeat(embeddings.version, len(rows)),
                "night": pa.repeat(self.night, len(rows)),
                "job_id": pa.repeat(plan.job_id, len(rows)),
                "unit_id": pa.repeat(unit.unit_id, len(rows)),
            }
            writers[dataset].write(pa.table(columns, schema=MAPS.file_schema))
        outputs = [writer.close() for writer in writers.values()]
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=outputs,
            counts={"mapped": sum(output.rows for output in outputs)},
            seconds=time.monotonic() - started,
        )

    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        """Take the place of the version's earlier map."""
        now = self.tables(plan)[1].now()
        later = ("embeddings_version", plan.base["embeddings"] + 1, 2**62)
        if now.paths(self._partition, later):
            raise StalePlan("there is a map of later embeddings")
        done = list(completions.values())
        embeddings = open_snapshot(self.embeddings.uri)
        current = (
            {tuple(sorted(f.partition.items())) for f in embeddings.files()}
            if embeddings
            else set()
        )
        for output in (output for each in done for output in each.outputs):
            mine = {name: output.partition[name] for name in MODEL_PARTITION}
            if tuple(sorted(mine.items())) not in current:
                raise StalePlan("its embeddings were dropped")
        return CommitPlan(
            files={head.uri: [], now.uri: [output for each in done for output in each.outputs]},
            removed={now.uri: now.paths(self._partition)},
            counts={**total_counts(done), "method": self.method},
        )


def _each(snapshot: Snapshot, files: Iterable[TableFile]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    for file in files:
        rows = read_shard(join(snapshot.uri, file.path), ["image_id", "embedding"])
        yield rows, vectors_of(rows["embedding"])


def fit_pca(snapshot: Snapshot, files: Iterable[TableFile]) -> Projection:
    """Fit the plane of the largest variance; each axis points to where its largest weight is
    positive.

    From sums that add up over files; of a single dimension y is zero.
    """
    count, origin_D, sum_D, outer_DD = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    for _, vectors_ND in _each(snapshot, files):
        wide_ND = vectors_ND.astype(np.float64)
        if not count:
            # Sums around a point among them keep their digits.
            origin_D = wide_ND[0].copy()
            sum_D, outer_DD = np.zeros_like(origin_D), np.zeros((len(origin_D),) * 2)
        wide_ND -= origin_D
        count += len(wide_ND)
        sum_D += wide_ND.sum(0)
        outer_DD += wide_ND.T @ wide_ND
    mean_D = sum_D / count
    _, axes_DD = np.linalg.eigh(outer_DD / count - np.outer(mean_D, mean_D))
    plane_D2 = axes_DD[:, ::-1][:, :2]
    largest = np.abs(plane_D2).argmax(axis=0)
    plane_D2 = plane_D2 * np.sign(plane_D2[largest, np.arange(plane_D2.shape[1])])
    plane_D2 = np.pad(plane_D2, ((0, 0), (0, 2 - plane_D2.shape[1])))
    centre_D = mean_D + origin_D
    return lambda vectors_ND: (vectors_ND - centre_D) @ plane_D2


def fit_umap(snapshot: Snapshot, files: Iterable[TableFile]) -> Projection:
    """McInnes et al. 2018, by umap-learn with its own settings; the same at every call.

    Fitted to as many as FITTED embeddings, chosen by their ids. Raises InputError where there are
    too few.
    """
    files = list(files)
    total = sum(file.rows for file in files)
    ids, parts = [], []
    for rows, vectors_ND in _each(snapshot, files):
        low_N = digests(rows["image_id"])["low"].astype(np.uint64)
        chosen_N = low_N / 2.0**64 < FITTED / total
        ids.append(low_N[chosen_N])
        parts.append(vectors_ND[chosen_N])
    # By id, whatever files they lie in.
    sample = np.concatenate(parts)[np.argsort(np.concatenate(ids), kind="stable")]
    if len(sample) < FEWEST:
        raise InputError(f"umap takes {FEWEST} images, there are {total}; use --method pca")
    fitted = _umap()(random_state=SEED, n_jobs=1).fit(sample)
    return fitted.transform


def _umap() -> type:
    try:
        from umap import UMAP
    except ImportError as error:
        raise InputError(
            "--method umap needs umap-learn: pip install 'latentlake[umap]'"
        ) from error
    return UMAP
