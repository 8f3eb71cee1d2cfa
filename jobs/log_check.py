"""Whether the logs of tables are whole, before a job plans by them and before vacuum deletes.

deltalake takes an emptied entry for a commit of nothing, and what the entry had for gone: a job
would then remove what derives from it, and a vacuum its files (1.6.6).
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs import catalog, table_log
from jobs.documents import damaged
from jobs.lake import Lake
from jobs.schema import ALIASES, RUNS
from jobs.storage import require_begun
from jobs.table_log import RESTORE, Entries, entry_uri


def require_whole(lake: Lake, tables: Iterable[str], *, to_the_oldest: bool = False) -> None:
    """Raises InputError, with the URI, where an entry of a table's log is missing, empty or cut
    off, or is not the commit that `catalog/runs` names.

    tables: URIs; those that are not there are passed over. Entries are opened as far back as the
    newest checkpoint, from which the table is read, or to the oldest.
    """
    runs = lake.catalog(RUNS.name)
    table_log.whole_entries(runs).jobs(to_the_oldest)
    named = _named(lake)
    for uri in dict.fromkeys([lake.catalog(ALIASES.name), *tables]):
        if uri != runs:
            _require_whole(uri, named.get(lake.name_of(uri), {}), to_the_oldest)


def _named(lake: Lake) -> dict[str, dict[int, set[str]]]:
    """By table and version: the jobs whose rows in `catalog/runs` say that they made it."""
    found: dict[str, dict[int, set[str]]] = {}
    for job_id, versions in catalog.versions_of_runs(lake):
        for table, version in versions.items():
            found.setdefault(table, {}).setdefault(version, set()).add(job_id)
    return found


def _require_whole(uri: str, named: dict[int, set[str]], to_the_oldest: bool) -> None:
    held = table_log.whole_entries(uri)
    if not held.files:
        return  # somebody has removed all of it, by hand: nothing is taken for less than it was
    newest = max(named, default=-1)
    if newest > held.newest:
        require_begun(uri)  # all of it may have gone
        jobs = ", ".join(sorted(named[newest]))
        raise damaged(entry_uri(uri, newest), f"it is missing, the commit of {jobs}", RESTORE)
    for version, job_id in held.jobs(to_the_oldest):
        wanted = named.get(version)
        if wanted and job_id not in wanted:
            _require_elsewhere(held, version, wanted)


def _require_elsewhere(held: Entries, version: int, wanted: set[str]) -> None:
    """Older releases wrote wrong versions beside other writers: there the job has another entry."""
    missing = wanted - {job_id for _, job_id in held.jobs(to_the_oldest=True)}
    if missing:
        told = f"it is not the commit of {', '.join(sorted(missing))}, which catalog/runs names"
        raise damaged(entry_uri(held.uri, version), told, RESTORE)
