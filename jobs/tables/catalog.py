"""What a lake holds: datasets, models, bundles, aliases, runs and published snapshots."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jobs.errors import InputError, unknown_name
from jobs.lake.documents import damaged, parsed
from jobs.lake.paths import LakePaths
from jobs.lake.read_ahead import read_ahead
from jobs.lake.storage import exists, folder_names, join
from jobs.tables import delta_log
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.shards import read_shard

Versions = dict[str, int]  # by table, relative to the lake
# What each row tells.
TOLD: dict[str, dict[str, type]] = {
    "aliases": {"sequence": int, **dict.fromkeys(("model", "alias", "version"), str)},
    "runs": {
        "finished_at": dt.datetime,
        **dict.fromkeys(("job_id", "job", "target", "night", "counts", "versions", "config"), str),
    },
}


def datasets(lake: LakePaths) -> list[str]:
    """List the datasets by name."""
    return folder_names(lake.datasets)


def models(lake: LakePaths) -> list[str]:
    """List the models by name."""
    return folder_names(lake.models)


def bundle_versions(lake: LakePaths, model: str) -> list[str]:
    """Versions whose bundle is complete."""
    folder = join(lake.models, model, "bundles")
    return [v for v in folder_names(folder) if exists(join(folder, v, "model.json"))]


def catalog_rows(lake: LakePaths, table: str) -> list[dict[str, Any]]:
    """Read the rows of a table of the catalog; none where there is no table."""
    snapshot = open_snapshot(lake.catalog(table))
    if snapshot is None:
        return []
    rows = _rows_of(tuple(snapshot.file_uris()), tuple(snapshot.schema.names))
    found = rows.to_pylist() if rows is not None else []
    for row in found:
        columns = TOLD.get(table, {}).items()
        lacks = [name for name, kind in columns if not isinstance(row.get(name), kind)]
        if lacks:
            raise damaged(lake.catalog(table), f"a row without {lacks[0]}")
    return found


# Files never change under their names; these tables are small, and read again and again.
@functools.lru_cache(maxsize=8)
def _rows_of(uris: tuple[str, ...], columns: tuple[str, ...]) -> pa.Table | None:
    # A file of an older release lacks the columns that came later: they are null.
    tables = [rows for _, rows in read_ahead(uris, lambda uri: _shard(uri, columns))]
    return pa.concat_tables(tables, promote_options="default") if tables else None


# One file a job: what a job has added is all that is read anew.
@functools.lru_cache(maxsize=1 << 14)
def _shard(uri: str, columns: tuple[str, ...]) -> pa.Table:
    return read_shard(uri, columns)


def runs(lake: LakePaths) -> list[dict[str, Any]]:
    """Finished jobs, oldest first: in the order of their rows, which no clock can turn round."""

    def place(row: dict[str, Any]) -> tuple[int, dt.datetime]:
        return row.get("sequence") or 0, row["finished_at"]  # older releases wrote no number

    return sorted(catalog_rows(lake, "runs"), key=place)


def aliases(lake: LakePaths, model: str) -> dict[str, str]:
    """Version by alias, as they stand now."""
    rows = [row for row in catalog_rows(lake, "aliases") if row["model"] == model]
    return {row["alias"]: row["version"] for row in sorted(rows, key=lambda r: r["sequence"])}


def alias_moves(lake: LakePaths, model: str, alias: str) -> int:
    """How often the alias has been given so far."""
    rows = catalog_rows(lake, "aliases")
    return sum(row["model"] == model and row["alias"] == alias for row in rows)


def versions_of_runs(lake: LakePaths) -> Iterator[tuple[str, Versions]]:
    """Id of each finished job, and the versions that it published, by table."""
    for row in catalog_rows(lake, "runs"):
        where = f"{lake.uri}/catalog/runs: the versions of {row['job_id']}"
        yield row["job_id"], parsed(Versions, row["versions"], where)


def commits_of_runs(lake: LakePaths) -> dict[str, dict[int, set[str]]]:
    """By table, relative to the lake, and version: the finished jobs that say that they made it."""
    found: dict[str, dict[int, set[str]]] = {}
    for job_id, versions in versions_of_runs(lake):
        for table, version in versions.items():
            found.setdefault(table, {}).setdefault(version, set()).add(job_id)
    return found


def published_versions(lake: LakePaths) -> dict[str, int]:
    """By table, relative to the lake: the newest version that a finished job published."""
    newest: dict[str, int] = {}
    for _, versions in versions_of_runs(lake):
        for table, version in versions.items():
            newest[table] = max(version, newest.get(table, -1))
    return newest


def require_dataset(lake: LakePaths, dataset: str) -> None:
    """Raise InputError, which lists the known ones, for an unknown dataset."""
    known = datasets(lake)
    if dataset not in known:
        raise unknown_name("dataset", dataset, known, f"; {lake.uri} has no datasets")


def images_snapshot(lake: LakePaths, dataset: str, version: int | None = None) -> Snapshot:
    """Return the images of a dataset: the newest published snapshot, or the given one."""
    require_dataset(lake, dataset)
    uri = lake.dataset(dataset, "images")
    if version is None:
        version = published_versions(lake).get(lake.name_of(uri))
        if version is None:
            raise InputError(
                f"dataset {dataset!r} has no published images yet; run latentlake stage first"
            )
    snapshot = open_snapshot(uri, version)
    if snapshot is None:
        raise InputError(f"dataset {dataset!r} has no images table")
    return snapshot


def embeddings_snapshot(lake: LakePaths, model: str, version: str) -> Snapshot:
    """Return the published embeddings of a model. Raises InputError where the version has none."""
    uri = lake.model(model, "embeddings")
    published = published_versions(lake).get(lake.name_of(uri))
    snapshot = open_snapshot(uri, published) if published is not None else None
    if snapshot is None or not snapshot.partition_rows({"model_version": version}):
        raise InputError(f"{model}@{version} has embedded no images yet; run latentlake embed")
    return snapshot


def resolve_model(lake: LakePaths, reference: str) -> tuple[str, str]:
    """Model and bundle version of NAME, NAME@VERSION or NAME@ALIAS (champion if only NAME).

    Raises InputError that lists what is known.
    """
    model, _, label = reference.partition("@")
    known = models(lake)
    if model not in known:
        raise unknown_name("model", model, known, f"; {lake.uri} has no models")
    label = label or "champion"
    named = aliases(lake, model)
    if label in named:
        return model, named[label]
    versions = bundle_versions(lake, model)
    if label in versions:
        return model, label
    moved = commits_of_runs(lake).get("catalog/aliases", {})
    delta_log.require_commits(lake.catalog("aliases"), moved, to_the_oldest=False)
    raise unknown_name(
        f"version or alias of model {model!r}:", label, [*named, *versions], "; train it first"
    )
