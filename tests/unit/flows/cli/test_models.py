"""promote, rollback and aliases as commands: what is printed, what is asked, how they exit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from flows.cli.main import cli
from jobs.engine import commit as engine_commit
from jobs.errors import InputError, JobError
from jobs.evaluate.compare import Comparison, Difference
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.schemas.catalog import ALIASES
from jobs.tables import catalog
from jobs.tables.delta import Table
from tests.unit.jobs.promote.test_gate import bundle, differences

FIRST, SECOND = "a" * 12, "b" * 12
ABOUT = {
    "format": 1,
    "data": {"dataset": "d", "images_version": 1, "preprocessing": 2},
    "config": {"likelihood": {"kind": "gaussian"}},
    "files": {"weights": "model-0.safetensors", "calibration": "calibration-0.parquet"},
    "scoring": {"samples": 4, "seed": 0, "batch_size": 256},
    "metrics": {"validation_nats": 1.0},
    "decision_score": "neg_elbo",
}


@pytest.fixture
def lake(tmp_path: Path) -> LakePaths:
    """Model `m` of two bundles; the first is champion."""
    lake = LakePaths((tmp_path / "lake").as_uri())
    for version in (FIRST, SECOND):
        folder = local_path(lake.bundle("m", version))
        assert folder is not None
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps(ABOUT))
    row = {"sequence": 1, "model": "m", "alias": "champion", "version": FIRST, "moved_by": "eve"}
    engine_commit.append_rows(Table(lake.catalog("aliases"), ALIASES), "train-1", [row])
    return lake


class Judging:
    def __init__(self) -> None:
        self.found: list[Difference] = differences()


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> Judging:
    held = Judging()
    rows = [{**row, "job_id": "evaluate-1"} for row in bundle()]
    monkeypatch.setattr("jobs.promote.job.standing", lambda *_: rows)
    monkeypatch.setattr(
        "jobs.promote.job.compare", lambda *_, **__: Comparison("m", "m", "d", 500, held.found)
    )
    return held


def called(lake: LakePaths, *words: str) -> None:
    cli.main([*words, "--lake", lake.uri], standalone_mode=False)


def champion(lake: LakePaths) -> str:
    return catalog.aliases(lake, "m")["champion"]


def out(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_promotion_tells_every_check(lake: LakePaths, judging, capsys) -> None:
    called(lake, "promote", f"m@{SECOND}")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"promote: champion is now m@{SECOND}, after {FIRST}"
    assert told[1].startswith("  passed: the bound gains 2 nats an image (95% interval 1 to 3")
    assert len(told) == 6
    assert champion(lake) == SECOND


def test_a_refusal_ends_with_1_and_the_way_round_it(lake: LakePaths, judging, capsys) -> None:
    judging.found = differences((1.0, 2.0, 3.0))
    with pytest.raises(JobError) as refused:
        called(lake, "promote", f"m@{SECOND}", "--json")
    assert refused.value.exit_code == 1
    assert f"m@{FIRST} stays champion: the bound gains -2 nats" in str(refused.value)
    way = f"latentlake promote m@{SECOND} --force --reason TEXT"
    assert way in str(refused.value)
    told = out(capsys)
    assert told["counts"]["promoted"] is False
    assert [check["passes"] for check in told["counts"]["checks"]][:2] == [False, True]
    assert champion(lake) == FIRST
    called(lake, *way.split()[1:-1], "eyes say so")
    assert champion(lake) == SECOND
    called(lake, "aliases", "m", "--json")
    assert "eyes say so" in capsys.readouterr().out


@pytest.mark.parametrize("passes", [True, False])
def test_a_dry_run_tells_the_verdict_and_writes_nothing(
    lake: LakePaths, judging, capsys, passes: bool
) -> None:
    judging.found = differences() if passes else differences((1.0, 2.0, 3.0))
    root = local_path(lake.uri)
    assert root is not None
    before = sorted(root.rglob("*"))
    called(lake, "promote", f"m@{SECOND}", "--dry-run", "--json")
    told = out(capsys)
    assert (told["promoted"], told["would_promote"]) == (False, passes)
    assert (told["version"], told["held"]) == (SECOND, FIRST)
    called(lake, "promote", f"m@{SECOND}", "--dry-run")
    text = capsys.readouterr().out
    assert ("would be" if passes else "does not pass the gate") in text
    assert sorted(root.rglob("*")) == before


def test_the_rule_is_that_of_the_config(lake: LakePaths, judging, capsys, tmp_path: Path) -> None:
    config = tmp_path / "nightly.yaml"

    def told(gate: str) -> bool:
        config.write_text(f"lake: x\n{gate}\n")
        called(lake, "promote", f"m@{SECOND}", "--config", str(config), "--dry-run", "--json")
        return out(capsys)["would_promote"]

    assert told("gate: {gain_nats: 0.9}")
    assert not told("gate: {gain_nats: 1.1}")
    assert not told("gate: {probe_loss: 0.001}")
    assert told("")
    judging.found = differences((1.0, 2.0, 3.0))
    assert not told("")
    assert told("gate:")  # none, on purpose
    with pytest.raises(InputError, match="gain_nat: unknown key; known: gain_nats"):
        told("gate: {gain_nat: 1}")
    with pytest.raises(InputError, match="gate is no mapping of settings"):
        told("gate: yes")


def test_force_asks_for_a_reason(lake: LakePaths) -> None:
    with pytest.raises(click.UsageError, match="say why with --reason"):
        called(lake, "promote", f"m@{SECOND}", "--force")
    assert champion(lake) == FIRST


def test_a_rollback_and_the_history_of_an_alias(lake: LakePaths, judging, capsys) -> None:
    called(lake, "promote", f"m@{SECOND}", "--by", "ann", "--night", "2026-01-02")
    called(lake, "rollback", "m", "--reason", "too many alarms", "--by", "bob", "--dry-run")
    assert f"would be m@{FIRST}, after {SECOND}" in capsys.readouterr().out
    assert champion(lake) == SECOND
    called(lake, "rollback", "m", "--reason", "too many alarms", "--by", "bob")
    assert champion(lake) == FIRST
    capsys.readouterr()
    called(lake, "aliases", "m", "--json")
    told = out(capsys)
    assert [(row["from"], row["to"], row["by"]) for row in told] == [
        (None, FIRST, "eve"),
        (FIRST, SECOND, "ann"),
        (SECOND, FIRST, "bob"),
    ]
    assert [bool(row["at"]) for row in told] == [False, True, True]
    assert told[2]["reason"] == "too many alarms"
    called(lake, "aliases", "m")
    assert "too many alarms" in capsys.readouterr().out
    with pytest.raises(InputError, match="nothing to go back to"):
        called(lake, "rollback", "m")


def test_what_holds_already_is_nothing_to_do(lake: LakePaths, capsys) -> None:
    called(lake, "promote", f"m@{FIRST}")
    told = capsys.readouterr().out
    assert told == f"promote: m@{FIRST} is champion already; nothing to do\n"


def test_unknown_names_are_told_with_those_that_are_known(lake: LakePaths) -> None:
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        called(lake, "aliases", "x")
    with pytest.raises(InputError, match="unknown alias of model 'm': 'canary'; known: champion"):
        called(lake, "aliases", "m", "--alias", "canary")


def test_moving_an_alias_needs_neither_ray_nor_torch(lake: LakePaths) -> None:
    from tests.unit.test_house import loaded_after

    run = f"cli.main(['rollback', 'm', '--lake', {lake.uri!r}], standalone_mode=False)"
    code = (
        "from flows.cli.main import cli\nfrom jobs.errors import InputError\n"
        f"try:\n    {run}\nexcept InputError:\n    pass"
    )
    assert not loaded_after(code) & {"ray", "torch", "prefect"}
