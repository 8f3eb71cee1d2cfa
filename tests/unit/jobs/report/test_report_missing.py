"""A report of which something is missing says so in its place, and is made all the same."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.engine import runner
from jobs.engine.commit import append_rows
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.report.write import write_report
from jobs.schemas.catalog import RUNS
from jobs.schemas.dataset import split_of
from jobs.tables.delta import Table
from tests import reported
from tests.helpers import image_bytes, image_ids, write_source
from tests.inline import InlineEmbed, InlineStage, InlineTrain
from tests.report_page import SECTIONS, page_of

FIRST, SECOND = reported.NIGHTS


@pytest.fixture
def lake(nights: LakePaths) -> LakePaths:
    return nights


@pytest.fixture
def judged(lake: LakePaths) -> LakePaths:
    reported.judged(lake)
    return lake


MODEL_SECTIONS = ("training", "rate", "reconstructions", "samples", "anomalies", "map", "drift")


def test_without_a_champion_the_data_are_told_and_the_rest_says_why(staged: LakePaths) -> None:
    made = write_report(staged, "d", "m", FIRST)
    page = page_of(made)
    assert page.sections == SECTIONS
    for section in (*MODEL_SECTIONS, "evaluation"):
        assert page.says(section, "The model m had no champion on 2026-01-01"), section
    assert page.says("data", "600")
    assert list(made.pictures) == ["images"]
    assert "no champion" in made.headline.is_good


def test_what_was_not_done_yet_is_said_in_its_section(lake: LakePaths) -> None:
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert page.says("evaluation", "was not evaluated on d yet: latentlake evaluate")
    assert page.says("drift", "Drift was not tested on this night: latentlake drift")
    reported.add_evaluation(lake, reported.versions(lake)[1], SECOND)
    reported.add_drift(lake, reported.versions(lake)[1], SECOND, None, note="10 images came")
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert page.says("evaluation", "was not evaluated on this dataset")
    assert page.says("drift", "Not tested. 10 images came")
    assert page.says("", "10 images came")


def test_a_night_on_which_nothing_came(lake: LakePaths) -> None:
    quiet = "2026-01-03"
    source = Path(str(local_path(lake.uri))).parent / "none"
    assert not source.exists()
    made = write_report(lake, "d", "m", quiet)
    page = page_of(made)
    assert page.sections == SECTIONS
    assert made.headline.status == "quiet"
    assert f"No job of d or m finished on {quiet}" in made.headline.happened
    assert page.says("data", "none arrived this night")
    assert page.says("anomalies", "scored no image of d on this night")
    assert page.says("lineage", "No job finished on this night")
    assert page.says("data", "Nothing was refused")


def without_labels(path: Path, rows: range) -> None:
    """Images and nothing else."""
    images = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(image_bytes(rows))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, kind)}), path)


@pytest.mark.slow
def test_images_without_labels(tmp_path: Path) -> None:
    lake = LakePaths((tmp_path / "lake").as_uri())
    without_labels(tmp_path / "source" / "a.parquet", range(300))
    runner.run(InlineStage(lake, tmp_path / "source"))
    runner.run(InlineTrain(lake, epochs=1))
    runner.run(InlineEmbed(lake))
    page = page_of(write_report(lake, "d", "m", FIRST))
    assert page.says("data", "The images have no labels")
    assert page.says("map", "The images have no labels")
    assert page.says("anomalies", "No image was flagged")


def test_a_model_of_another_image_size(trained: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "other" / "b.parquet", range(60))
    small = {"dataset": "small", "height": 16, "width": 16}
    runner.run(InlineStage(trained, tmp_path / "other", **small))
    page = page_of(write_report(trained, "small", "m", FIRST))
    assert page.sections == SECTIONS
    for section in ("reconstructions", "samples"):
        assert page.says(section, "takes images of 28×28×1, those of small are 16×16×1")
    assert page.says("data", "16 × 16")
    assert page.says("map", "has embedded no image of small yet")


def test_a_test_split_that_is_empty(trained: LakePaths, tmp_path: Path) -> None:
    rows = [r for r, i in enumerate(image_ids(range(200))) if split_of(i) != "test"][:30]
    write_source(tmp_path / "other" / "b.parquet", rows)
    runner.run(InlineStage(trained, tmp_path / "other", dataset="untested"))
    page = page_of(write_report(trained, "untested", "m", FIRST))
    assert page.says("reconstructions", "The test split is empty. Images of the other splits")
    assert page.says("samples", "Latent traversals")
    page = page_of(write_report(trained, "d", "m", FIRST))
    assert page.says("reconstructions", "Test images: original")


@pytest.mark.parametrize("broken", [range(20), range(20, 20)])
def test_a_source_of_which_nothing_or_very_little_is_left(tmp_path: Path, broken: range) -> None:
    """All but everything refused; a dataset of fewer images than a batch."""
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_source(tmp_path / "source" / "a.parquet", range(21), broken=broken)
    runner.run(InlineStage(lake, tmp_path / "source", max_refused=1.0))
    made = write_report(lake, "d", "m", FIRST)
    page = page_of(made)
    assert page.sections == SECTIONS
    assert made.headline.status == ("alarm" if broken else "good")
    assert page.says("data", f"images {21 - len(broken)}")


def test_a_challenger_that_the_gate_refused(judged: LakePaths) -> None:
    _, now = reported.versions(judged)
    checks = [
        {"name": "bound", "passes": False, "told": "the bound gains −3 nats, <b>no</b>"},
        {"name": "probe_accuracy", "passes": None, "told": "no label"},
    ]
    counts = {"promoted": False, "version": "0123456789ab", "why": "too few nats"}
    row = {
        "job_id": "promote-1",
        "job": "promote",
        "target": "m",
        "night": "2026-01-03",
        "finished_at": dt.datetime(2026, 1, 3, tzinfo=dt.UTC),
        "seconds": 1.0,
        "counts": json.dumps(counts | {"checks": checks}),
        "versions": "{}",
        "config": json.dumps({"dataset": None, "model": "m@0123456789ab"}),
        "code": "1",
    }
    append_rows(Table(judged.catalog("runs"), RUNS), "promote-1", [row])
    made = write_report(judged, "d", "m", "2026-01-03")
    told = "m@0123456789ab was compared with the champion and refused: too few nats."
    assert told in made.headline.happened
    assert made.headline.status == "look"
    page = page_of(made)
    assert page.says("evaluation", "bound no the bound gains −3 nats, <b>no</b>")
    assert page.says("evaluation", "probe_accuracy not required no label")
    assert page.says("training", f"m@{now}")
