"""What killed processes leave beside the tables: drafts, entries half put, indexes half made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jobs.lake.local_files import files_below
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names, join, local_path, read_if_there
from jobs.lake.walk import walk
from jobs.search.index import FILES, files_of

# Drafts of ours; what deltalake puts before it has the name of an entry (1.6.6).
DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\d{20}\.json#\d+|_commit_[0-9a-f-]+\.json\.tmp(#\d+)?")


def drafts(roots: list[str], before: float) -> Iterator[tuple[Path, int]]:
    """Files below these folders of a local lake that were never given their name, with their sizes.

    before: seconds since 1970; younger ones may be somebody's who is at work. A store has none.
    """
    for root in map(local_path, roots):
        for path, status in files_below(root) if root is not None else ():
            if DRAFT.fullmatch(path.name) and status.st_mtime < before:
                yield path, status.st_size


def index_parts(lake: LakePaths, model: str, before: float) -> Iterator[tuple[str, int]]:
    """Files of a model's indexes that no index names, with their sizes."""
    folder = join(lake.uri, "indexes", model)
    for version in folder_names(folder):
        found = list(walk(join(folder, version)))
        named = set()
        for entry in found:
            if entry["uri"].endswith(".json"):
                named |= files_of(read_if_there(entry["uri"]))
        for entry in found:
            name = entry["uri"].rsplit("/", 1)[-1]
            if FILES.fullmatch(name) and name not in named and entry["modified"] < before:
                yield entry["uri"], entry["size"]
