"""Promotions and rollbacks of model `m` as tests ask for them, and what they stand on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from jobs.bundles.aliases import moves
from jobs.engine import runner
from jobs.engine.report import JobReport
from jobs.evaluate.compare import Comparison
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.promote.job import PromoteJob
from jobs.promote.settings import GateRule, PromoteSettings
from jobs.tables import catalog
from tests.inline import NIGHT
from tests.unit.jobs.promote.test_gate import bundle, differences

SECOND, THIRD = "b" * 12, "c" * 12


def with_bundles(lake: LakePaths, versions: Iterable[str] = (SECOND, THIRD)) -> LakePaths:
    """Model `m` gets more bundles, of its champion's weights."""
    first = champion(lake)
    for version in versions:
        shutil.copytree(folder(lake, first), folder(lake, version))
    return lake


def folder(lake: LakePaths, version: str) -> Path:
    path = local_path(lake.bundle("m", version))
    assert path is not None
    return path


def champion(lake: LakePaths) -> str:
    return catalog.aliases(lake, "m")["champion"]


class Evaluated:
    """What evaluate and compare would tell, by version; all are equal but where they are not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.found = differences()
        self.asked: list[tuple[str, str, str]] = []
        self.job_id = "evaluate-1"
        monkeypatch.setattr("jobs.promote.job.standing", self.standing)
        monkeypatch.setattr("jobs.promote.job.compare", self.compare)

    def standing(
        self, lake: LakePaths, model: str, version: str, dataset: str
    ) -> list[dict[str, Any]]:
        rows = self.rows.get(version, bundle())
        return [{**row, "job_id": self.job_id} for row in rows]

    def compare(
        self, lake: LakePaths, first: str, second: str, dataset: str, **_how: Any
    ) -> Comparison:
        self.asked.append((first, second, dataset))
        return Comparison(first, second, dataset, 500, self.found)

    def refuses(self) -> None:
        self.found = differences((1.0, 2.0, 3.0))


def promotion(lake: LakePaths, version: str, night: str = NIGHT, **settings: Any) -> PromoteJob:
    """Without the gate, if it is not requested."""
    values = {"model": f"m@{version}", "rule": None, "by": "ann"} | settings
    return PromoteJob(lake, PromoteSettings.model_validate(values), night)


def promote(lake: LakePaths, version: str, night: str = NIGHT, **settings: Any) -> JobReport:
    return runner.run(promotion(lake, version, night, **settings))


def gated(lake: LakePaths, version: str, **settings: Any) -> JobReport:
    return promote(lake, version, **{"rule": GateRule(), **settings})


def rollback_job(lake: LakePaths, night: str = NIGHT, **settings: Any) -> PromoteJob:
    values = {"model": "m", "back": True, "by": "ann"} | settings
    return PromoteJob(lake, PromoteSettings.model_validate(values), night)


def rollback(lake: LakePaths, night: str = NIGHT, **settings: Any) -> JobReport:
    return runner.run(rollback_job(lake, night, **settings))


def named(lake: LakePaths, alias: str = "champion") -> list[str]:
    return [row["version"] for row in moves(lake, "m", alias)]
