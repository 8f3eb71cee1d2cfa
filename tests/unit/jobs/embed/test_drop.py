"""drop: a version leaves every table, and its bundle and its evaluation stay."""

from __future__ import annotations

import pytest

from jobs.embed.drop import DropJob
from jobs.embed.settings import DropSettings
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.inline import InlineEmbed, InlineEvaluate


def test_a_dropped_version_leaves_every_table_and_can_be_embedded_again(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all", alpha=0.9))
    report = runner.run(DropJob(trained, DropSettings(model="m@champion"), "2026-01-02"))
    assert report.counts["dropped"] == 600
    for table in ("embeddings", "reconstructions", "anomalies", "batches"):
        assert len(views.sql(trained, f"SELECT * FROM {table}")) == 0, table
    again = DropSettings(model="m@champion", dataset="d")
    assert runner.run(DropJob(trained, again, "2026-01-02")).job_ids == []
    with pytest.raises(InputError, match="m@VERSION"):
        DropJob(trained, DropSettings(model="m"), "2026-01-02")
    again = InlineEmbed(trained, reconstructions="all", alpha=0.9)  # the same work by every name
    assert runner.run(again).counts["embedded"] == 600
    assert len(views.sql(trained, "SELECT DISTINCT image_id FROM embeddings")) == 600
    assert runner.run(InlineEmbed(trained, reconstructions="all", alpha=0.9)).job_ids == []


def test_a_dropped_version_is_still_judged(judged: LakePaths) -> None:
    """Its bundle stays, and so does what was found out of it."""
    statement = "SELECT * FROM evaluated ORDER BY image_id"
    before = views.sql(judged, statement)
    runner.run(InlineEmbed(judged))
    runner.run(DropJob(judged, DropSettings(model="m@champion"), "2026-01-02"))
    assert views.sql(judged, statement).equals(before)
    again = InlineEvaluate(judged)
    runner.run(again)
    assert again.executed == []
