"""What drift holds against each other: numbers of a night's arrivals and of the reference.

Arrivals are embedded images that the model's snapshot did not have; the reference is the snapshot's
test split, which shaped neither the model nor its calibration. Memory is that of the sampled images
and of a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.drift.features import pixel_columns, score_columns, source_columns
from jobs.drift.settings import DriftRule
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.schemas.dataset import SPLITS, image_shape_of
from jobs.schemas.model import UNKNOWN
from jobs.schemas.vectors import vectors_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.image_ids import HALVES, IdSet, digests
from jobs.tables.shards import read_span
from vae_core.scores.names import SCORES

PLACE = ("night", "source_uri", "source_row")
OWN = ("image_id", "image", "pixels_hash", "source_width", "source_height", "source_mode")
TEST_SHARE = dict(SPLITS)["test"] / 100  # of a snapshot's images: how thin the reference is
APART = 256  # rows between two images that are read each by itself


@dataclasses.dataclass(frozen=True)
class Sample:
    """One family of numbers. columns: names of the D dimensions."""

    columns: list[str]
    arrivals_ND: np.ndarray
    reference_ND: np.ndarray


@dataclasses.dataclass(frozen=True)
class Refusals:
    """Blocks of source rows, and those of them of which a row was refused: of the arrivals' nights,
    and of the nights before."""

    refused: int
    blocks: int
    refused_before: int
    blocks_before: int


@dataclasses.dataclass(frozen=True)
class Sides:
    """blocks: a number for each image, of what is moved together. notes: sentences."""

    arrivals: int
    reference: int
    samples: dict[str, Sample] = dataclasses.field(default_factory=dict)
    arrival_blocks_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    reference_blocks_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    refusals: Refusals | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Question:
    """Which new images are tested. embed_jobs: those that embedded them."""

    model: str
    version: str
    dataset: str
    images_version: int
    embed_jobs: Sequence[str]

    @property
    def partition(self) -> dict[str, str]:
        """Return the partition of the model's tables that is meant."""
        return {"model_version": self.version, "dataset": self.dataset}


def read_sides(lake: LakePaths, question: Question, rule: DriftRule) -> Sides:
    """Both sides' numbers."""
    images = catalog.images_snapshot(lake, question.dataset, question.images_version)
    embeddings = open_snapshot(lake.model(question.model, "embeddings"))
    if embeddings is None or not embeddings.partition_rows(question.partition):
        return Sides(0, 0, notes=["the model has embedded no images of the dataset yet"])
    rows = _Rows(embeddings, question)
    chosen = [_sampled(ids, rule) for ids in (rows.arrivals, rows.reference)]
    wanted = IdSet(chosen)
    staged = _staged(images, wanted, rule.block_by)
    staged_ids = digests(staged["image_id"])
    sides = [staged.filter(pa.array(IdSet([ids]).has(staged_ids))) for ids in chosen]
    arrivals, reference = _unshared(*sides)
    if rule.block_by is None and rule.block_images > 1:
        arrivals, reference = _evened(arrivals, reference, len(rows.arrivals), rule)
    notes = rows.notes()
    if not len(arrivals) or not len(reference):
        return Sides(len(arrivals), len(reference), notes=notes)
    embedded = rows.read(wanted)
    ours, theirs = (
        _joined(side.sort_by([(n, "ascending") for n in PLACE]), embedded)
        for side in (arrivals, reference)
    )
    families = _families(ours, theirs, image_shape_of(images.schema), notes)
    return Sides(
        arrivals=len(ours),
        reference=len(theirs),
        samples={"embeddings": _vectors(ours, theirs), **families},
        arrival_blocks_N=_blocks(ours, rule),
        reference_blocks_N=_blocks(theirs, rule),
        refusals=_refusals(lake, question, ours["night"], rule.block_images),
        notes=notes,
    )


class _Rows:
    """The rows of a partition of the embeddings: whose are arrivals, and whose the reference."""

    def __init__(self, embeddings: Snapshot, question: Question) -> None:
        self.embeddings = embeddings
        self.partition = question.partition
        jobs = pa.array(list(question.embed_jobs), pa.string())
        arrivals, reference = [np.zeros(0, HALVES)], [np.zeros(0, HALVES)]
        self.unknown = 0
        each = embeddings.read_each(["image_id", "model_split", "job_id"], self.partition)
        for _, rows in each:
            if "model_split" not in rows.column_names:  # of a release that had no such column
                self.unknown += len(rows)
                continue
            split = rows["model_split"]
            new = pc.and_(pc.is_null(split), pc.is_in(rows["job_id"], jobs))  # type: ignore[attr-defined]
            is_test = pc.fill_null(pc.equal(split, "test"), False)  # type: ignore[attr-defined]
            arrivals.append(digests(rows["image_id"].filter(new)))
            reference.append(digests(rows["image_id"].filter(is_test)))
            self.unknown += pc.sum(pc.equal(split, UNKNOWN)).as_py() or 0  # type: ignore[attr-defined]
        self.arrivals = np.concatenate(arrivals)
        self.reference = np.concatenate(reference)

    def notes(self) -> list[str]:
        if not self.unknown:
            return []
        note = "images were embedded by an older release, which did not tell the model's own from"
        return [f"{self.unknown:,} {note} later ones; latentlake embed --redo does"]

    def read(self, wanted: IdSet) -> pa.Table:
        """Embeddings and scores of some images."""
        columns = ["image_id", "embedding", *SCORES]
        return _picked(self.embeddings, wanted, columns, self.partition)


def _picked(
    snapshot: Snapshot,
    wanted: IdSet,
    columns: Sequence[str],
    partition: dict[str, str] | None = None,
) -> pa.Table:
    """Columns of the rows of some images; only row groups between them are read."""
    parts = []
    for path, ids in snapshot.digests_each(partition):
        at = np.flatnonzero(wanted.has(ids))
        if len(at):
            # Apart where they lie far from each other: what is between them is not wanted.
            for near in np.split(at, np.flatnonzero(np.diff(at) > APART) + 1):
                uri, start = join(snapshot.uri, path), int(near[0])
                rows = read_span(uri, start, int(near[-1]) + 1, columns)
                parts.append(rows.take(near - start))
    empty = pa.table({name: pa.array([], pa.string()) for name in ("image_id",)})
    return pa.concat_tables(parts, promote_options="default") if parts else empty


def _staged(images: Snapshot, wanted: IdSet, block_by: str | None) -> pa.Table:
    more = {"label", block_by} & set(images.schema.names)
    return _picked(images, wanted, list(dict.fromkeys([*OWN, *PLACE, *sorted(more)])))


def _order(ids: np.ndarray, seed: int) -> np.ndarray:
    """Digests are evenly spread: a sample by them is one at random, and always the same."""
    drawn = np.random.default_rng(seed).integers(0, 2**63, dtype=np.uint64)
    return np.argsort(ids["high"].astype(np.uint64) ^ drawn, kind="stable")


def _sampled(ids: np.ndarray, rule: DriftRule) -> np.ndarray:
    return ids[_order(ids, rule.seed)[: rule.max_images]]


def _first(rows: pa.Table, count: int, seed: int) -> pa.Table:
    return rows.take(_order(digests(rows["image_id"]), seed)[:count])


def _unshared(arrivals: pa.Table, reference: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Without images that both have, by their pixels."""
    if not len(arrivals) or not len(reference):
        return arrivals, reference
    ours, theirs = arrivals["pixels_hash"], reference["pixels_hash"]

    def apart(rows: pa.Table, mine: Any, other: Any) -> pa.Table:
        return rows.filter(pc.invert(pc.is_in(mine, other.combine_chunks())))  # type: ignore[attr-defined]

    return apart(arrivals, ours, theirs), apart(reference, theirs, ours)


def _evened(
    arrivals: pa.Table, reference: pa.Table, arrived: int, rule: DriftRule
) -> tuple[pa.Table, pa.Table]:
    """As many of both, where the side that has more lies further apart in its files.

    Neighbours of a side that lies further apart are less alike. With as many blocks of both,
    permutation is right all the same (vae_core.stats.two_sample); with more of those that are less
    alike it would alarm too often; with more of the others, too rarely. arrived: images, of which
    `arrivals` are a sample.
    """
    few = min(len(arrivals), len(reference))
    if few < rule.least_images:
        return arrivals, reference
    if arrived * TEST_SHARE > rule.max_images:
        arrivals = _first(arrivals, few, rule.seed)
    return arrivals, _first(reference, len(arrivals), rule.seed)


def _joined(side: pa.Table, embedded: pa.Table) -> pa.Table:
    """Return the staged rows, in order, with what the model made of them."""
    place = {image_id: row for row, image_id in enumerate(embedded["image_id"].to_pylist())}
    found = embedded.take([place[image_id] for image_id in side["image_id"].to_pylist()])
    for name in found.column_names:
        if name != "image_id":
            side = side.append_column(name, found[name])
    return side


def _vectors(arrivals: pa.Table, reference: pa.Table) -> Sample:
    ours, theirs = (vectors_of(side["embedding"]) for side in (arrivals, reference))
    return Sample([str(d) for d in range(ours.shape[1])], ours, theirs)


def _families(
    arrivals: pa.Table, reference: pa.Table, shape: tuple[int, int, int], notes: list[str]
) -> dict[str, Sample]:
    """Return the families that are made column by column, of both sides together."""
    both = pa.concat_tables([arrivals, reference], promote_options="default")
    count, found = len(arrivals), {}
    made = {
        "scores": score_columns(both, notes),
        "pixels": pixel_columns(both["image"], shape),
        "source": source_columns(both, count, notes),
    }
    for name, columns in made.items():
        table_ND = np.column_stack(list(columns.values())) if columns else np.zeros((len(both), 0))
        found[name] = Sample(list(columns), table_ND[:count], table_ND[count:])
    return found


def _blocks(side: pa.Table, rule: DriftRule) -> np.ndarray:
    """(N,): even runs of neighbours, as long as the rule says, or equal values of its column."""
    if rule.block_by is not None:
        values = [str(value) for value in side[rule.block_by].to_pylist()]
        return np.unique(values, return_inverse=True)[1]
    return runs(len(side), rule.block_images)


def runs(count: int, length: int) -> np.ndarray:
    """(count,): the number of each one's run; all runs but by one as long, none shorter than
    `length` if there are as many. So a permutation has as many images as the truth has."""
    pieces = max(1, count // length)
    return np.arange(count) * pieces // max(1, count)


def _refusals(
    lake: LakePaths, question: Question, nights: pa.ChunkedArray, block: int
) -> Refusals | None:
    """Of neighbours in the table of sources, blocks of which a row was refused; None where there is
    no night before."""
    uri = lake.dataset(question.dataset, "sources")
    published = catalog.published_versions(lake).get(uri.removeprefix(lake.uri + "/"))
    sources = open_snapshot(uri, published) if published is not None else None
    if sources is None:
        return None
    first, last = (pc.min_max(nights)[end].as_py() for end in ("min", "max"))  # type: ignore[attr-defined]
    counts = np.zeros((2, 2), int)  # now and before: with a refusal, and all
    for _, rows in sources.read_each(["fate", "night"]):
        night = rows["night"]
        refused = _flags(pc.equal(rows["fate"], "refused"))  # type: ignore[attr-defined]
        before = _flags(pc.less(night, first))  # type: ignore[attr-defined]
        now = _flags(pc.less_equal(night, last)) & ~before  # type: ignore[attr-defined]
        for row, which in enumerate([now, before]):
            of_N = runs(int(which.sum()), block)
            if len(of_N):
                hit = np.zeros(of_N[-1] + 1, bool)
                hit[of_N[refused[which]]] = True
                counts[row] += [hit.sum(), len(hit)]
    if not counts[:, 1].all():
        return None
    (now_hit, now_all), (before_hit, before_all) = counts.tolist()
    return Refusals(now_hit, now_all, before_hit, before_all)


def _flags(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy()  # type: ignore[attr-defined]
