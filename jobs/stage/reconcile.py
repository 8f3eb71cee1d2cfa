"""What a stage job holds against the tables before it commits: who has an image, what has left.

An image belongs to its first occurrence. Between units the earlier one keeps it; against another
job, the one that has published. When the first occurrence leaves its source, the image goes to the
earliest occurrence that is left, and without one it leaves the next snapshot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.engine.corrections import corrected_unit
from jobs.engine.job import StalePlan
from jobs.engine.plan import Completion, Plan, Unit
from jobs.engine.records import load_completion
from jobs.errors import StorageError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.stage.payloads import LeavingOrder, StageRewrite
from jobs.stage.plan import Pair, known_files
from jobs.stage.tables import StageTables
from jobs.tables.delta import Snapshot
from jobs.tables.duplicate_keys import Keys, repeats
from jobs.tables.image_ids import IdSet, digests
from jobs.tables.shards import read_shard

Place = tuple[str, int, str | None]  # source URI, row, and member of an archive


@dataclasses.dataclass
class StageState:
    """One job's finished units, in their order, and the tables as they are published now."""

    lake: LakePaths
    plan: Plan
    tables: StageTables
    completions: list[Completion]
    quarantine: Snapshot

    def __post_init__(self) -> None:
        self.sources, self.images = self.tables.sources.now(), self.tables.images.now()
        # What the workers knew is what the plan looked at.
        self.overtaken = self.images.version != max(self.plan.base["images"], 0)

    def rows(self, table: str, columns: list[str]) -> Iterator[tuple[Completion, pa.Table]]:
        """Yield what each unit wrote for a table."""
        uri = self.lake.dataset(self.plan.target, table)
        for completion in self.completions:
            for output in completion.outputs_of(table):
                yield completion, read_shard(join(uri, output.path), columns)


def still_gone(gone: list[Pair], completions: list[Completion], sources: Snapshot) -> list[Pair]:
    """Less the files that a unit could not read because they were replaced again.

    completions: all, because a correction does not tell what its unit skipped.
    """
    skipped = {uri for c in completions for uri in c.details.get("skipped", [])}
    # What another job has removed meanwhile has taken its images and refusals along.
    known = known_files(sources) if gone else {}
    return [(u, e) for u, e in gone if u not in skipped and known.get(u) == e]


def require_whole_files(tonight: StageState) -> None:
    """Raise StalePlan where one unit has rows of a file that another found replaced."""
    skipped = {uri for c in tonight.completions for uri in c.details.get("skipped", [])}
    if not skipped:
        return
    uris = pa.array(sorted(skipped), pa.string())
    for _, rows in tonight.rows("sources", ["source_uri"]):
        if pc.any(_in(rows["source_uri"], uris)).as_py():  # type: ignore[attr-defined]
            raise StalePlan("a file was replaced while its parts were read")


def already_held(tonight: StageState, gone: list[Pair]) -> dict[str, dict[str, Any]]:
    """By unit, what it must leave out: `lost` image ids that an earlier unit or another job holds,
    and `published` source files that another job has published since the plan was made."""
    drops: dict[str, dict[str, Any]] = {
        unit: {"lost": ids} for unit, ids in _held_twice(tonight, gone).items()
    }
    if tonight.overtaken:
        for unit, pairs in _published(tonight, gone).items():
            drops.setdefault(unit, {"lost": []})["published"] = pairs
        if not drops:
            _require_known(tonight)
    return drops


def _held_twice(tonight: StageState, gone: list[Pair]) -> dict[str, list[str]]:
    """In two steps, so that not all ids are in memory: which may be there twice, then whose."""
    published = _published_ids(tonight, gone) if tonight.overtaken else IdSet()
    doubtful = [np.zeros(0, np.uint64)]
    with Keys() as ours:
        for _, rows in tonight.rows("images", ["image_id"]):
            ours.add(_keys(rows["image_id"]))
        for keys in ours.partitions():
            doubtful += [repeats(keys), keys[published.may_have(keys)]]
    suspects = np.unique(np.concatenate(doubtful))
    seen: set[str] = set()
    lost: dict[str, list[str]] = {}
    if not len(suspects):
        return lost
    for completion, rows in tonight.rows("images", ["image_id"]):
        ids = rows["image_id"]
        at = np.flatnonzero(np.isin(_keys(ids), suspects))
        some = ids.take(pa.array(at))
        theirs = published.has(digests(some))
        mine = []
        for image_id, taken in zip(some.to_pylist(), theirs.tolist(), strict=True):
            if taken or image_id in seen:
                mine.append(image_id)
            seen.add(image_id)
        if mine:
            lost.setdefault(corrected_unit(completion), []).extend(mine)
    return lost


def _published_ids(tonight: StageState, gone: list[Pair]) -> IdSet:
    """Of the images table as it is now; 16 bytes an image."""
    # What a gone file's rows hold leaves with them: tonight's take their place.
    uris = pa.array(sorted({uri for uri, _ in gone}), pa.string())
    return IdSet(
        digests(rows["image_id"].filter(pc.invert(_in(rows["source_uri"], uris))))  # type: ignore[attr-defined]
        for _, rows in tonight.images.read_each(["image_id", "source_uri"])
    )


def _keys(ids: pa.ChunkedArray) -> np.ndarray:
    return digests(ids)["high"].astype(np.uint64)


def _published(tonight: StageState, gone: list[Pair]) -> dict[str, list[list[str]]]:
    """By unit, its source files whose rows are in the sources table already.

    Raises StalePlan where another version of one of them is.
    """
    known: set[tuple[str, str]] = set()
    for _, rows in tonight.sources.read_each(["source_uri", "etag", "removed_night"]):
        live = rows.filter(pc.is_null(rows["removed_night"]))  # type: ignore[attr-defined]
        known.update(_pairs(live))
    others = dict(known - set(gone))
    found: dict[str, list[list[str]]] = {}
    for completion, rows in tonight.rows("sources", ["source_uri", "etag"]):
        if any(others.get(uri, etag) != etag for uri, etag in _pairs(rows)):
            raise StalePlan("another version of a file was published meanwhile")
        both = sorted(known.intersection(_pairs(rows)))
        if both:
            found.setdefault(corrected_unit(completion), []).extend(list(pair) for pair in both)
    return found


def _pairs(rows: pa.Table) -> list[Pair]:
    distinct = rows.group_by(["source_uri", "etag"]).aggregate([])
    return list(zip(distinct["source_uri"].to_pylist(), distinct["etag"].to_pylist(), strict=True))


def _require_known(tonight: StageState) -> None:
    """Raise StalePlan where an image that a worker took for known has been removed meanwhile."""
    published = [ids for _, ids in tonight.images.digests_each()]
    published += [digests(rows["image_id"]) for _, rows in tonight.rows("images", ["image_id"])]
    known = IdSet(published)
    for _, rows in tonight.rows("sources", ["image_id", "fate"]):
        doubles = rows.filter(pc.equal(rows["fate"], "duplicate"))["image_id"]  # type: ignore[attr-defined]
        if not known.has(digests(doubles)).all():
            raise StalePlan("images were removed meanwhile")


@dataclasses.dataclass
class Removals:
    """What leaves with the source files that have gone or were replaced.

    homes: images that move to an older occurrence. promoted: by unit, tonight's duplicates that
    are the first occurrence now. rewrites: by table, published paths that have such rows.
    """

    tonight: StageState
    images: int
    removed_rows: int = 0
    removed_images: int = 0
    homes: dict[str, Place] = dataclasses.field(default_factory=dict)
    promoted: dict[str, list[Place]] = dataclasses.field(default_factory=dict)
    rewrites: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    gone: list[Pair] = dataclasses.field(default_factory=list)

    def units(self, fingerprint: str) -> tuple[list[Unit], list[Unit]]:
        """Return the unit that keeps what leaves, and rewrites of the files with these rows."""
        if not self.gone:
            return [], []
        night = self.tonight.plan.night
        order = LeavingOrder({"gone": self.gone, "homes": self.homes, "night": night})
        closing = order.unit(fingerprint)
        return [closing], [
            StageRewrite(table, path, closing.unit_id).unit(fingerprint)
            for table, paths in self.rewrites.items()
            for path in paths
        ]


def leaving_order(lake: LakePaths, job_id: str, unit_id: str) -> dict[str, Any]:
    """Read what leaves from the closing unit's completion.

    Raises StorageError where it is gone: another process has finished the job, or dropped it.
    """
    found = load_completion(lake, job_id, unit_id)
    if found is None:
        raise StorageError(f"{lake.units(job_id)}: what leaves is not recorded; run it again")
    return found.details["leaving"]


def removals(tonight: StageState, gone: list[Pair]) -> Removals:
    """Find what has left with the files that are `gone`: pairs that the listing has no more."""
    leaving = Removals(tonight, tonight.images.partition_rows({}), gone=gone)
    if not gone:
        return leaving
    uris = pa.array(sorted({uri for uri, _ in gone}), pa.string())
    etags = dict(gone)
    homeless = _homeless(tonight, uris)
    staged = [
        rows["image_id"].filter(_in(rows["image_id"], homeless))
        for _, rows in tonight.rows("images", ["image_id"])
    ]
    homeless = homeless.filter(pc.invert(_in(homeless, _concatenated(staged))))  # type: ignore[attr-defined]
    _find_homes(leaving, homeless, uris, etags)
    _find_promoted(leaving, homeless)
    leaving.removed_images = len(homeless) - len(leaving.homes)
    # Every image of a gone file is dropped or moved in its own shard, every refusal dropped.
    for name, snapshot in (("quarantine", tonight.quarantine), ("images", tonight.images)):
        for path, rows in snapshot.read_each(["source_uri"]):
            if pc.any(_in(rows["source_uri"], uris)).as_py():  # type: ignore[attr-defined]
                leaving.rewrites.setdefault(name, []).append(path)
    return leaving


def _homeless(tonight: StageState, uris: pa.Array) -> pa.Array:
    """Ids of the published images whose first occurrence lies in one of the files."""
    found = []
    for _, rows in tonight.images.read_each(["image_id", "source_uri"]):
        found.append(rows["image_id"].filter(_in(rows["source_uri"], uris)))
    return _concatenated(found)


def _find_homes(
    leaving: Removals, homeless: pa.Array, uris: pa.Array, etags: dict[str, str]
) -> None:
    """Find the earliest published occurrence of each homeless image, and the rows that go."""
    best: dict[str, tuple[str, str, int]] = {}
    members: dict[str, str | None] = {}
    paths: dict[str, set[str]] = {}  # of images, where their best occurrence lies
    columns = ["source_uri", "source_row", "source_member", "etag", "image_id", "fate", "night"]
    rewritten: set[str] = set()
    for path, rows in leaving.tonight.sources.read_each([*columns, "removed_night"]):
        live = rows.filter(pc.is_null(rows["removed_night"]))  # type: ignore[attr-defined]
        leaves = leaving_rows(live, uris, etags)
        count = int(pc.sum(leaves).as_py() or 0)  # type: ignore[attr-defined]
        leaving.removed_rows += count
        if count:
            rewritten.add(path)
        stays = live.filter(pc.invert(leaves))  # type: ignore[attr-defined]
        doubles = stays.filter(_in(stays["image_id"], homeless))
        for row in doubles.to_pylist():
            if row["fate"] == "refused":
                continue
            place = (row["night"], row["source_uri"], row["source_row"])
            home = best.get(row["image_id"])
            if home is None or place < home:
                best[row["image_id"]] = place
                members[row["image_id"]] = row["source_member"]
                paths[row["image_id"]] = {path}
    leaving.homes = {
        image_id: (uri, row, members[image_id]) for image_id, (_, uri, row) in best.items()
    }
    leaving.rewrites["sources"] = sorted(rewritten.union(*paths.values()))


def leaving_rows(rows: pa.Table, uris: pa.Array, etags: dict[str, str]) -> pa.ChunkedArray:
    """Which rows are of a gone version of a file, (N,) of bool."""
    candidates = _in(rows["source_uri"], uris)
    if not pc.any(candidates).as_py():  # type: ignore[attr-defined]
        return candidates
    wanted = [etags.get(uri) for uri in rows["source_uri"].to_pylist()]
    same = pc.equal(rows["etag"], pa.array(wanted, pa.string()))  # type: ignore[attr-defined]
    return pc.and_(candidates, pc.fill_null(same, False))  # type: ignore[attr-defined]


def _find_promoted(leaving: Removals, homeless: pa.Array) -> None:
    """Homeless images that only tonight's rows still have: the earliest of those is the first."""
    left = homeless.filter(pc.invert(_in(homeless, pa.array(list(leaving.homes), pa.string()))))  # type: ignore[attr-defined]
    if not len(left):
        return
    columns = ["source_uri", "source_row", "source_member", "image_id", "fate"]
    for completion, rows in leaving.tonight.rows("sources", columns):
        some = rows.filter(_in(rows["image_id"], left))
        for row in some.to_pylist():
            if row["fate"] == "refused" or row["image_id"] in leaving.homes:
                continue
            place = (row["source_uri"], row["source_row"], row["source_member"])
            leaving.homes[row["image_id"]] = place
            if row["fate"] == "duplicate":
                leaving.promoted.setdefault(corrected_unit(completion), []).append(place)


def _in(values: Any, wanted: pa.Array) -> Any:
    return pc.is_in(values, wanted)  # type: ignore[attr-defined]


def _concatenated(parts: list[pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pa.concat_arrays([pa.array([], pa.string()), *chunks])
