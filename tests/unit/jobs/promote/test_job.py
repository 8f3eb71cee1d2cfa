"""promote and rollback as a whole: one row a move, and what is said where there is none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from jobs.bundles.aliases import history, moves
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import folder_names
from jobs.query import views
from jobs.schemas.catalog import ALIASES
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.inline import NIGHT, InlineTrain
from tests.promotions import (
    SECOND,
    THIRD,
    Evaluated,
    champion,
    folder,
    gated,
    named,
    promote,
    rollback,
    with_bundles,
)
from tests.unit.jobs.promote.test_gate import bundle, differences


@pytest.fixture
def lake(trained: LakePaths) -> LakePaths:
    return with_bundles(trained)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(monkeypatch)


def test_a_promotion_is_one_row_that_tells_who_when_why(lake: LakePaths, evaluated) -> None:
    first = champion(lake)
    report = gated(lake, SECOND, by="ann", reason="finer", night="2026-01-02")
    assert champion(lake) == SECOND
    assert report.counts["promoted"] is True
    assert (report.counts["version"], report.counts["held"]) == (SECOND, first)
    assert [check["passes"] for check in report.counts["checks"]] == [True] * 5
    assert evaluated.asked == [(f"m@{first}", f"m@{SECOND}", "d")]
    row = moves(lake, "m", "champion")[-1]
    assert (row["moved_by"], row["night"], row["job_id"]) == ("ann", "2026-01-02", *report.job_ids)
    assert row["reason"].startswith(f"finer; passed the gate against {first}: the bound gains 2 ")
    told = history(lake, "m")
    assert [(each["from"], each["to"]) for each in told] == [(None, first), (first, SECOND)]
    assert all(each["at"] is not None and each["by"] for each in told)
    # So readers see it that are not ours, and every move is a version of the table of its own.
    table = pl.scan_delta(lake.catalog("aliases")).sort("sequence").collect()
    assert table["version"].to_list() == [first, SECOND]
    held = open_snapshot(lake.catalog("aliases"))
    assert held is not None
    older = open_snapshot(lake.catalog("aliases"), held.version - 1)
    assert older is not None
    assert len(older.read(["version"])) == 1
    assert folder_names(lake.all_units) == []


def test_a_refused_challenger_is_told_and_moves_nothing(lake: LakePaths, evaluated) -> None:
    first = champion(lake)
    evaluated.refuses()
    report = gated(lake, SECOND)
    assert report.counts["promoted"] is False
    assert (report.counts["version"], report.counts["held"]) == (SECOND, first)
    why = report.counts["why"]
    assert why.startswith(f"m@{SECOND} did not pass the gate, m@{first} stays champion: the bound ")
    assert named(lake) == [first]
    # It is on record, and asked again it is the same answer, not a second one.
    assert gated(lake, SECOND).counts["why"] == why
    runs = [row for row in catalog.runs(lake) if row["job"] == "promote"]
    assert [json.loads(row["counts"])["promoted"] for row in runs] == [False]
    assert folder_names(lake.all_units) == []


def test_what_is_evaluated_anew_is_judged_anew_on_the_same_night(
    lake: LakePaths, evaluated
) -> None:
    evaluated.refuses()
    assert not gated(lake, SECOND).counts["promoted"]
    evaluated.found, evaluated.job_id = differences(), "evaluate-2"
    assert gated(lake, SECOND).counts["promoted"]


def test_force_asks_nothing_and_keeps_the_users_reason(lake: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr("jobs.promote.job.standing", None)
    monkeypatch.setattr("jobs.promote.job.compare", None)
    report = promote(lake, SECOND, reason="the old one is blind")
    assert report.counts["promoted"]
    assert moves(lake, "m", "champion")[-1]["reason"] == "the old one is blind"


def test_what_is_champion_already_is_nothing_to_do(lake: LakePaths) -> None:
    first = champion(lake)
    report = promote(lake, first)
    assert report.job_ids == []
    assert report.counts["why"] == f"m@{first} is champion already"
    assert named(lake) == [first]


def test_the_first_bundle_of_an_alias_passes(lake: LakePaths, monkeypatch) -> None:
    def nothing(*_: Any) -> Any:
        raise InputError("not evaluated")

    monkeypatch.setattr("jobs.promote.job.standing", nothing)
    report = gated(lake, SECOND, alias="canary")
    assert report.counts["promoted"]
    assert "first bundle of the alias" in report.counts["why"]
    assert "nothing is known of its calibration" in report.counts["checks"][1]["told"]
    assert catalog.aliases(lake, "m")["canary"] == SECOND


def test_an_alias_may_name_the_challenger(lake: LakePaths) -> None:
    promote(lake, SECOND, alias="canary")
    promote(lake, "canary")
    assert champion(lake) == SECOND


def test_there_and_back_and_there_again_are_moves_of_their_own(lake: LakePaths) -> None:
    first = champion(lake)
    for version in (SECOND, first, SECOND):
        assert promote(lake, version).counts["promoted"]
    assert named(lake) == [first, SECOND, first, SECOND]
    assert [row["sequence"] for row in moves(lake, "m", "champion")] == [1, 2, 3, 4]


def test_rollbacks_go_further_back_until_nothing_is_left(lake: LakePaths) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    promote(lake, THIRD)
    report = rollback(lake, reason="flags everything")
    assert (report.counts["version"], report.counts["held"]) == (SECOND, THIRD)
    rollback(lake)
    assert named(lake) == [first, SECOND, THIRD, SECOND, first]
    assert [row["reason"] for row in moves(lake, "m", "champion")][3:] == [
        "flags everything",
        f"back from {SECOND}",
    ]
    with pytest.raises(InputError, match=f"has named nothing before {first}"):
        rollback(lake)
    runs = [row["job"] for row in catalog.runs(lake)]
    assert runs[-4:] == ["promote", "promote", "rollback", "rollback"]


def test_a_rollback_to_a_bundle_that_is_gone_is_refused(lake: LakePaths) -> None:
    first = champion(lake)
    promote(lake, SECOND)
    shutil.rmtree(folder(lake, first))
    with pytest.raises(InputError, match=f"that bundle is gone; promote one of: {SECOND}, {THIRD}"):
        rollback(lake)
    assert champion(lake) == SECOND


def test_an_alias_table_of_before_is_read_and_widened(staged: LakePaths) -> None:
    kept = [f for f in ALIASES.schema if f.name not in ("moved_by", "night")]
    older = dataclasses.replace(ALIASES, schema=pa.schema(kept))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train.job", "bundles.aliases"):
            patch.setattr(f"jobs.{module}.ALIASES", older)
        runner.run(InlineTrain(staged))
    first = champion(staged)
    held = open_snapshot(staged.catalog("aliases"))
    assert held is not None
    assert "moved_by" not in held.schema.names
    assert moves(staged, "m", "champion")[0]["moved_by"] is None
    shutil.copytree(folder(staged, first), folder(staged, SECOND))
    promote(staged, SECOND)
    told = [
        (row["version"], row["moved_by"], row["night"]) for row in moves(staged, "m", "champion")
    ]
    assert told == [(first, None, None), (SECOND, "ann", NIGHT)]
    shown = views.sql(staged, "SELECT moved_by FROM aliases ORDER BY sequence").to_pylist()
    assert shown == [{"moved_by": None}, {"moved_by": "ann"}]
    rollback(staged)
    assert champion(staged) == first


def test_mistakes_end_in_a_sentence(lake: LakePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    first = champion(lake)
    for model, told in (
        ("m", "say which version becomes champion, as in m@VERSION"),
        ("x@champion", "unknown model 'x'; known: m"),
        ("m@nothing", f"unknown version or alias of model 'm': 'nothing'; known: .*{SECOND}"),
    ):
        with pytest.raises(InputError, match=told):
            promote(lake, "", model=model)
    with pytest.raises(InputError, match="alias name 'No Good' is not usable"):
        promote(lake, SECOND, alias="No Good")
    with pytest.raises(InputError, match="is the name of a bundle; use another one"):
        promote(lake, SECOND, alias=THIRD)
    with pytest.raises(InputError, match="unknown alias of model 'm': 'canary'; known: champion"):
        rollback(lake, alias="canary")
    with pytest.raises(InputError, match="name the model alone, as in latentlake rollback m"):
        rollback(lake, model="m@champion")
    with pytest.raises(InputError, match="unknown model 'x'; known: m"):
        rollback(lake, model="x")
    monkeypatch.setattr("jobs.promote.job.standing", lambda lake, model, version, dataset: [])
    told = f"m@{SECOND} has not been evaluated on d; run latentlake evaluate --dataset d --model m@"
    with pytest.raises(InputError, match=told):
        gated(lake, SECOND)
    known = {SECOND: bundle()}
    monkeypatch.setattr(
        "jobs.promote.job.standing",
        lambda la, m, v, d: [{**row, "job_id": "e"} for row in known.get(v, [])],
    )
    with pytest.raises(InputError, match=f"m@{first} has not been evaluated on d"):
        gated(lake, SECOND)
    assert named(lake) == [first]
    assert folder_names(lake.all_units) == []
