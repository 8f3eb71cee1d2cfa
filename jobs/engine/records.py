"""What a job keeps in the lake while it runs: its plan, its units' completions, its commit.

All of it lies under `units/<job_id>/`, is written create-only, and goes after the commit. What it
says of outputs is relative to the lake, and is read as if a stranger had written it: a lake that
was copied completes into the copy, and no record makes us write, or remove, elsewhere. A plan or
a completion that was cut off counts as not there: the work is done again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.engine.plan import Completion, Plan, Unit
from jobs.errors import JobError
from jobs.hashing import digest
from jobs.lake.documents import Unreadable, damaged, parsed, unreadable
from jobs.lake.paths import LakePaths
from jobs.lake.storage import (
    ATTEMPTS,
    create_or_keep,
    delete,
    delete_tree,
    folder_names,
    join,
    names_in,
    read_if_there,
)
from jobs.lake.uri import is_inner, is_plain
from jobs.tables.data_file import Output

log = logging.getLogger("latentlake")

READERS = 16  # requests at a time
TABLE = re.compile(r"(datasets|models)/[a-z0-9_-]+/[a-z0-9_]+|catalog/[a-z0-9_]+")
GIVEN_UP = "given-up.json"
AGAIN = "it counts as not there, and is done again"


def save_plan(lake: LakePaths, plan: Plan) -> Plan:
    """Save the plan under its job id, and return the saved one: a plan once saved holds."""
    uri = join(lake.units(plan.job_id), "plan.json")
    for _ in range(ATTEMPTS):
        if create_or_keep(uri, plan.to_json()):
            return plan
        data = read_if_there(uri)
        saved = load_plan(lake, plan.job_id)
        if saved is not None:
            return saved
        _discard(uri, data)
    raise JobError(f"{uri} comes and goes; run it again")


def _discard(uri: str, data: bytes | None) -> None:
    """Remove what could not be read, and not what another process has put in its place."""
    if data is not None and read_if_there(uri) == data:
        delete(uri)


def unfinished_plans(lake: LakePaths, job: str, target: str) -> list[Plan]:
    """Load saved plans of earlier runs of this job on this target that have not been cleared."""
    plans = []
    for job_id in folder_names(lake.all_units):
        if not job_id.startswith(f"{job}-"):
            continue
        plan = load_plan(lake, job_id)
        if plan is not None and (plan.job, plan.target) == (job, target):
            plans.append(plan)
    return plans


def load_plan(lake: LakePaths, job_id: str) -> Plan | None:
    """None where there is none, it was given up, or it cannot be read."""
    uri = join(lake.units(job_id), "plan.json")
    data = read_if_there(uri)
    try:
        return _plan(data, job_id, uri) if data is not None else None
    except Unreadable as error:
        log.warning("%s", error)
        return None


def _plan(data: bytes, job_id: str, uri: str) -> Plan:
    plan = parsed(Plan, data, uri, AGAIN)
    if plan.job_id != job_id:  # its name is a digest of most of it
        raise unreadable(uri, f"it is the plan of {plan.job_id!r:.80}", AGAIN)
    if parsed(_Checked, data, uri, AGAIN).checksum not in (None, plan.checksum):
        raise unreadable(uri, "its settings are not those that it was saved with", AGAIN)
    _require_own(plan.units, plan, uri)
    return plan


@dataclasses.dataclass(frozen=True)
class _Checked:
    """checksum: None in plans of older releases."""

    checksum: str | None = None


def _require_own(units: Iterable[Unit], plan: Plan, uri: str) -> None:
    """Require that units' names are digests of their inputs: what others changed does not fit."""
    for unit in units:
        if unit != Unit.of(plan.fingerprint, unit.inputs):
            raise unreadable(
                uri, f"{unit.unit_id!r:.80} is no name of a unit with its inputs", AGAIN
            )


def _require_inner(outputs: Iterable[Output], uri: str) -> None:
    for output in outputs:
        if not is_inner(output.path):
            raise damaged(uri, f"{output.path!r} is no path in a table")
        if output.size < 0 or output.rows < 0:
            claim = f"{output.path} has {output.rows} rows, {output.size} bytes"
            raise unreadable(uri, claim, AGAIN)


@dataclasses.dataclass(frozen=True)
class _Units:
    units: list[Unit]
    found: dict[str, Any]


def save_units(lake: LakePaths, job_id: str, units: Sequence[Unit], found: dict[str, Any]) -> None:
    """Save the units that came while the job ran, and what else its planning found out."""
    body = {"units": [vars(unit) for unit in units], "found": found}
    create_or_keep(join(lake.units(job_id), "units.json"), json.dumps(body).encode())


def load_units(lake: LakePaths, plan: Plan) -> tuple[list[Unit], dict[str, Any]] | None:
    """None where the planning was not finished."""
    uri = join(lake.units(plan.job_id), "units.json")
    data = read_if_there(uri)
    if data is None:
        return None
    try:
        body = parsed(_Units, data, uri, AGAIN)
        _require_own(body.units, plan, uri)
    except Unreadable as error:
        log.warning("%s", error)
        _discard(uri, data)
        return None
    return body.units, body.found


def _completion_uri(lake: LakePaths, job_id: str, unit_id: str) -> str:
    return join(lake.units(job_id), "completions", f"{unit_id}.json")


def save_completion(lake: LakePaths, job_id: str, completion: Completion) -> None:
    """Save a completion: the first of a unit wins, a later one is dropped."""
    create_or_keep(_completion_uri(lake, job_id, completion.unit_id), completion.to_json())


def completed_units(lake: LakePaths, job_id: str) -> set[str]:
    """Ids of the units that have a completion.

    The listing only saves requests: a unit that it misses is done again, and loses.
    """
    folder = join(lake.units(job_id), "completions")
    return {name.removesuffix(".json") for name in names_in(folder)}


def load_completions(
    lake: LakePaths, job_id: str, unit_ids: Sequence[str]
) -> dict[str, Completion]:
    """Completions by unit id; units that have none are left out."""
    present = completed_units(lake, job_id) if unit_ids else set()
    wanted = [unit_id for unit_id in unit_ids if unit_id in present]
    with ThreadPoolExecutor(READERS) as pool:
        # Another process of the job may be clearing them away.
        uris = [_completion_uri(lake, job_id, unit_id) for unit_id in wanted]
        bodies = pool.map(read_if_there, uris)
        found = {}
        for unit_id, uri, body in zip(wanted, uris, bodies, strict=True):
            if body is None:
                continue
            try:
                found[unit_id] = completion_of(body, uri)
            except Unreadable as error:
                log.warning("%s", error)
                _discard(uri, body)
        return found


def load_completion(lake: LakePaths, job_id: str, unit_id: str) -> Completion | None:
    """Load one unit's completion, by its name; None where it has none."""
    uri = _completion_uri(lake, job_id, unit_id)
    body = read_if_there(uri)
    return completion_of(body, uri) if body is not None else None


def completion_of(data: bytes, uri: str) -> Completion:
    """uri: where it lies, for whoever reads that it is damaged."""
    completion = parsed(Completion, data, uri, AGAIN)
    _require_inner(completion.outputs, uri)
    if completion.kind == "work":  # releases before 0.2 wrote no kind
        if "of" in completion.details:
            completion = dataclasses.replace(completion, kind="correction")
        elif "rewrites" in completion.details:
            completion = dataclasses.replace(completion, kind="rewrite")
    if completion.kind == "correction":
        of, generation = (completion.details.get(name) for name in ("of", "generation"))
        if not (isinstance(of, str) and isinstance(generation, int)):
            raise unreadable(uri, "a correction says of which unit it is, and how often", AGAIN)
    return completion


def discard_completion(lake: LakePaths, job_id: str, unit_id: str) -> None:
    """Remove a completion that is not of its unit, so that the unit is done again."""
    delete(_completion_uri(lake, job_id, unit_id))


@dataclasses.dataclass(frozen=True)
class CommitRecord:
    """Which files go into which table, in commit order, and which paths leave it.

    Tables by their names in the lake, such as datasets/photos/images. schemas: of the tables, for
    those that have never been published.
    """

    files: dict[str, list[Output]]
    counts: dict[str, Any]
    seconds: float
    removed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    same_rows: bool = False
    schemas: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name the record after what it adds and removes."""
        files = {table: [o.path for o in outputs] for table, outputs in self.files.items()}
        return f"commit-{digest(files, self.removed)}"


def save_commit(lake: LakePaths, job_id: str, record: CommitRecord) -> None:
    """Save what a commit will be, so that a rerun completes it."""
    body = json.dumps(dataclasses.asdict(record)).encode()
    create_or_keep(join(lake.units(job_id), f"{record.name}.json"), body)


def load_commit(lake: LakePaths, job_id: str, name: str) -> CommitRecord | None:
    """None where the job has been cleared, which happens after its row in `catalog/runs`.

    job_id, name: as a table's log tells them.
    """
    if not (is_plain(job_id) and is_plain(name)):
        log = f"the log of a table of {lake.uri}"
        raise damaged(log, f"{job_id!r}, {name!r} are no names of a job and its commit")
    uri = join(lake.units(job_id), f"{name}.json")
    data = read_if_there(uri)
    return commit_of(lake, data, uri) if data is not None else None


def commit_of(lake: LakePaths, data: bytes, uri: str) -> CommitRecord:
    """uri: where it lies, for whoever reads that it is damaged."""
    record = parsed(CommitRecord, data, uri)
    for outputs in record.files.values():
        _require_inner(outputs, uri)
    named = {
        field: {_table(lake, table, uri): value for table, value in getattr(record, field).items()}
        for field in ("files", "removed", "schemas")
    }
    return dataclasses.replace(record, **named)


def _table(lake: LakePaths, named: str, uri: str) -> str:
    """Its name in the lake. Older releases wrote URIs: those of this lake are understood."""
    table = named.removeprefix(lake.uri + "/")
    if not TABLE.fullmatch(table):
        raise damaged(uri, f"{named!r} is no table of {lake.uri}")
    return table


def clear(lake: LakePaths, job_id: str) -> None:
    """Remove all that a finished job kept.

    The plan goes last: where this is cut short, the next run sees that it was done, and does not
    do it again.
    """
    _remove_but(lake, job_id, "plan.json")
    delete_tree(lake.units(job_id))


def _remove_but(lake: LakePaths, job_id: str, kept: str) -> None:
    """kept: what the names of those that stay begin with."""
    folder = lake.units(job_id)
    for name in names_in(folder):
        if not name.startswith(kept) and is_inner(name):
            delete_tree(join(folder, name))


def say_resumed(lake: LakePaths, job_id: str) -> None:
    """Say that a plan of before is worked on: by itself it writes nothing for a while."""
    create_or_keep(join(lake.units(job_id), f"resumed-{uuid.uuid4().hex[:8]}.json"), b"{}")


def give_up(lake: LakePaths, plan: Plan) -> None:
    """End a plan that its job does not want any more. What its units did stays for a day: whoever
    has just gone on with it, all the same, publishes that."""
    create_or_keep(join(lake.units(plan.job_id), GIVEN_UP), plan.to_json())
    delete(join(lake.units(plan.job_id), "plan.json"))


def load_given_up(lake: LakePaths, job_id: str) -> Plan | None:
    """Return the plan that was given up, while its remains are there."""
    uri = join(lake.units(job_id), GIVEN_UP)
    data = read_if_there(uri)
    try:
        return _plan(data, job_id, uri) if data is not None else None
    except Unreadable:
        return None


def drop(lake: LakePaths, job_id: str) -> None:
    """Give up a plan. Its commit records stay: another process may be committing it now."""
    delete(join(lake.units(job_id), "plan.json"))
    _remove_but(lake, job_id, "commit-")
