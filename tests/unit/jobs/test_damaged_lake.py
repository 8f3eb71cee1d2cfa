"""What was cut off in a lake, or lies there beside it, blocks nothing else."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from flows.inventory import inventory, inventory_text
from jobs.bundles import bundle as bundles
from jobs.engine import records, runner
from jobs.errors import InputError, LatentlakeError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import local_path
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.train import checkpoints
from tests.damaged import age, bundle_of, commit_record, put, tree, worked
from tests.helpers import labels_of, staged_labels, write_source
from tests.inline import InlineEmbed, InlineStage

DAMAGES = [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b'{"job": 1}']


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["plan.json", "units.json", "completions/*.json"])
def test_a_record_that_was_cut_off_counts_as_not_there(
    lake: LakePaths, source: Path, what: str, damage
) -> None:
    root = worked(lake, source.parent)
    file = sorted(root.glob(f"units/*/{what}"))[0]
    file.write_bytes(damage(file.read_bytes()))
    again = InlineStage(lake, source.parent)
    runner.run(again)
    assert len(again.executed) == (1 if "completions" in what else 0)
    assert staged_labels(lake) == labels_of(range(300))
    assert not list(root.glob("units/*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_one_job_stops_no_other(
    lake: LakePaths, source: Path, tmp_path: Path, damage
) -> None:
    waiting = InlineStage(lake, source.parent, dataset="other")
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    for file in (root / "units" / plan.job_id).rglob("*.json"):
        file.write_bytes(damage(file.read_bytes()))
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))
    assert vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0).files == 0
    assert staged_labels(lake) == labels_of(range(300))


WRONG = [
    {"kind": "rewrite"},
    {"kind": "closing"},
    {"kind": "correction"},
    {"kind": "correction", "details": {"of": "u", "generation": "x"}},
    {"details": {"of": "u"}},
    {"kind": "nothing"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_completion_that_is_not_of_its_unit_costs_no_row(
    lake: LakePaths, source: Path, wrong: dict[str, object]
) -> None:
    waiting = InlineStage(lake, source.parent)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    root = local_path(lake.uri)
    assert root is not None
    file = min((root / "units" / plan.job_id / "completions").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    report = runner.run(InlineStage(lake, source.parent))
    assert report.job_ids == [plan.job_id]
    assert report.units == 1  # done again
    assert staged_labels(lake) == labels_of(range(300))


def test_a_damaged_commit_record_keeps_vacuum_from_its_dataset(
    lake: LakePaths, half_done: Path, source: Path
) -> None:
    """Its files are nobody else's yet: they may be all that is left of the night."""
    record = commit_record(half_done)
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    before = {name for name in tree(half_done) if name.endswith(".parquet")}
    assert vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0).files == 0
    assert {name for name in tree(half_done) if name.endswith(".parquet")} == before
    with pytest.raises(InputError, match=f"{record.name} is damaged"):
        runner.run(InlineStage(lake, source.parent))
    record.write_bytes(whole)
    runner.run(InlineStage(lake, source.parent))
    assert staged_labels(lake) == labels_of(range(300))


def test_a_bundle_that_cannot_be_read_keeps_the_images_that_it_may_need(
    trained: LakePaths, tmp_path: Path
) -> None:
    """It is copied back, perhaps: until then nobody knows which those are."""
    write_source(tmp_path / "s" / "a.parquet", range(100))
    runner.run(InlineStage(trained, tmp_path / "s", night="2026-01-02", max_removed=1.0))
    root = local_path(trained.uri)
    assert root is not None
    file = bundle_of(trained)
    whole = file.read_bytes()
    for broken in (b"", b'{"format": 2}'):
        file.write_bytes(broken)
        before = {name for name in tree(root) if name.endswith(".parquet")}
        assert vacuum(trained, ["d"], ["m"], keep_days=0.0, grace_s=0.0).files == 0
        assert {name for name in tree(root) if name.endswith(".parquet")} == before
    about = json.loads(whole)
    file.write_text(json.dumps(put_into(about, "data.images_version", 10**12)))
    vacuum(trained, ["d"], ["m"], keep_days=0.0, grace_s=0.0)


def put_into(about: dict, path: str, value) -> dict:
    put(about, path, value)
    return about


def test_a_moved_lake_of_an_older_release_is_maintained(
    lake: LakePaths, source: Path, tmp_path: Path
) -> None:
    """What a plan that was given up left there names the place that the lake had."""
    runner.run(InlineStage(lake, source.parent))
    root = local_path(lake.uri)
    assert root is not None
    left = root / "units" / "stage-0123456789abcdef"
    left.mkdir(parents=True)
    record = {"files": {"file:///old/lake/datasets/d/images": []}, "counts": {}, "seconds": 1.0}
    (left / "commit-x.json").write_text(json.dumps(record))
    age(root, 2)
    assert vacuum(lake, ["d"], [], keep_days=0.0).plans == 1
    assert not left.exists()


def test_folders_that_we_would_not_write_stop_nothing(lake: LakePaths, source: Path) -> None:
    runner.run(InlineStage(lake, source.parent))
    root = local_path(lake.uri)
    assert root is not None
    for name in ("datasets/a#b", "models/.DS%20", "units/stage-%20x", "units/*"):
        (root / name).mkdir(parents=True)
    (root / "datasets/d/images/*.parquet").write_bytes(b"x")
    assert [one["dataset"] for one in inventory(lake)["datasets"]] == ["d"]
    assert runner.run(InlineStage(lake, source.parent)).units == 0
    vacuum(lake, ["d"], [], keep_days=0.0, grace_s=0.0)
    assert staged_labels(lake) == labels_of(range(300))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_was_cut_off_gives_way_to_the_one_before_it(
    tmp_path: Path, damage
) -> None:
    saver = checkpoints.Saver(tmp_path.as_uri(), "a", 2, pytest.fail)
    for step in (1, 2):
        saver.save(checkpoints.Position(step=step), {"w": torch.zeros(1)}, None)
        while saver.busy:
            time.sleep(0.01)
    newest = checkpoints.newest(tmp_path.as_uri())
    assert newest == "step-0000000002.json"
    file = tmp_path / newest
    file.write_bytes(damage(file.read_bytes()))
    found = checkpoints.newest(tmp_path.as_uri())
    assert found == "step-0000000001.json"
    assert checkpoints.load(tmp_path.as_uri(), found).position.step == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_bundle_costs_its_model_a_line(trained: LakePaths, damage) -> None:
    root = local_path(trained.uri)
    assert root is not None
    shutil.copytree(root / "models" / "m", root / "models" / "n")
    file = bundle_of(trained)
    file.write_bytes(damage(file.read_bytes()))
    found = inventory(trained)
    assert [row["dataset"] for row in found["models"]] == [None, "d"]
    assert "m " in inventory_text(found)
    vacuum(trained, ["d"], ["m", "n"], keep_days=0.0, grace_s=0.0)
    assert bundles.load(trained, "n", file.parent.name).model == "n"


def damaged_shard(root: Path, table: str) -> Path:
    file = sorted((root / table).rglob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:-20])
    return file


def test_a_damaged_shard_of_images_is_named_and_may_be_copied_back(trained: LakePaths) -> None:
    root = local_path(trained.uri)
    assert root is not None
    (file, *_) = sorted((root / "datasets/d/images").glob("*.parquet"))
    whole = file.read_bytes()
    damaged_shard(root, "datasets/d/images")
    with pytest.raises(LatentlakeError, match=f"cannot read {file.as_uri()}"):
        runner.run(InlineEmbed(trained))
    file.write_bytes(whole)
    assert runner.run(InlineEmbed(trained)).counts["embedded"] == 600


def test_a_damaged_shard_of_embeddings_is_named_and_made_again(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained))
    root = local_path(trained.uri)
    assert root is not None
    before = views.sql(trained, "SELECT image_id, neg_elbo FROM embeddings ORDER BY 1")
    file = damaged_shard(root, "models/m/embeddings")
    with pytest.raises(InputError, match=file.name):
        views.sql(trained, "SELECT count(neg_elbo) FROM embeddings")
    assert runner.run(InlineEmbed(trained, redo=True)).counts["embedded"] == 600
    after = views.sql(trained, "SELECT image_id, neg_elbo FROM embeddings ORDER BY 1")
    assert after.equals(before)
