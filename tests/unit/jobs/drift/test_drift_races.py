"""Drift is judged once whatever happens: crashes, and jobs that publish at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.drift.job import DriftJob
from jobs.embed.drop import DropJob
from jobs.embed.settings import DropSettings
from jobs.engine import records, runner
from jobs.lake.paths import LakePaths
from jobs.tables.delta import Snapshot
from tests.drifted import (
    ALPHA,
    NIGHTS,
    OvertakenDrift,
    believed,
    combined,
    drift_job,
    judge,
    negative,
    rows_of,
    version,
    write_changed,
)
from tests.inline import InlineCompact, InlineEmbed, InlineStage, Overtaken


@pytest.mark.parametrize("name", ["reconstructions", "anomalies", "batches", "drift"])
def test_a_crash_between_two_tables_is_made_good(
    changed: LakePaths, monkeypatch, name: str
) -> None:
    rows = rows_of(changed, "anomalies", "batch, rank")
    real = Snapshot.commit

    def commit(self, *arguments, **how):
        if self.uri.endswith(name):
            raise KeyboardInterrupt
        return real(self, *arguments, **how)

    monkeypatch.setattr(Snapshot, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        judge(changed)
    monkeypatch.setattr(Snapshot, "commit", real)
    # Another job of the same model goes on, with other settings and on another night.
    report = judge(changed, NIGHTS[1], seed=5)
    assert report.counts["drifted"] is True
    assert len(combined(changed)) == 1
    assert combined(changed)[0]["night"] == NIGHTS[0]
    after = rows_of(changed, "anomalies", "batch, rank")
    assert after["image_id"].equals(rows["image_id"])
    assert believed(changed, "anomalies")[NIGHTS[0]] == {False}
    assert judge(changed, NIGHTS[1]).job_ids == []
    assert records.unfinished_plans(changed, "drift", "m") == []


def test_of_two_at_once_one_judges(changed: LakePaths) -> None:
    rival = drift_job(changed, NIGHTS[1], seed=7)
    report = runner.run(OvertakenDrift.of(changed, rival))
    assert report.job_ids == []
    assert [row["night"] for row in combined(changed)] == [NIGHTS[1]]
    assert believed(changed, "anomalies")[NIGHTS[0]] == {False}


def test_an_embed_meanwhile_is_judged_next(changed: LakePaths, tmp_path: Path) -> None:
    write_changed(tmp_path / "more" / "late.parquet", range(700, 760), negative)
    runner.run(InlineStage(changed, tmp_path / "more", night=NIGHTS[1]))
    rival = InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA)
    runner.run(OvertakenDrift.of(changed, rival))
    ids = rows_of(changed, "anomalies", "image_id")["image_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert believed(changed, "batches")[NIGHTS[1]] == {True}
    report = judge(changed, NIGHTS[1])
    assert report.counts["arrivals"] == 60
    assert believed(changed, "batches")[NIGHTS[1]] == {False}


def test_a_compaction_meanwhile_loses_nothing(changed: LakePaths) -> None:
    before = rows_of(changed, "anomalies", "batch, rank").drop_columns(["calibration_valid"])
    compaction = InlineCompact.of(changed, "model", "m", NIGHTS[1])
    runner.run(OvertakenDrift.of(changed, compaction))
    assert compaction.executed
    after = rows_of(changed, "anomalies", "batch, rank")
    assert after.drop_columns(["calibration_valid"]).equals(before)
    assert believed(changed, "batches") == {"2026-01-01": {True}, NIGHTS[0]: {False}}


def test_a_compaction_that_drift_overtakes_loses_nothing(changed: LakePaths) -> None:
    class OvertakenCompact(Overtaken, InlineCompact):
        pass

    compaction = OvertakenCompact.of(changed, "model", "m", NIGHTS[1])
    compaction.rival = drift_job(changed)
    runner.run(compaction)
    assert believed(changed, "batches") == {"2026-01-01": {True}, NIGHTS[0]: {False}}
    assert len(rows_of(changed, "batches", "batch")) == 2


def test_images_that_are_embedded_again_are_judged_again(changed: LakePaths) -> None:
    """Their new batch says that its p-values hold, and is not to be believed either."""
    judge(changed)
    runner.run(InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA, redo=True))
    assert believed(changed, "batches") == {NIGHTS[1]: {True}}
    assert judge(changed, NIGHTS[1]).counts["drifted"]
    assert believed(changed, "batches") == {NIGHTS[1]: {False}}


def test_images_that_are_embedded_again_meanwhile_are_judged_as_they_are(
    changed: LakePaths,
) -> None:
    rival = InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA, redo=True)
    report = runner.run(OvertakenDrift.of(changed, rival))
    assert report.counts["drifted"]
    assert believed(changed, "batches") == {NIGHTS[1]: {False}}
    assert len(combined(changed)) == 1


def test_a_plan_whose_embeddings_were_dropped_is_given_up(changed: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr(DriftJob, "execute", _die)
    with pytest.raises(KeyboardInterrupt):
        judge(changed)
    monkeypatch.undo()
    runner.run(DropJob(changed, DropSettings(model=f"m@{version(changed)}"), NIGHTS[1]))
    report = judge(changed, NIGHTS[1])
    assert report.counts["drifted"] is None
    assert "has embedded no images" in report.counts["note"]
    assert judge(changed, NIGHTS[1]).job_ids == []


def _die(*arguments) -> None:
    raise KeyboardInterrupt
