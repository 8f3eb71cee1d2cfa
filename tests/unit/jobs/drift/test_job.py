"""Drift: what is found, what is marked, what is told where nothing can be tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from jobs.drift import results as drift_results
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.drifted import (
    ALPHA,
    NIGHTS,
    arrive,
    believed,
    combined,
    held_out,
    judge,
    negative,
    rows_of,
    same,
    version,
)
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage, InlineTrain


def test_a_changed_camera_is_found_and_its_anomalies_are_not_believed(changed: LakePaths) -> None:
    before = rows_of(changed, "anomalies", "batch, rank")
    assert set(before["night"].to_pylist()) >= {NIGHTS[0]}
    report = judge(changed)
    assert report.counts["drifted"] is True
    assert report.counts["p_value"] <= report.counts["alpha"] == 0.05
    assert (report.counts["arrivals"], report.counts["reference"]) == (100, held_out(changed))
    after = rows_of(changed, "anomalies", "batch, rank")
    column = ["calibration_valid"]
    assert after.drop_columns(column).equals(before.drop_columns(column))
    assert believed(changed, "anomalies")[NIGHTS[0]] == {False}
    assert believed(changed, "batches") == {"2026-01-01": {True}, NIGHTS[0]: {False}}
    flagged = [row for row in before.to_pylist() if row["night"] == NIGHTS[0]]
    assert report.counts["marked"] == len(flagged) > 0
    assert drift_results.drift_found(changed, "m", version(changed), "d")


def test_a_night_like_the_others_marks_nothing(embedded: LakePaths, tmp_path: Path) -> None:
    arrive(embedded, tmp_path, range(600, 700), same)
    before = {name: rows_of(embedded, name, "night") for name in ("anomalies", "batches")}
    report = judge(embedded)
    assert report.counts["drifted"] is False
    assert report.counts["marked"] == 0
    assert all(rows_of(embedded, name, "night").equals(held) for name, held in before.items())
    assert not drift_results.drift_found(embedded, "m", version(embedded), "d")


def test_the_table_tells_where_the_change_lies(changed: LakePaths) -> None:
    judge(changed)
    rows = drift_results.latest(changed, "m", version(changed), "d")
    assert rows == drift_results.latest(changed, "m", version(changed), "d", NIGHTS[0])
    assert drift_results.latest(changed, "m", version(changed), "d", NIGHTS[1]) == []
    first, *others = rows
    assert (first["test"], first["drifted"], first["sequence"]) == ("combined", True, 1)
    assert "so few images of embeddings of 4 dimensions" in first["note"]
    assert first["last_version"] >= first["first_version"] > 0
    whole = {(row["sample"], row["test"]) for row in others if row["of"] is None}
    families = ("embeddings", "scores", "pixels", "source")
    assert whole == {(f, t) for f in families for t in ("hotelling", "mmd", "classifier", "ks")}
    named = {row["of"]: row for row in others if row["of"] is not None}
    assert named["brightness"]["p_value"] == 0.01
    assert named["brightness"]["effect"] > 0.5
    assert "source_width" not in named  # it does not vary
    assert {row["sample"] for row in others if row["test"] == "fisher"} == {"source"}
    assert {row["job_id"] for row in rows} == {rows[0]["job_id"]}
    assert all(row["p_value"] <= 0.05 for row in others if row["test"] == "ks" and row["of"])


def test_what_was_judged_is_not_judged_again(changed: LakePaths) -> None:
    first = judge(changed)
    assert first.units > 0
    again = judge(changed, NIGHTS[1], alpha=0.04)
    assert again.job_ids == []
    assert len(combined(changed)) == 1
    assert judge(changed, NIGHTS[1]).units == 0


def test_rows_of_another_version_are_left_alone(changed: LakePaths) -> None:
    runner.run(InlineTrain(changed, night=NIGHTS[0], epochs=1, alias="other"))
    runner.run(InlineEmbed(changed, night=NIGHTS[0], model="m@other", alpha=ALPHA))
    other = catalog.resolve_model(changed, "m@other")[1]
    # It was trained on the negatives too: they are no arrivals of it.
    assert judge(changed, model="m@other").job_ids == []
    of_other = [
        r for r in rows_of(changed, "batches", "night").to_pylist() if r["model_version"] == other
    ]
    assert judge(changed).counts["drifted"]
    after = rows_of(changed, "batches", "night").to_pylist()
    assert [r for r in after if r["model_version"] == other] == of_other
    assert drift_results.latest(changed, "m", other, "d") == []


def test_nights_too_small_to_test_are_tested_together(embedded: LakePaths, tmp_path: Path) -> None:
    arrive(embedded, tmp_path, range(600, 606), negative)
    report = judge(embedded)
    assert report.counts["drifted"] is None
    assert report.counts["p_value"] is None
    assert "Not tested: 6 images have arrived" in report.counts["note"]
    assert judge(embedded).job_ids == []  # told once
    assert not drift_results.drift_found(embedded, "m", version(embedded), "d")
    arrive(embedded, tmp_path, range(606, 612), negative, NIGHTS[1])
    report = judge(embedded, NIGHTS[1])
    assert report.counts["arrivals"] == 12
    assert report.counts["drifted"]
    assert [row["sequence"] for row in combined(embedded)] == [1, 2]
    assert len(combined(embedded)[1]["embed_jobs"]) == 2
    held = believed(embedded, "batches")
    assert held[NIGHTS[0]] == held[NIGHTS[1]] == {False}
    assert held["2026-01-01"] == {True}


def test_images_that_both_sides_have_are_left_out(embedded: LakePaths, tmp_path: Path) -> None:
    """The same pixels as other bytes: of 300 images of the snapshot, and of 60 new ones."""
    shared = views.sql(
        embedded,
        "SELECT count(*) AS n FROM images JOIN embeddings USING (image_id) "
        "WHERE model_split = 'test' AND source_row < 300",
    )["n"][0].as_py()
    assert shared > 5
    arrive(embedded, tmp_path, [*range(300), *range(600, 660)], same)
    counts = judge(embedded).counts
    assert counts["arrivals"] == 360 - shared
    assert counts["reference"] == held_out(embedded) - shared


def test_the_largest_sample_is_what_the_rule_says(changed: LakePaths) -> None:
    assert judge(changed, max_images=50).counts["arrivals"] == 50


def test_a_model_that_has_embedded_nothing(trained: LakePaths) -> None:
    report = judge(trained)
    assert report.counts["drifted"] is None
    assert "has embedded no images of the dataset yet" in report.counts["note"]
    assert len(drift_results.latest(trained, "m", version(trained), "d")) == 1
    assert judge(trained).job_ids == []


def test_a_model_without_arrivals_has_nothing_to_do(embedded: LakePaths) -> None:
    assert judge(embedded).job_ids == []
    assert drift_results.latest(embedded, "m", version(embedded), "d") == []
    assert not drift_results.drift_found(embedded, "m", version(embedded), "d")


def test_arrivals_without_scores_are_tested_by_the_rest(
    embedded: LakePaths, tmp_path: Path
) -> None:
    arrive(embedded, tmp_path, range(600, 700), negative, scores="none")
    report = judge(embedded)
    assert report.counts["drifted"]
    assert "left out, since not every image has them" in report.counts["note"]
    rows = drift_results.latest(embedded, "m", version(embedded), "d")
    assert {row["sample"] for row in rows} == {None, "embeddings", "pixels", "source"}


def test_rows_of_an_older_release_are_told(changed: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr("jobs.drift.samples.UNKNOWN", "test")
    assert "embedded by an older release" in judge(changed).counts["note"]


def test_too_few_blocks_are_told(changed: LakePaths) -> None:
    report = judge(changed, block_images=16, nights=10, relabellings=999)
    assert "blocks of arrivals" in report.counts["note"]
    assert "it takes 192 images of each, in blocks of 16, or smaller" in report.counts["note"]
    assert report.counts["drifted"] is None


@pytest.mark.parametrize("together", [1, 2])
def test_of_neighbours_no_more_are_taken_than_arrived(
    embedded: LakePaths, tmp_path: Path, together: int
) -> None:
    """More would alarm too often: see test_drift_decision."""
    arrive(embedded, tmp_path, range(600, 620), negative)
    counts = judge(embedded, block_images=together).counts
    assert counts["drifted"] is True
    assert held_out(embedded) > 20
    assert counts["reference"] == (20 if together == 2 else held_out(embedded))


def test_of_arrivals_further_apart_than_the_reference_no_more_are_taken(
    changed: LakePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_out(changed)
    assert 10 <= held < 50
    monkeypatch.setattr("jobs.drift.samples.TEST_SHARE", 0.6)  # 60 where the sample is 50 of 100
    counts = judge(changed, block_images=2, max_images=50).counts
    assert (counts["arrivals"], counts["reference"]) == (held, held)


def test_of_arrivals_as_near_as_the_reference_all_are_taken(changed: LakePaths) -> None:
    counts = judge(changed, block_images=2, max_images=50).counts
    assert (counts["arrivals"], counts["reference"]) == (50, held_out(changed))


def test_blocks_by_a_column(changed: LakePaths) -> None:
    """Ten labels a side: 512 ways to relabel them in pairs."""
    with pytest.raises(InputError, match="no column 'camera' to make blocks by; it has job_id, l"):
        judge(changed, block_by="camera")
    assert judge(changed, block_by="label").counts["drifted"] is True


def test_refusals_alone_can_be_drift(embedded: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 1000), broken=range(0, 400, 4))
    runner.run(InlineStage(embedded, tmp_path / "more", night=NIGHTS[0], max_refused=0.5))
    runner.run(InlineEmbed(embedded, night=NIGHTS[0], alpha=ALPHA))
    report = judge(embedded, block_images=4)
    (row,) = [
        r
        for r in drift_results.latest(embedded, "m", version(embedded), "d")
        if r["test"] == "fisher"
    ]
    assert row["of"] == "refused"
    assert row["effect"] > 0.9
    assert row["p_value"] < 1e-20
    assert report.counts["drifted"] is True


def test_the_command_says_what_was_found(changed: LakePaths) -> None:
    options = ["--lake", changed.uri, "--dataset", "d", "--model", "m"]
    easy = ["--nights", "1", "--relabellings", "99", "--block-images", "1", "--least-images", "10"]

    def ran(*words: str) -> str:
        done = CliRunner().invoke(cli, [*words, *options[: 2 if "query" in words else 6]])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "would test what embed-" in ran("drift", "--dry-run")
    assert combined(changed) == []
    doubted = "are not valid"
    assert doubted not in ran("query", "anomalies", "--model", "m", "--flagged")
    told = ran("drift", "--night", NIGHTS[0], *easy)
    assert "drift was found (p = 0.0" in told
    assert doubted in told
    assert "brightness" in told
    again = json.loads(ran("drift", "--json", *easy))
    assert again["job_ids"] == []
    assert again["rows"][0]["drifted"] is True
    assert f"nothing has come since the last judgement, of {NIGHTS[0]}: drift was found" in ran(
        "drift", *easy
    )
    shown = ran("query", "anomalies", "--model", "m", "--flagged", "--night", NIGHTS[0])
    assert "are not valid (calibration_valid): drift was found" in shown
    of_all = ["query", "anomalies", "--model", "m", "--top", "5"]
    assert doubted in ran(*of_all, "--night", NIGHTS[0])
    assert doubted not in ran(*of_all, "--night", "2026-01-01")
    rows = json.loads(ran(*of_all, "--night", NIGHTS[0], "--json"))
    assert [row["calibration_valid"] for row in rows] == [False] * 5
