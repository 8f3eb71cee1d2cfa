"""Settling decides only: a batch's anomalies are flagged by a unit, once for what they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.embed import job as embed_job
from jobs.embed.flag_batch import flag_batch
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables.delta import Snapshot
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, OvertakenEmbed


@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of each call, the closing unit."""
    units: list[str] = []

    def noting(plan, tables, unit, attempt):
        units.append(unit.unit_id)
        return flag_batch(plan, tables, unit, attempt)

    monkeypatch.setattr(embed_job, "flag_batch", noting)
    return units


def test_a_commit_that_was_cut_short_flags_nothing_again(
    trained: LakePaths, flagged: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(Snapshot, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.run(InlineEmbed(trained))
    report = runner.run(InlineEmbed(trained))
    assert len(flagged) == 1
    assert report.units == 0
    rows = views.sql(trained, "SELECT batch FROM batches")
    assert rows["batch"].to_pylist() == [report.counts["batch"]]


def test_one_that_another_job_overtook_flags_what_is_left(
    trained: LakePaths, tmp_path: Path, flagged: list[str]
) -> None:
    """The rival embeds the older images meanwhile: this job is left with the others."""
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    rival = InlineEmbed(trained, night="2026-01-02", until="2026-01-01")
    report = runner.run(OvertakenEmbed(trained, rival, night="2026-01-03"))
    assert report.counts["embedded"] == 50
    assert len(flagged) == len(set(flagged)) == 3  # of all, the rival's, of what is left
    ids = views.sql(trained, "SELECT image_id FROM embeddings")["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 650
    assert len(views.sql(trained, "SELECT * FROM batches")) == 2
