"""What embed cannot do it says at once, and publishes nothing; late workers change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.embed.worker import EmbedWorker
from jobs.engine import records, runner
from jobs.errors import LatentlakeError
from jobs.lake.paths import LakePaths
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.schemas.model import MODEL_TABLES
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.helpers import write_source
from tests.inline import InlineEmbed, InlineStage


def bundle_folder(lake: LakePaths) -> Path:
    return Path(lake.bundle(*catalog.resolve_model(lake, "m")).removeprefix("file://"))


def tables(lake: LakePaths) -> dict[str, pa.Table]:
    names = ("embeddings", *MODEL_TABLES)
    return {name: views.sql(lake, f"SELECT * FROM {name} ORDER BY ALL") for name in names}


def refused(lake: LakePaths, match: str, **settings) -> None:
    with pytest.raises(LatentlakeError, match=match):
        runner.run(InlineEmbed(lake, **settings))
    assert all(not len(table) for table in tables(lake).values())
    assert not [run for run in catalog.runs(lake) if run["job"] == "embed"]


@pytest.mark.parametrize("name", ["model-*.safetensors", "calibration-*.parquet"])
def test_a_bundle_without_a_file_or_with_half_of_it(trained: LakePaths, name: str) -> None:
    (file,) = bundle_folder(trained).glob(name)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(trained, f"{file.name} does not hold what was written there; train again")
    file.unlink()
    refused(trained, file.name)
    # Whole again, the job that was left behind is finished.
    file.write_bytes(data)
    assert runner.run(InlineEmbed(trained)).counts["embedded"] == 600


def test_a_bundle_that_says_half_of_what_it_is(trained: LakePaths) -> None:
    about = bundle_folder(trained) / "model.json"
    about.write_bytes(about.read_bytes()[:100])
    refused(trained, "model.json is damaged")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1}', '{"format": "one"}', '"no"'])
def test_a_bundle_whose_json_is_not_ours(trained: LakePaths, text: str) -> None:
    (bundle_folder(trained) / "model.json").write_text(text)
    refused(trained, "model.json is damaged, or not ours")


def test_a_bundle_of_a_newer_release(trained: LakePaths) -> None:
    (bundle_folder(trained) / "model.json").write_text('{"format": 99}')
    refused(trained, "was written by a newer latentlake")


def test_an_alias_that_points_nowhere(trained: LakePaths) -> None:
    shutil.rmtree(bundle_folder(trained))
    refused(trained, "holds no complete bundle: model.json is missing")
    refused(trained, "unknown version or alias", model="m@best")


def test_images_of_another_size(trained: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "small" / "a.parquet", range(50))

    class Small(InlineStage):
        def __init__(self) -> None:
            super().__init__(trained, tmp_path / "small", height=14, width=14)
            self.target = "small"
            self.settings = self.settings.model_copy(update={"dataset": "small"})

    runner.run(Small())
    refused(trained, r"images of \(14, 14, 1\).*trained on \(28, 28, 1\)", dataset="small")


def test_a_snapshot_whose_files_were_removed(trained: LakePaths) -> None:
    root = Path(trained.dataset("d", "images").removeprefix("file://"))
    for shard in root.glob("*.parquet"):
        shard.unlink()
    with pytest.raises(LatentlakeError, match=r"\.parquet"):
        runner.run(InlineEmbed(trained))
    assert open_snapshot(trained.model("m", "embeddings")) is None
    assert not [run for run in catalog.runs(trained) if run["job"] == "embed"]


def test_a_worker_that_wakes_up_after_its_job_has_ended_changes_nothing(trained: LakePaths) -> None:
    embed = InlineEmbed(trained)
    plan = embed.plan()
    unit = plan.units[0]
    late = EmbedWorker(trained, plan.context)
    runner.run(embed)
    before = tables(trained)
    records.save_completion(trained, plan.job_id, late.execute(unit, "late"))
    assert all(tables(trained)[name].equals(table) for name, table in before.items())
    again = runner.run(InlineEmbed(trained, night="2026-01-02"))
    assert again.units == 0
    assert all(tables(trained)[name].equals(table) for name, table in before.items())
    folder = Path(trained.model("m", "embeddings").removeprefix("file://"))
    assert list(folder.rglob("*-late.parquet"))
    vacuum(trained, [], ["m"], keep_days=0, grace_s=0)
    assert not list(folder.rglob("*-late.parquet"))
    assert all(tables(trained)[name].equals(table) for name, table in before.items())
