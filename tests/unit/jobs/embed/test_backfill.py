"""Which images an embed job is about: history or arrivals, and of which nights."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.embed.settings import EmbedSettings
from jobs.engine import commit as engine_commit
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.settings import build
from jobs.tables import catalog
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, InlineTrain, OvertakenEmbed


@pytest.fixture
def retrained(trained: LakePaths, tmp_path: Path) -> LakePaths:
    """600 images that a first version has embedded, 50 of a second night, and a new champion."""
    runner.run(InlineEmbed(trained))
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    runner.run(InlineTrain(trained, seed=1, promote=True))
    return trained


def nights_of_champion(lake: LakePaths) -> dict[str, int]:
    """Rows of the champion by the night that their image was staged in; each image once."""
    _, version = catalog.resolve_model(lake, "m")
    rows = views.sql(
        lake,
        f"""SELECT i.night, count(*) AS n, count(DISTINCT image_id) AS ids FROM embeddings e
            JOIN images i USING (image_id) WHERE model_version = '{version}' GROUP BY ALL""",
    ).to_pylist()
    assert all(row["n"] == row["ids"] for row in rows)
    return {row["night"]: row["n"] for row in rows}


def batches_of_champion(lake: LakePaths) -> list[dict]:
    """In which each of its images that may be tested was tested once."""
    _, version = catalog.resolve_model(lake, "m")
    batches = views.sql(lake, f"FROM batches WHERE model_version = '{version}'").to_pylist()
    fair = "p_value IS NOT NULL AND model_split IS DISTINCT FROM 'calibration'"
    rows = views.sql(lake, f"FROM embeddings WHERE model_version = '{version}' AND {fair}")
    assert sum(batch["tested"] for batch in batches) == len(rows) > 0
    return batches


def test_history_stays_with_the_version_that_embedded_it_until_it_is_asked_for(
    retrained: LakePaths,
) -> None:
    night = {"night": "2026-01-02"}
    arrivals = InlineEmbed(retrained, backfill=False, reconstructions="all", **night)
    assert runner.run(arrivals).counts["embedded"] == 50
    assert nights_of_champion(retrained) == {"2026-01-02": 50}
    assert runner.run(InlineEmbed(retrained, backfill=False, **night)).job_ids == []
    report = runner.run(InlineEmbed(retrained, **night))
    assert report.counts["embedded"] == 600
    assert nights_of_champion(retrained) == {"2026-01-01": 600, "2026-01-02": 50}
    assert len(batches_of_champion(retrained)) == 2


def test_a_range_of_nights(retrained: LakePaths) -> None:
    assert runner.run(InlineEmbed(retrained, until="2025-12-31")).job_ids == []
    runner.run(InlineEmbed(retrained, since="2026-01-02", until="2026-01-02"))
    assert nights_of_champion(retrained) == {"2026-01-02": 50}
    # Reconstructions, too, are of those nights: none of images that were not requested.
    runner.run(InlineEmbed(retrained, until="2026-01-01", reconstructions="all"))
    assert nights_of_champion(retrained) == {"2026-01-01": 600, "2026-01-02": 50}
    drawn = views.sql(
        retrained,
        "SELECT DISTINCT i.night FROM reconstructions JOIN images i USING (image_id)",
    )
    assert drawn["night"].to_pylist() == ["2026-01-01"]


def test_a_long_backfill_decides_every_image_and_none_of_another_run(
    retrained: LakePaths, monkeypatch
) -> None:
    """In parts, stopped half-way, with a nightly in between."""
    monkeypatch.setattr("jobs.embed.job.UNIT_ROWS", 40)
    history = {"until": "2026-01-01", "commit_every": 4}
    real, done = engine_commit.commit, []

    def commit(*arguments) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(real(*arguments))

    monkeypatch.setattr(engine_commit, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        runner.run(InlineEmbed(retrained, **history))
    monkeypatch.setattr(engine_commit, "commit", real)
    told = runner.run(InlineEmbed(retrained, backfill=False, night="2026-01-02")).counts
    own = views.sql(
        retrained,
        """SELECT count(*) AS n FROM embeddings e JOIN images i USING (image_id)
           WHERE i.night = '2026-01-02' AND p_value IS NOT NULL
           AND model_split IS DISTINCT FROM 'calibration'""",
    )
    assert told["tested"] == own["n"][0].as_py() > 0
    runner.run(InlineEmbed(retrained, **history))
    assert nights_of_champion(retrained) == {"2026-01-01": 600, "2026-01-02": 50}
    assert len(batches_of_champion(retrained)) >= 4


def test_a_backfill_beside_a_nightly_leaves_every_image_once(retrained: LakePaths) -> None:
    nightly = InlineEmbed(retrained, backfill=False, night="2026-01-02")
    runner.run(OvertakenEmbed(retrained, nightly, night="2026-01-03"))
    assert nights_of_champion(retrained) == {"2026-01-01": 600, "2026-01-02": 50}
    assert len(batches_of_champion(retrained)) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redo": True, "backfill": False}, "redo replaces all rows: it goes without since"),
        ({"redo": True, "since": "2026-01-01"}, "redo replaces all rows: it goes without since"),
        ({"since": "2026-01-02", "until": "2026-01-01"}, "since 2026-01-02 is after until"),
        ({"since": "yesterday"}, "since: Input should be a valid date"),
        ({"min_workers": 2}, "min_workers goes with workers"),
        ({"min_workers": 3, "workers": 2}, "and is no more"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(EmbedSettings, {"dataset": "d", "model": "m", **values})
