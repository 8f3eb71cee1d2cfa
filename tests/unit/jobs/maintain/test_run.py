"""Compaction changes no row, vacuum removes nothing that anybody needs; cards tell the truth."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.cluster.settings import RaySettings
from jobs.datasets import card
from jobs.datasets.splits import pixels_of
from jobs.engine import records, runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.maintain.compact import SMALL_BYTES, TARGET_BYTES, merges
from jobs.maintain.run import maintain, maintained_text
from jobs.maintain.settings import MaintainSettings
from jobs.maintain.vacuum import vacuum
from jobs.query import views
from jobs.tables.delta import TableFile, open_snapshot
from jobs.tables.shards import shard_metadata
from tests.damaged import age
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage, Overtaken


def compact(lake: LakePaths, kind: str = "dataset", name: str = "d"):
    return runner.run(InlineCompact.of(lake, kind, name, "2026-01-09"))


def nights(lake: LakePaths, folder: Path, count: int = 4) -> None:
    for night in range(count):
        write_source(folder / f"{night}.parquet", range(40 * night, 40 * night + 50), broken=[45])
        runner.run(InlineStage(lake, folder, f"2026-01-0{night + 1}", rows_per_unit=25))


def rows(lake: LakePaths, table: str) -> pa.Table:
    order = {"images": "image_id", "embeddings": "image_id", "reconstructions": "image_id"}
    by = order.get(table, "source_uri, source_row")
    return views.sql(lake, f"SELECT * FROM {table} ORDER BY {by}")


@pytest.mark.slow
def test_compaction_merges_files_and_changes_no_row(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s")
    before = {name: rows(lake, name) for name in ("images", "sources", "quarantine")}
    count = {n: len(open_snapshot(lake.dataset("d", n)).paths()) for n in before}  # type: ignore[union-attr]
    assert count["images"] == 8
    report = compact(lake)
    assert report.counts["files_merged"] == sum(count.values())
    for name, table in before.items():
        assert rows(lake, name).equals(table)
        snapshot = open_snapshot(lake.dataset("d", name))
        assert snapshot is not None
        assert len(snapshot.paths()) == 1
    images = open_snapshot(lake.dataset("d", "images"))
    assert images is not None
    metadata = shard_metadata(images.file_uris()[0])
    assert json.loads(metadata["latentlake.shape"]) == [28, 28, 1]
    assert json.loads(metadata["latentlake.statistics"])["rows"] == len(before["images"])
    assert compact(lake).units == 0
    # Compaction is no work for the night after.
    assert runner.run(InlineStage(lake, tmp_path / "s", "2026-01-10")).units == 0


def test_compaction_of_a_model_is_no_work_for_embed(trained: LakePaths) -> None:
    runner.run(InlineEmbed(trained, reconstructions="all"))
    before = {name: rows(trained, name) for name in ("embeddings", "reconstructions")}
    assert compact(trained, "model", "m").counts["files_merged"] > 2
    for name, table in before.items():
        assert rows(trained, name).equals(table)
    compact(trained)
    assert runner.run(InlineEmbed(trained, reconstructions="all")).units == 0


def test_a_merged_file_lets_a_look_up_read_one_row_group(trained: LakePaths, monkeypatch) -> None:
    monkeypatch.setattr("jobs.tables.shards.ROW_GROUP_ROWS", 100)
    runner.run(InlineEmbed(trained))
    assert compact(trained, "model", "m").counts["files_merged"] > 1
    snapshot = open_snapshot(trained.model("m", "embeddings"))
    assert snapshot is not None
    (uri,) = snapshot.file_uris()
    path = uri.removeprefix("file://")
    groups = pq.ParquetFile(path).metadata
    ends = [groups.row_group(g).column(0).statistics for g in range(groups.num_row_groups)]
    assert len(ends) == 6
    assert all(one.max < other.min for one, other in itertools.pairwise(ends))
    # Where ranges say that an id may be there, a filter says that it is not.
    (one,) = duckdb.sql(f"SELECT min(image_id) FROM '{path}'").fetchall()[0]
    stranger = one[:-4] + ("0000" if one[-4:] != "0000" else "1111")
    probe = f"SELECT bloom_filter_excludes FROM parquet_bloom_probe('{path}', 'image_id', ?)"
    assert not duckdb.sql(probe, params=[one]).fetchall()[0][0]
    assert duckdb.sql(probe, params=[stranger]).fetchall()[0][0]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, TARGET_BYTES)), max_size=30))
def test_merges_fill_files_of_one_partition(sizes: list[tuple[str, int]]) -> None:
    files = [TableFile(f"{i:03}", size, 1, {"p": p}) for i, (p, size) in enumerate(sizes)]
    groups = merges(files)
    merged = [file.path for group in groups for file in group]
    assert len(merged) == len(set(merged))
    for group in groups:
        assert len(group) > 1
        assert len({file.partition["p"] for file in group}) == 1
        assert sum(file.size for file in group) <= TARGET_BYTES
        assert all(file.size < SMALL_BYTES for file in group)
    # Doing it again gains little: of two neighbours left alone, one is large or both fill a file.
    left = [file for file in files if file.size < SMALL_BYTES and file.path not in merged]
    for one, other in itertools.pairwise(left):
        if one.partition == other.partition:
            assert one.size + other.size > SMALL_BYTES or len(groups) > 0


class OvertakenCompact(Overtaken, InlineCompact):
    pass


@pytest.mark.slow
def test_a_removal_in_mid_compaction_wins(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s")
    (tmp_path / "s" / "0.parquet").unlink()
    merging = OvertakenCompact.of(lake, night="2026-01-09")
    merging.rival = InlineStage(lake, tmp_path / "s", "2026-01-08", max_removed=1.0)
    runner.run(merging)
    wanted = LakePaths(lake.uri + "2")
    runner.run(InlineStage(wanted, tmp_path / "s"))
    ids = rows(wanted, "images")["image_id"]
    assert rows(lake, "images")["image_id"].equals(ids)


@pytest.mark.slow
def test_a_stage_job_overtaken_by_a_compaction_stages_the_same(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s", 2)
    (tmp_path / "s" / "0.parquet").unlink()
    write_source(tmp_path / "s" / "9.parquet", range(500, 540))

    class Late(InlineStage):
        first = True

        def settle(self, plan, completions, head):
            settled = super().settle(plan, completions, head)
            if self.first and not isinstance(settled, list):
                self.first = False
                compact(lake)
            return settled

    runner.run(Late(lake, tmp_path / "s", "2026-01-08", max_removed=1.0))
    wanted = LakePaths(lake.uri + "2")
    runner.run(InlineStage(wanted, tmp_path / "s"))
    assert rows(lake, "images")["image_id"].equals(rows(wanted, "images")["image_id"])


def files(lake: LakePaths) -> set[Path]:
    root = Path(lake.uri.removeprefix("file://"))
    return set(root.rglob("*.parquet"))


def test_vacuum_keeps_what_a_kept_snapshot_a_bundle_or_a_plan_needs(
    trained: LakePaths, tmp_path
) -> None:
    pinned = open_snapshot(trained.dataset("d", "images"))
    assert pinned is not None
    compact(trained)
    write_source(tmp_path / "s" / "x.parquet", range(700, 760))
    waiting = InlineStage(trained, tmp_path / "s", "2026-01-02")
    plan = records.save_plan(trained, waiting.plan())
    waiting.execute(plan, waiting.units(plan))  # written, not committed
    orphan = Path(trained.uri.removeprefix("file://")) / "datasets/d/images/orphan.parquet"
    orphan.write_bytes(b"x")
    fresh = orphan.with_name("fresh.parquet")
    age(tmp_path / "lake", 30)
    fresh.write_bytes(b"somebody is writing me")
    before = files(trained)
    done = vacuum(trained, ["d"], ["m"], keep_days=0.0, dry_run=True)
    assert files(trained) == before
    done = vacuum(trained, ["d"], ["m"], keep_days=0.0)
    gone = before - files(trained)
    assert orphan in gone
    assert done.files == len(gone)
    assert fresh.exists()
    # The bundle's snapshot still reads, and the waiting plan ends without doing its work again.
    assert pinned.read(["image_id"]) is not None
    again = InlineStage(trained, tmp_path / "s", "2026-01-02")
    report = runner.run(again)
    assert again.executed == []
    assert report.counts["staged"] == 60
    runner.run(InlineEmbed(trained))


def test_vacuum_removes_snapshots_that_are_too_old_and_only_those(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s", 2)
    old = open_snapshot(lake.dataset("d", "images"))
    assert old is not None
    compact(lake)
    age(tmp_path / "lake", 30)
    assert vacuum(lake, ["d"], [], keep_days=7.0).files == 0
    assert old.read(["image_id"]) is not None
    newest = rows(lake, "images")
    assert vacuum(lake, ["d"], [], keep_days=0.0).files > 0
    with pytest.raises(InputError, match="does not exist"):
        old.read(["image_id"])
    assert rows(lake, "images").equals(newest)


def test_the_remains_of_given_up_plans_are_swept(lake, tmp_path) -> None:
    write_source(tmp_path / "s" / "x.parquet", range(20))
    waiting = InlineStage(lake, tmp_path / "s")
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, waiting.units(plan))
    records.drop(lake, plan.job_id)
    (tmp_path / "lake" / "units" / plan.job_id / "commit-x.json").write_text(
        json.dumps({"files": {}, "counts": {}, "seconds": 0.0})
    )
    assert vacuum(lake, ["d"], [], keep_days=0.0).plans == 0
    age(tmp_path / "lake", 30)
    assert vacuum(lake, ["d"], [], keep_days=0.0).plans == 1
    assert not (tmp_path / "lake" / "units" / plan.job_id).exists()


def test_maintain_does_both_and_says_so(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s", 2)
    settings = MaintainSettings(keep_days=0.0)
    told = maintain(lake, settings, "2026-01-09", RaySettings(), dry_run=True)
    assert "would be merged into 3" in maintained_text(told)
    told = maintain(lake, settings, "2026-01-09", RaySettings(), compact_job=InlineCompact)
    assert "merged into 3" in maintained_text(told)
    with pytest.raises(InputError, match="unknown dataset 'x'; known: d"):
        maintain(lake, MaintainSettings(dataset="x"), "2026-01-09", RaySettings())


# Dataset cards


def test_a_card_tells_what_the_tables_hold(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s", 3)
    told = card.dataset_card(lake, "d")
    images = rows(lake, "images")
    pixels = pixels_of(images["image"], (28, 28, 1)).astype(np.float64)
    assert told["images"] == len(images)
    assert told["mean"][0] == pytest.approx(pixels.mean(), abs=1e-3)
    assert told["variance"][0] == pytest.approx(pixels.var(), abs=1e-3)
    for name, column in (("splits", "split"), ("labels", "label"), ("modes", "source_mode")):
        counts = images[column].value_counts().to_pylist()
        assert told[name] == {str(c["values"]): c["counts"] for c in counts}
    assert told["refused"] == {"truncated": 3}
    fates = views.sql(lake, "SELECT fate, count(*) AS n FROM sources GROUP BY 1").to_pylist()
    assert told["source_rows"] == {f["fate"]: f["n"] for f in fates}
    assert told["source_sizes"] == {"16x16": len(images)}
    assert told["source_widths"] == [28, 28]
    assert told["fit"] == "crop"
    text = card.card_text(told)
    assert f"{len(images):,} images of 28x28x1" in text


def test_each_snapshot_has_its_card_and_picture(lake, tmp_path) -> None:
    nights(lake, tmp_path / "s", 2)
    folder = tmp_path / "lake" / "datasets" / "d" / "cards"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000001.json", "00000001.png", "00000002.json", "00000002.png",
    ]  # fmt: skip
    first, second = (json.loads((folder / f"0000000{v}.json").read_text()) for v in (1, 2))
    assert first["images"] < second["images"]
    picture = Image.open(io.BytesIO((folder / "00000002.png").read_bytes()))
    assert np.asarray(picture).std() > 30
    # A card that a crash kept from being written comes with the next look.
    (folder / "00000002.json").unlink()
    assert card.dataset_card(lake, "d") == second
    assert card.dataset_card(lake, "d", 1) == first


def test_near_duplicates_are_counted(lake, tmp_path) -> None:
    import pyarrow.parquet as pq

    from tests.helpers import image_bytes

    first = Image.open(io.BytesIO(image_bytes([0])[0]))
    brighter = first.point(lambda value: min(255, value + 3))
    encoded = []
    for image, level in ((first, 1), (first, 9), (brighter, 6)):
        buffer = io.BytesIO()
        image.save(buffer, "png", compress_level=level)
        encoded.append(buffer.getvalue())
    pq.write_table(pa.table({"image": [*encoded, *image_bytes([5, 6])]}), tmp_path / "a.parquet")
    runner.run(InlineStage(lake, tmp_path / "a.parquet"))
    told = card.dataset_card(lake, "d")
    assert told["images"] == 5
    assert told["same_pixels"] == 1
    near = views.sql(
        lake,
        """SELECT count(*) AS n FROM images a JOIN images b ON a.image_id < b.image_id
           WHERE bit_count(xor(a.phash, b.phash)) < 10""",
    ).to_pylist()
    assert near == [{"n": 3}]  # the three versions of the first picture, and no other pair
