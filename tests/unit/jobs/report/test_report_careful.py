"""A report tells nothing of another version, and is there whatever cannot be read."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from jobs.engine.commit import append_rows
from jobs.errors import StorageError
from jobs.lake.paths import LakePaths
from jobs.report import write as report_write
from jobs.report.blocks import LEFT_OUT, Limits, Say
from jobs.report.night import ReportNight, look
from jobs.report.sections import latent_map
from jobs.report.sections.latent_map import map_section
from jobs.report.write import sections, write_report
from jobs.schemas.catalog import RUNS
from jobs.tables.delta import Table
from tests import reported
from tests.report_page import SECTIONS, page_of

FIRST, SECOND = reported.NIGHTS


@pytest.fixture
def lake(nights: LakePaths) -> LakePaths:
    return nights


def test_drift_is_that_of_the_version_or_of_the_one_that_it_followed(lake: LakePaths) -> None:
    before, now = reported.versions(lake)
    reported.add_drift(lake, before, SECOND, 1e-6)
    night = look(lake, "d", "m", SECOND)
    assert night.version == now
    assert night.drifted
    assert night.was_judged_before
    assert night.calibration_is_valid  # it was trained with those images
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert page.says("drift", f"Drift by m@{before}, the champion before")
    assert page.says("drift", f"m@{now} was trained with these images")
    assert look(lake, "d", f"m@{before}", SECOND).drifted
    assert len(night.drift_by_night) == 1


def add_embedding(lake: LakePaths, version: str) -> None:
    """A run of the second night."""
    row = {
        "job_id": f"embed-{version}",
        "job": "embed",
        "target": "m",
        "night": SECOND,
        "finished_at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "seconds": 1.0,
        "counts": json.dumps({"embedded": 5000, "model_version": version}),
        "versions": "{}",
        "config": json.dumps({"dataset": "d", "model": "m"}),
        "code": "1",
    }
    append_rows(Table(lake.catalog("runs"), RUNS), f"embed-{version}", [row])


def test_what_another_version_embedded_is_not_counted(lake: LakePaths) -> None:
    before, now = reported.versions(lake)
    counted = look(lake, "d", "m", SECOND).counts("embed")["embedded"]
    add_embedding(lake, before)
    assert look(lake, "d", "m", SECOND).counts("embed")["embedded"] == counted
    assert look(lake, "d", f"m@{before}", SECOND).counts("embed")["embedded"] == 5000
    add_embedding(lake, now)
    assert look(lake, "d", "m", SECOND).counts("embed")["embedded"] == counted + 5000
    assert look(lake, "d", "m", SECOND).counts("stage")["staged"] == 147


@pytest.mark.parametrize("share", [1.0, 0.01, 0.002])
def test_the_map_counts_the_flagged_images_that_it_draws(lake: LakePaths, share: float) -> None:
    night = look(lake, "d", "m", SECOND)
    drawn = min(night.flagged, Limits(share).of(latent_map.POINTS))
    assert night.flagged > 20 >= Limits(0.01).of(latent_map.POINTS)
    (chart, *_) = map_section(night, Limits(share)).blocks
    told = f"are chosen first; the {drawn} among these are red diamonds"
    assert told in getattr(chart, "caption", "")


def test_images_of_the_map_are_read_once_and_few_at_a_time(
    lake: LakePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], ReportNight.images

    def images(night: ReportNight, ids):
        asked.append(len(ids))
        return real(night, ids)

    monkeypatch.setattr(ReportNight, "images", images)
    night = look(lake, "d", "m", SECOND)
    whole = map_section(night, Limits())
    assert max(asked) == latent_map.AT_ONCE
    assert sum(asked) == 147
    asked.clear()
    map_section(night, Limits(0.1))
    assert asked == []
    assert getattr(map_section(night, Limits()).blocks[0], "sprites", "") == getattr(
        whole.blocks[0], "sprites", None
    )


def test_a_champion_of_other_images_is_not_compared(lake: LakePaths) -> None:
    before, now = reported.versions(lake)
    reported.add_evaluation(lake, before, FIRST)
    reported.add_evaluation(lake, now, SECOND, better_by=60.0, images_version=2)
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert page.says("evaluation", f"champion before: {before}, on version 1")
    assert page.says("evaluation", "of d, version 2")
    assert page.says("evaluation", "Better and worse are not said")
    assert not page.says("evaluation", " better ")
    assert not page.says("evaluation", "intervals meet")


def test_likelihoods_of_other_measures_are_not_compared(lake: LakePaths) -> None:
    before, now = reported.versions(lake)
    reported.add_evaluation(lake, before, FIRST)
    reported.add_evaluation(lake, now, SECOND, better_by=60.0)
    assert page_of(write_report(lake, "d", "m", SECOND)).says("evaluation", " better nats")
    path = Path(lake.bundle("m", before).removeprefix("file://")) / "model.json"
    about = json.loads(path.read_text())
    about["config"]["likelihood"]["kind"] = "categorical"
    path.write_text(json.dumps(about))
    page = page_of(write_report(lake, "d", "m", SECOND))
    assert not page.says("evaluation", " better nats")
    assert page.says("evaluation", "of values of 256")


def test_the_smallest_page_says_what_it_leaves_out(lake: LakePaths) -> None:
    night = look(lake, "d", "m", SECOND)
    made = {each.name: each for each in sections(night, "no picture", Limits(0.0))}
    assert Say(LEFT_OUT) in made["data"].blocks
    assert made["map"].blocks == [Say(LEFT_OUT)]


def fail(*_: object) -> None:
    raise StorageError("the storage is away")


def test_what_cannot_be_read_costs_its_own_part_alone(
    lake: LakePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("headline_of", "paintings_of", "map_section"):
        monkeypatch.setattr(report_write, name, fail)
    made = write_report(lake, "d", "m", SECOND)
    page = page_of(made)
    assert page.sections == SECTIONS
    for section in ("reconstructions", "samples", "map", ""):
        assert page.says(section, "the storage is away"), section
    assert made.headline.status == "look"
    assert page.says("anomalies", "most certain first")
    assert list(made.pictures) == ["images"]


@pytest.mark.parametrize("error", [StorageError("away"), ValueError("too large")])
def test_pictures_that_cannot_be_made_leave_the_page(
    lake: LakePaths, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(report_write, "sheets", fails)
    made = write_report(lake, "d", "m", SECOND)
    assert made.pictures == {}
    assert page_of(made).sections == SECTIONS
