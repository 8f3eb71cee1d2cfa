"""Lakes that are damaged, or that a stranger has written to."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jobs.engine import records
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from tests.inline import InlineStage


def worked(lake: LakePaths, source: Path) -> Path:
    """The root of a lake with a stage job that has done its work, and has published nothing."""
    waiting = InlineStage(lake, source)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    return root


def commit_record(root: Path) -> Path:
    (found,) = root.glob("units/*/commit-*.json")
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def bundle_of(lake: LakePaths) -> Path:
    root = local_path(lake.uri)
    assert root is not None
    (found,) = root.glob("models/m/bundles/*/model.json")
    return found


def put(about: dict, path: str, value) -> None:
    *folders, last = path.split(".")
    for name in folders:
        about = about[name]
    if value is None:
        del about[last]
    else:
        about[last] = value


def age(folder: Path, days: float) -> None:
    """As if nobody had touched what is in it since."""
    then = time.time() - days * 86_400
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
