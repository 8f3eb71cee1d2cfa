"""Whether the logs of tables are whole, before a job plans by them and before vacuum deletes.

deltalake takes an emptied entry for a commit of nothing, and what the entry had for gone: a job
would then remove what derives from it, and a vacuum its files (1.6.6).
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import ALIASES, RUNS
from jobs.tables import catalog, delta_log


def require_whole(lake: LakePaths, tables: Iterable[str], *, to_the_oldest: bool = False) -> None:
    """Raise InputError, with the URI, where an entry of a table's log is missing, empty or cut
    off, or is not the commit that `catalog/runs` names.

    tables: URIs; those that are not there are passed over. Entries are opened as far back as the
    newest checkpoint, from which the table is read, or to the oldest.
    """
    runs = lake.catalog(RUNS.name)
    delta_log.require_commits(runs, {}, to_the_oldest)
    named = catalog.commits_of_runs(lake)
    for uri in dict.fromkeys([lake.catalog(ALIASES.name), *tables]):
        if uri != runs:
            delta_log.require_commits(uri, named.get(lake.name_of(uri), {}), to_the_oldest)
