"""What a job keeps in the lake while it runs: its plan, its units' completions, its commit.

All of it lies under `units/<job_id>/`, is written create-only, and goes after the commit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.lake import Lake
from jobs.storage import (
    create_or_keep,
    delete_tree,
    folder_names,
    join,
    list_folder,
    read,
    read_if_there,
)
from jobs.units import Completion, Output, Plan, Unit, digest

READERS = 16  # requests at a time


def save_plan(lake: Lake, plan: Plan) -> Plan:
    """Saves the plan under its job id, and returns the saved one: a plan once saved holds."""
    uri = join(lake.units(plan.job_id), "plan.json")
    if create_or_keep(uri, plan.to_json()):
        return plan
    return Plan.from_json(read(uri))


def unfinished_plans(lake: Lake, job: str, target: str) -> list[Plan]:
    """Saved plans of earlier runs of this job on this target that have not been cleared."""
    plans = []
    for job_id in folder_names(lake.all_units):
        if not job_id.startswith(f"{job}-"):
            continue
        data = read_if_there(join(lake.units(job_id), "plan.json"))
        if data is not None:
            plan = Plan.from_json(data)
            if (plan.job, plan.target) == (job, target):
                plans.append(plan)
    return plans


def save_units(lake: Lake, job_id: str, units: Sequence[Unit], found: dict[str, Any]) -> None:
    """The units that came while the job ran, and what else its planning found out."""
    body = {"units": [vars(unit) for unit in units], "found": found}
    create_or_keep(join(lake.units(job_id), "units.json"), json.dumps(body).encode())


def load_units(lake: Lake, job_id: str) -> tuple[list[Unit], dict[str, Any]] | None:
    """None where the planning was not finished."""
    data = read_if_there(join(lake.units(job_id), "units.json"))
    if data is None:
        return None
    body = json.loads(data)
    return [Unit(**unit) for unit in body["units"]], body["found"]


def _completion_uri(lake: Lake, job_id: str, unit_id: str) -> str:
    return join(lake.units(job_id), "completions", f"{unit_id}.json")


def save_completion(lake: Lake, job_id: str, completion: Completion) -> None:
    """The first completion of a unit wins; a later one is dropped."""
    create_or_keep(_completion_uri(lake, job_id, completion.unit_id), completion.to_json())


def completed_units(lake: Lake, job_id: str) -> set[str]:
    """Ids of the units that have a completion.

    The listing only saves requests: a unit that it misses is done again, and loses.
    """
    folder = join(lake.units(job_id), "completions")
    names = (entry["name"].rsplit("/", 1)[-1] for entry in list_folder(folder))
    return {name.removesuffix(".json") for name in names}


def load_completions(lake: Lake, job_id: str, unit_ids: Sequence[str]) -> dict[str, Completion]:
    """Completions by unit id; units that have none are left out."""
    present = completed_units(lake, job_id) if unit_ids else set()
    wanted = [unit_id for unit_id in unit_ids if unit_id in present]
    with ThreadPoolExecutor(READERS) as pool:
        bodies = pool.map(lambda unit_id: read(_completion_uri(lake, job_id, unit_id)), wanted)
        return dict(zip(wanted, map(Completion.from_json, bodies), strict=True))


@dataclasses.dataclass(frozen=True)
class CommitRecord:
    """Which files go into which table URI, in commit order, and which paths leave it.

    schemas: of the tables, for those that have never been published.
    """

    files: dict[str, list[Output]]
    counts: dict[str, Any]
    seconds: float
    removed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    same_rows: bool = False
    schemas: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        files = {uri: [o.path for o in outputs] for uri, outputs in self.files.items()}
        return f"commit-{digest(files, self.removed)}"


def save_commit(lake: Lake, job_id: str, record: CommitRecord) -> None:
    body = json.dumps(dataclasses.asdict(record)).encode()
    create_or_keep(join(lake.units(job_id), f"{record.name}.json"), body)


def load_commit(lake: Lake, job_id: str, name: str) -> CommitRecord | None:
    """None where the job has been cleared, which happens after its row in `catalog/runs`."""
    data = read_if_there(join(lake.units(job_id), f"{name}.json"))
    if data is None:
        return None
    body = json.loads(data)
    files = {uri: [Output(**o) for o in outputs] for uri, outputs in body["files"].items()}
    return CommitRecord(**{**body, "files": files})


def clear(lake: Lake, job_id: str) -> None:
    """Removes all that a finished job kept."""
    delete_tree(lake.units(job_id))


def drop(lake: Lake, job_id: str) -> None:
    """Gives up a plan. Its commit records stay: another process may be committing it now."""
    delete_tree(join(lake.units(job_id), "plan.json"))
    delete_tree(join(lake.units(job_id), "units.json"))
    delete_tree(join(lake.units(job_id), "completions"))
