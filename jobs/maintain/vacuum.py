"""vacuum: removes files that no kept snapshot, no bundle and no unfinished job has a use for.

Kept are: the newest snapshot, those that were the newest within the last days, those that a bundle
was trained on or an unfinished plan reads, the files that live completions and commit records
name, and whatever is younger than a day, because somebody may be writing it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any

from jobs.bundles.manifest import read_about
from jobs.engine import records
from jobs.engine.plan import Plan
from jobs.errors import InputError
from jobs.lake.documents import Unreadable
from jobs.lake.paths import LakePaths
from jobs.lake.storage import attempt, delete, delete_tree, folder_names, join, read_if_there
from jobs.lake.uri import is_inner
from jobs.lake.walk import last_touched, walk
from jobs.maintain.leftovers import drafts, index_parts
from jobs.schemas.catalog import RUNS
from jobs.schemas.registry import tables_of
from jobs.tables import catalog
from jobs.tables.data_file import Output
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.log_check import require_whole

log = logging.getLogger("latentlake")

GRACE_S = 86_400.0


@dataclasses.dataclass(frozen=True)
class Vacuumed:
    """files, bytes: removed. plans: given-up ones that were swept. paths: URIs, of drafts paths."""

    files: int
    bytes: int
    plans: int
    paths: list[str]


def vacuum(
    lake: LakePaths,
    datasets: list[str],
    models: list[str],
    *,
    keep_days: float,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
) -> Vacuumed:
    """Remove what nothing needs from the tables of datasets and models, and old plans' remains.

    Raises InputError, and removes nothing, where the log of one of these tables is damaged.
    """
    tables = [lake.dataset(d, t) for d in datasets for t in tables_of("dataset")]
    tables += [lake.model(m, t) for m in models for t in tables_of("model")]
    tables += [lake.catalog(t) for t in tables_of("catalog")]
    require_whole(lake, tables, to_the_oldest=True)
    young = time.time() - grace_s
    uses = _Uses(lake, young)
    tables = [uri for uri in tables if not uses.spares(uri)]
    paths, size = [], 0
    for uri in tables:
        newest = open_snapshot(uri)
        if newest is None:
            continue
        kept = _kept_paths(newest, uses, keep_days) | uses.files.get(uri, set())
        for path, entry in _strangers(uri, kept):
            if entry["modified"] < young and not uses.may_be_a_lost_row(uri, path):
                paths.append(join(uri, path))
                size += entry["size"]
    folders = _folders(lake, datasets, models)
    left = attempt(lambda: list(drafts(folders, young)), lake.uri, "list")
    for model in models:
        for uri, bytes_ in index_parts(lake, model, young):
            paths.append(uri)
            size += bytes_
    plans = [one for one in uses.given_up if (last_touched(lake.units(one)) or 0.0) < young]
    if not dry_run:
        for path in paths:
            delete(path)
        for path, _ in left:
            attempt(lambda p=path: p.unlink(missing_ok=True), lake.uri, "delete")
        for job_id in plans:
            delete_tree(lake.units(job_id))
    paths += [str(path) for path, _ in left]
    size += sum(bytes_ for _, bytes_ in left)
    return Vacuumed(len(paths), size, len(plans), paths)


def _folders(lake: LakePaths, datasets: list[str], models: list[str]) -> list[str]:
    """Those of these datasets and models, and what of the lake belongs to none of them."""
    parts = {"datasets": datasets, "models": models, "indexes": models}
    others = [join(lake.uri, name) for name in folder_names(lake.uri) if name not in parts]
    return [join(lake.uri, p, name) for p, names in parts.items() for name in names] + others


class _Uses:
    """What bundles and unfinished jobs need, by table URI."""

    def __init__(self, lake: LakePaths, young: float) -> None:
        """young: seconds since 1970; a plan that was given up later keeps its files."""
        self.young = young
        self.versions: dict[str, set[int]] = {}
        self.files: dict[str, set[str]] = {}
        self.given_up: list[str] = []
        self.runs_uri = lake.catalog(RUNS.name)
        self.runs = {row["job_id"] for row in catalog.catalog_rows(lake, RUNS.name)}
        self.spared: set[str] = set()  # below which nothing is removed: what it needs is unknown
        for table, version in catalog.published_versions(lake).items():
            self._pin(join(lake.uri, table), version)
        for model in catalog.models(lake):
            for version in catalog.bundle_versions(lake, model):
                try:
                    data = read_about(lake, model, version)["data"]
                except InputError as error:
                    # It was trained on images of one of them.
                    self._spare([join(lake.models, model), lake.datasets], error)
                else:
                    self._pin(lake.dataset(data["dataset"], "images"), data["images_version"])
        for job_id in folder_names(lake.all_units):
            self._look_at(lake, job_id)

    def _pin(self, uri: str, version: int) -> None:
        self.versions.setdefault(uri, set()).add(version)

    def _look_at(self, lake: LakePaths, job_id: str) -> None:
        plan = records.load_plan(lake, job_id)
        if plan is None:
            self.given_up.append(job_id)
            if (last_touched(lake.units(job_id)) or 0.0) >= self.young:
                plan = records.load_given_up(lake, job_id)
        if plan is not None:
            dataset = plan.settings.get("dataset")
            version = plan.settings.get("images_version", plan.base.get("images"))
            if version is None:
                version = plan.base.get("images")
            if isinstance(dataset, str) and is_inner(dataset) and isinstance(version, int):
                self._pin(lake.dataset(dataset, "images"), version)
        for uri in _documents(lake.units(job_id)):
            self._look_at_one(lake, uri, plan)

    def _look_at_one(self, lake: LakePaths, uri: str, plan: Plan | None) -> None:
        data = read_if_there(uri)
        if data is None:
            return
        folder, name = uri.split("/")[-2:]
        try:
            if name.startswith("commit-"):
                for table, outputs in records.commit_of(lake, data, uri).files.items():
                    self._keep(join(lake.uri, table), outputs)
            elif folder == "completions" and plan is not None:
                for output in records.completion_of(data, uri).outputs:
                    for root in _roots(lake, plan):
                        self._keep(join(root, output.table), [output])
        except InputError as error:
            if not (folder == "completions" and isinstance(error, Unreadable)):  # is done again
                self._spare(_roots(lake, plan) if plan is not None else [lake.uri], error)

    def _spare(self, uris: list[str], why: InputError) -> None:
        log.warning("%s. Vacuum removes nothing of %s", why, " and ".join(uris))
        self.spared.update(uris)

    def spares(self, table: str) -> bool:
        """Whether a table, by its URI, is to be left as it is."""
        return any(table.startswith(uri + "/") for uri in self.spared)

    def may_be_a_lost_row(self, table: str, path: str) -> bool:
        """Of `catalog/runs`, which nothing can be compared with: the row of a job that has none.

        Where the log lost its last entry, the file is all that is left of it.
        """
        job_id = path.rpartition("-")[0]
        return table == self.runs_uri and job_id not in self.runs

    def _keep(self, table: str, outputs: list[Output]) -> None:
        self.files.setdefault(table, set()).update(output.path for output in outputs)


def _roots(lake: LakePaths, plan: Plan) -> list[str]:
    """Return the folders whose tables a job's outputs may lie in."""
    target = plan.settings.get("target")
    name = target if isinstance(target, str) else plan.target
    if not is_inner(name):
        return [lake.uri]
    return [join(lake.datasets, name), join(lake.models, name)]


def _documents(folder: str) -> Iterator[str]:
    return (entry["uri"] for entry in walk(folder) if entry["uri"].endswith(".json"))


def _kept_paths(newest: Snapshot, uses: _Uses, keep_days: float) -> set[str]:
    """Paths of all snapshots that are kept."""
    since = time.time() - keep_days * 86_400
    kept = {newest.version, *uses.versions.get(newest.uri, set())}
    # A version was the newest until the next one came.
    came_after = float("inf")
    for entry in newest.history():
        if came_after >= since:
            kept.add(entry["version"])
        if came_after < since - GRACE_S:  # clocks differ
            break
        when = entry.get("timestamp")
        came_after = when / 1000 if isinstance(when, int) else float("inf")
    paths: set[str] = set()
    for version in kept:
        if not 0 <= version <= newest.version:  # it says so alone; nothing is kept by it
            continue
        snapshot = newest if version == newest.version else open_snapshot(newest.uri, version)
        if snapshot is not None:
            paths.update(snapshot.paths())
    return paths


def _strangers(uri: str, kept: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parquet files of a table's folder that no kept snapshot has."""
    for entry in walk(uri):
        path = entry["uri"].removeprefix(uri + "/")
        ours = path.endswith(".parquet") and "_delta_log/" not in path
        # A name that we do not write is no file of ours.
        if ours and is_inner(path) and path not in kept:
            yield path, entry
