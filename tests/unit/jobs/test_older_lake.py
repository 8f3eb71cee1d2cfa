"""A lake that release 0.1 wrote goes on under this one: golden/lake-0.1.tar.gz.

It has 270 staged images of 8×8, a model that was trained and evaluated on 240 of them, their
embeddings, and the plan of an embed of the other 30 that was killed before its commit.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from jobs.cluster.settings import RaySettings
from jobs.engine import runner
from jobs.engine.plan import Completion
from jobs.engine.records import completion_of, unfinished_plans
from jobs.lake.paths import LakePaths
from jobs.maintain.run import maintain
from jobs.maintain.settings import MaintainSettings
from jobs.query import Lake, views
from jobs.tables import catalog
from tests.helpers import ROOT, write_source
from tests.inline import InlineCompact, InlineEmbed, InlineEvaluate, InlineStage, InlineTrain

NIGHT = "2026-01-03"
TINY = {"latent_dim": 2, "network": {"kind": "mlp", "widths": [8]}, "epochs": 2}
LEFT = "embed-27a698cfa788a2f3"  # the killed one


@pytest.fixture
def older(tmp_path: Path) -> LakePaths:
    with tarfile.open(ROOT / "tests" / "golden" / "lake-0.1.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    return LakePaths((tmp_path / "lake").as_uri())


def codes(lake: LakePaths) -> dict[str, list[float]]:
    rows = views.sql(lake, "SELECT image_id, embedding FROM embeddings WHERE model = 'm'")
    return dict(zip(rows["image_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True))


def count(lake: LakePaths, table: str) -> int:
    return len(views.sql(lake, f"SELECT * FROM {table}"))


def test_what_it_left_undone_is_finished_and_what_is_there_stays(older: LakePaths) -> None:
    before = codes(older)
    assert (count(older, "images"), len(before)) == (270, 240)
    assert [plan.job_id for plan in unfinished_plans(older, "embed", "m")] == [LEFT]
    report = runner.run(InlineEmbed(older, night="2026-01-02", reconstructions="sample"))
    assert report.job_ids == [LEFT]
    assert report.units == 0  # its units were done
    batches = views.sql(older, "SELECT batch, job_id FROM batches").to_pylist()
    assert {"batch": report.counts["batch"], "job_id": LEFT} in batches
    assert len(batches) == 2
    after = codes(older)
    assert len(after) == 270
    assert {name: after[name] for name in before} == before
    # The bundle gives this release the numbers that it gave that one.
    runner.run(InlineEmbed(older, night=NIGHT, redo=True))
    again = codes(older)
    np.testing.assert_allclose(
        [again[name] for name in after], list(after.values()), rtol=1e-5, atol=1e-6
    )


def test_every_job_goes_on_with_it(older: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "more" / "c.parquet", range(270, 400))
    sizes = {"height": 8, "width": 8}
    staged = runner.run(InlineStage(older, tmp_path / "more", night=NIGHT, **sizes))
    assert staged.counts["staged"] == 130
    (first,) = catalog.bundle_versions(older, "m")
    trained = runner.run(InlineTrain(older, night=NIGHT, **TINY))
    assert set(catalog.bundle_versions(older, "m")) == {first, trained.counts["version"]}
    runner.run(InlineEmbed(older, night=NIGHT))
    assert len(codes(older)) == 400
    assert runner.run(InlineEvaluate(older, night=NIGHT)).counts["metrics"] > 0
    nearest = Lake(older.uri).embeddings("m@champion").neighbours(next(iter(codes(older))), k=3)
    assert nearest.num_rows == 3
    rows = codes(older)
    done = maintain(
        older, MaintainSettings(keep_days=0), NIGHT, RaySettings(), compact_job=InlineCompact
    )
    assert done["compacted"][0]["files_merged"] > 1
    assert done["left_plans"] == []  # the embed had finished it
    assert codes(older) == rows
    runner.run(InlineEmbed(older, night=NIGHT))
    assert count(older, "images") == 400


@pytest.mark.parametrize(
    ("details", "kind"),
    [({}, "work"), ({"of": "u", "generation": 1}, "correction"), ({"rewrites": "p"}, "rewrite")],
)
def test_completions_of_it_have_a_kind(details: dict[str, object], kind: str) -> None:
    raw = b'{"unit_id": "u", "attempt": "a", "outputs": [], "counts": {}, "seconds": 0.0'
    given = str(details).replace("'", '"').encode()
    found = completion_of(raw + b', "details": ' + given + b"}", "file:///x")
    assert isinstance(found, Completion)
    assert found.kind == kind
