"""Drift: judged once whatever happens; anomalies say whether they can be believed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from flows.cli import cli
from jobs import catalog, drifts, job, records, views
from jobs.drift import DriftJob
from jobs.drop import DropJob
from jobs.errors import InputError
from jobs.job_report import JobReport
from jobs.judge_config import DriftSettings
from jobs.lake import Lake
from jobs.tables import Snapshot
from tests.helpers import image_bytes, labels, write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage, InlineTrain, Overtaken

NIGHTS = ("2026-01-02", "2026-01-03")
EASY = {"alpha": 0.05, "nights": 1, "relabellings": 99, "block_images": 1, "least_images": 10}
ALPHA = 0.6  # of embed: of so few images something has to be flagged

Change = Callable[[np.ndarray], np.ndarray]


def drift_job(lake: Lake, night: str = NIGHTS[0], **settings) -> DriftJob:
    told = {"dataset": "d", "model": "m"} | EASY | settings
    return DriftJob(lake, DriftSettings(**told), night)


def judge(lake: Lake, night: str = NIGHTS[0], **settings) -> JobReport:
    return job.run(drift_job(lake, night, **settings))


class OvertakenDrift(Overtaken, DriftJob):
    @classmethod
    def of(cls, lake: Lake, rival: job.Job, **settings) -> OvertakenDrift:
        made = cls(lake, drift_job(lake, **settings).settings, NIGHTS[0])
        made.rival = rival
        return made


def negative(x_HW: np.ndarray) -> np.ndarray:
    return 255 - x_HW


def same(x_HW: np.ndarray) -> np.ndarray:
    return x_HW


def write_changed(path: Path, rows: Iterable[int], change: Change) -> None:
    rows = list(rows)
    images = []
    for data in image_bytes(rows):
        buffer = io.BytesIO()
        Image.fromarray(change(np.array(Image.open(io.BytesIO(data))))).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": ""})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels(rows)}), path)


def arrive(
    lake: Lake, folder: Path, rows: Iterable[int], change: Change, night: str = NIGHTS[0], **how
) -> None:
    write_changed(folder / "more" / f"{night}.parquet", rows, change)
    job.run(InlineStage(lake, folder / "more", night=night))
    job.run(InlineEmbed(lake, night=night, alpha=ALPHA, **how))


@pytest.fixture(scope="session")
def first_night(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(trained_once / "lake", folder / "lake")
    job.run(InlineEmbed(Lake((folder / "lake").as_uri()), alpha=ALPHA))
    return folder


@pytest.fixture
def embedded(first_night: Path, tmp_path: Path) -> Lake:
    shutil.copytree(first_night / "lake", tmp_path / "lake")
    return Lake((tmp_path / "lake").as_uri())


@pytest.fixture(scope="session")
def changed_once(first_night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(first_night / "lake", folder / "lake")
    arrive(Lake((folder / "lake").as_uri()), folder, range(600, 700), negative)
    return folder


@pytest.fixture
def changed(changed_once: Path, tmp_path: Path) -> Lake:
    """A second night of the same things as negatives, embedded."""
    shutil.copytree(changed_once / "lake", tmp_path / "lake")
    shutil.copytree(changed_once / "more", tmp_path / "more")
    return Lake((tmp_path / "lake").as_uri())


def version(lake: Lake) -> str:
    return catalog.resolve_model(lake, "m")[1]


def rows_of(lake: Lake, name: str, order: str) -> pa.Table:
    return views.sql(lake, f"SELECT * FROM {name} ORDER BY {order}")


def combined(lake: Lake) -> list[dict]:
    return drifts.judgements(lake, "m", version(lake), "d")


def held_out(lake: Lake) -> int:
    found = views.sql(lake, "SELECT count(*) AS n FROM embeddings WHERE model_split = 'test'")
    return found["n"][0].as_py()


def believed(lake: Lake, table: str) -> dict[str, set[bool]]:
    """By night."""
    found: dict[str, set[bool]] = {}
    for row in rows_of(lake, table, "night").to_pylist():
        found.setdefault(row["night"], set()).add(row["calibration_valid"])
    return found


def test_a_changed_camera_is_found_and_its_anomalies_are_not_believed(changed: Lake) -> None:
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
    assert drifts.drift_found(changed, "m", version(changed), "d")


def test_a_night_like_the_others_marks_nothing(embedded: Lake, tmp_path: Path) -> None:
    arrive(embedded, tmp_path, range(600, 700), same)
    before = {name: rows_of(embedded, name, "night") for name in ("anomalies", "batches")}
    report = judge(embedded)
    assert report.counts["drifted"] is False
    assert report.counts["marked"] == 0
    assert all(rows_of(embedded, name, "night").equals(held) for name, held in before.items())
    assert not drifts.drift_found(embedded, "m", version(embedded), "d")


def test_the_table_tells_where_the_change_lies(changed: Lake) -> None:
    judge(changed)
    rows = drifts.latest(changed, "m", version(changed), "d")
    assert rows == drifts.latest(changed, "m", version(changed), "d", NIGHTS[0])
    assert drifts.latest(changed, "m", version(changed), "d", NIGHTS[1]) == []
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


def test_what_was_judged_is_not_judged_again(changed: Lake) -> None:
    first = judge(changed)
    assert first.units > 0
    again = judge(changed, NIGHTS[1], alpha=0.04)
    assert again.job_ids == []
    assert len(combined(changed)) == 1
    assert judge(changed, NIGHTS[1]).units == 0


def test_rows_of_another_version_are_left_alone(changed: Lake) -> None:
    job.run(InlineTrain(changed, night=NIGHTS[0], epochs=1, alias="other"))
    job.run(InlineEmbed(changed, night=NIGHTS[0], model="m@other", alpha=ALPHA))
    other = catalog.resolve_model(changed, "m@other")[1]
    # It was trained on the negatives too: they are no arrivals of it.
    assert judge(changed, model="m@other").job_ids == []
    of_other = [
        r for r in rows_of(changed, "batches", "night").to_pylist() if r["model_version"] == other
    ]
    assert judge(changed).counts["drifted"]
    after = rows_of(changed, "batches", "night").to_pylist()
    assert [r for r in after if r["model_version"] == other] == of_other
    assert drifts.latest(changed, "m", other, "d") == []


def test_nights_too_small_to_test_are_tested_together(embedded: Lake, tmp_path: Path) -> None:
    arrive(embedded, tmp_path, range(600, 606), negative)
    report = judge(embedded)
    assert report.counts["drifted"] is None
    assert report.counts["p_value"] is None
    assert "Not tested: 6 images have arrived" in report.counts["note"]
    assert judge(embedded).job_ids == []  # told once
    assert not drifts.drift_found(embedded, "m", version(embedded), "d")
    arrive(embedded, tmp_path, range(606, 612), negative, NIGHTS[1])
    report = judge(embedded, NIGHTS[1])
    assert report.counts["arrivals"] == 12
    assert report.counts["drifted"]
    assert [row["sequence"] for row in combined(embedded)] == [1, 2]
    assert len(combined(embedded)[1]["embed_jobs"]) == 2
    held = believed(embedded, "batches")
    assert held[NIGHTS[0]] == held[NIGHTS[1]] == {False}
    assert held["2026-01-01"] == {True}


def test_images_that_both_sides_have_are_left_out(embedded: Lake, tmp_path: Path) -> None:
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


def test_the_largest_sample_is_what_the_rule_says(changed: Lake) -> None:
    assert judge(changed, max_images=50).counts["arrivals"] == 50


@pytest.mark.parametrize("name", ["reconstructions", "anomalies", "batches", "drift"])
def test_a_crash_between_two_tables_is_made_good(changed: Lake, monkeypatch, name: str) -> None:
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


def test_of_two_at_once_one_judges(changed: Lake) -> None:
    rival = drift_job(changed, NIGHTS[1], seed=7)
    report = job.run(OvertakenDrift.of(changed, rival))
    assert report.job_ids == []
    assert [row["night"] for row in combined(changed)] == [NIGHTS[1]]
    assert believed(changed, "anomalies")[NIGHTS[0]] == {False}


def test_an_embed_meanwhile_is_judged_next(changed: Lake, tmp_path: Path) -> None:
    write_changed(tmp_path / "more" / "late.parquet", range(700, 760), negative)
    job.run(InlineStage(changed, tmp_path / "more", night=NIGHTS[1]))
    rival = InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA)
    job.run(OvertakenDrift.of(changed, rival))
    ids = rows_of(changed, "anomalies", "image_id")["image_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert believed(changed, "batches")[NIGHTS[1]] == {True}
    report = judge(changed, NIGHTS[1])
    assert report.counts["arrivals"] == 60
    assert believed(changed, "batches")[NIGHTS[1]] == {False}


def test_a_compaction_meanwhile_loses_nothing(changed: Lake) -> None:
    before = rows_of(changed, "anomalies", "batch, rank").drop_columns(["calibration_valid"])
    compaction = InlineCompact.of(changed, "model", "m", NIGHTS[1])
    job.run(OvertakenDrift.of(changed, compaction))
    assert compaction.executed
    after = rows_of(changed, "anomalies", "batch, rank")
    assert after.drop_columns(["calibration_valid"]).equals(before)
    assert believed(changed, "batches") == {"2026-01-01": {True}, NIGHTS[0]: {False}}


def test_a_compaction_that_drift_overtakes_loses_nothing(changed: Lake) -> None:
    class OvertakenCompact(Overtaken, InlineCompact):
        pass

    compaction = OvertakenCompact.of(changed, "model", "m", NIGHTS[1])
    compaction.rival = drift_job(changed)
    job.run(compaction)
    assert believed(changed, "batches") == {"2026-01-01": {True}, NIGHTS[0]: {False}}
    assert len(rows_of(changed, "batches", "batch")) == 2


def test_images_that_are_embedded_again_are_judged_again(changed: Lake) -> None:
    """Their new batch says that its p-values hold, and is not to be believed either."""
    judge(changed)
    job.run(InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA, redo=True))
    assert believed(changed, "batches") == {NIGHTS[1]: {True}}
    assert judge(changed, NIGHTS[1]).counts["drifted"]
    assert believed(changed, "batches") == {NIGHTS[1]: {False}}


def test_images_that_are_embedded_again_meanwhile_are_judged_as_they_are(changed: Lake) -> None:
    rival = InlineEmbed(changed, night=NIGHTS[1], alpha=ALPHA, redo=True)
    report = job.run(OvertakenDrift.of(changed, rival))
    assert report.counts["drifted"]
    assert believed(changed, "batches") == {NIGHTS[1]: {False}}
    assert len(combined(changed)) == 1


def test_a_plan_whose_embeddings_were_dropped_is_given_up(changed: Lake, monkeypatch) -> None:
    monkeypatch.setattr(DriftJob, "execute", _die)
    with pytest.raises(KeyboardInterrupt):
        judge(changed)
    monkeypatch.undo()
    job.run(DropJob(changed, f"m@{version(changed)}", None, NIGHTS[1]))
    report = judge(changed, NIGHTS[1])
    assert report.counts["drifted"] is None
    assert "has embedded no images" in report.counts["note"]
    assert judge(changed, NIGHTS[1]).job_ids == []


def _die(*arguments) -> None:
    raise KeyboardInterrupt


def test_a_model_that_has_embedded_nothing(trained: Lake) -> None:
    report = judge(trained)
    assert report.counts["drifted"] is None
    assert "has embedded no images of the dataset yet" in report.counts["note"]
    assert len(drifts.latest(trained, "m", version(trained), "d")) == 1
    assert judge(trained).job_ids == []


def test_a_model_without_arrivals_has_nothing_to_do(embedded: Lake) -> None:
    assert judge(embedded).job_ids == []
    assert drifts.latest(embedded, "m", version(embedded), "d") == []
    assert not drifts.drift_found(embedded, "m", version(embedded), "d")


def test_arrivals_without_scores_are_tested_by_the_rest(embedded: Lake, tmp_path: Path) -> None:
    arrive(embedded, tmp_path, range(600, 700), negative, scores="none")
    report = judge(embedded)
    assert report.counts["drifted"]
    assert "left out, since not every image has them" in report.counts["note"]
    rows = drifts.latest(embedded, "m", version(embedded), "d")
    assert {row["sample"] for row in rows} == {None, "embeddings", "pixels", "source"}


def test_rows_of_an_older_release_are_told(changed: Lake, monkeypatch) -> None:
    monkeypatch.setattr("jobs.drift_samples.UNKNOWN", "test")
    assert "embedded by an older release" in judge(changed).counts["note"]


def test_too_few_blocks_are_told(changed: Lake) -> None:
    report = judge(changed, block_images=16, nights=10, relabellings=999)
    assert "blocks of arrivals" in report.counts["note"]
    assert "smaller blocks (--block-images)" in report.counts["note"]
    assert report.counts["drifted"] is None


@pytest.mark.parametrize("together", [1, 2])
def test_of_neighbours_no_more_are_taken_than_arrived(
    embedded: Lake, tmp_path: Path, together: int
) -> None:
    """More would alarm too often: see test_drift_decision."""
    arrive(embedded, tmp_path, range(600, 620), negative)
    counts = judge(embedded, block_images=together).counts
    assert counts["drifted"] is True
    assert held_out(embedded) > 20
    assert counts["reference"] == (20 if together == 2 else held_out(embedded))


def test_blocks_by_a_column(changed: Lake) -> None:
    """Ten labels a side: 92,378 ways to relabel them."""
    with pytest.raises(InputError, match="no column 'camera' to make blocks by; it has job_id, l"):
        judge(changed, block_by="camera")
    assert judge(changed, block_by="label").counts["drifted"] is True


def test_refusals_alone_can_be_drift(embedded: Lake, tmp_path: Path) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 1000), broken=range(0, 400, 4))
    job.run(InlineStage(embedded, tmp_path / "more", night=NIGHTS[0], max_refused=0.5))
    job.run(InlineEmbed(embedded, night=NIGHTS[0], alpha=ALPHA))
    report = judge(embedded, block_images=4)
    (row,) = [
        r for r in drifts.latest(embedded, "m", version(embedded), "d") if r["test"] == "fisher"
    ]
    assert row["of"] == "refused"
    assert row["effect"] > 0.9
    assert row["p_value"] < 1e-20
    assert report.counts["drifted"] is True


def test_the_command_says_what_was_found(changed: Lake) -> None:
    options = ["--lake", changed.uri, "--dataset", "d", "--model", "m"]
    easy = ["--nights", "1", "--relabellings", "99", "--block-images", "1", "--least-images", "10"]

    def ran(*words: str) -> str:
        done = CliRunner().invoke(cli, [*words, *options[: 2 if "query" in words else 6]])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "would test what embed-" in ran("drift", "--dry-run")
    assert combined(changed) == []
    doubted = "cannot be believed"
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
    assert "cannot be believed (calibration_valid): drift was found" in shown
    of_all = ["query", "anomalies", "--model", "m", "--top", "5"]
    assert doubted in ran(*of_all, "--night", NIGHTS[0])
    assert doubted not in ran(*of_all, "--night", "2026-01-01")
    rows = json.loads(ran(*of_all, "--night", NIGHTS[0], "--json"))
    assert [row["calibration_valid"] for row in rows] == [False] * 5
