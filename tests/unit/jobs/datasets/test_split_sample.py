"""Samples of a split: the same images always, each once, whatever files they lie in."""

from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.datasets.split_sample import packed, read_pieces, sample_of
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.inline import InlineCompact


def ids_of(lake: LakePaths, split: str, most: int) -> list[str]:
    images = catalog.images_snapshot(lake, "d")
    sample = sample_of(images, split, most)
    schema = pa.schema([images.schema.field("image_id")])
    parts = list(read_pieces(images.uri, sample.pieces, schema))
    assert sum(map(len, parts)) == len(sample)
    found = [image_id for part in parts for image_id in part["image_id"].to_pylist()]
    assert len(set(found)) == len(found)
    return sorted(found)


def test_a_sample_is_the_first_ids_of_the_split(staged: LakePaths) -> None:
    every = views.sql(staged, "SELECT image_id FROM images WHERE split = 'train'")
    expected = sorted(every["image_id"].to_pylist())
    assert sample_of(catalog.images_snapshot(staged, "d"), "train", 9).of == len(expected)
    for most in (1, 50, 333, 10_000):
        assert ids_of(staged, "train", most) == expected[:most]


def test_compaction_does_not_change_it(staged: LakePaths) -> None:
    before = ids_of(staged, "test", 10)
    assert runner.run(InlineCompact.of(staged)).counts["rows_merged"]
    assert ids_of(staged, "test", 10) == before


def test_a_split_that_is_not_there_is_empty(staged: LakePaths) -> None:
    found = sample_of(catalog.images_snapshot(staged, "d"), "none", 5)
    assert (len(found), found.of, found.pieces) == (0, 0, [])


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_packing_keeps_every_row_once_and_fills_each_group(rows: int) -> None:
    pieces = [("a", [0, 2, 5]), ("b", [1]), ("c", list(range(6)))]
    groups = packed(pieces, rows)
    flat = [(path, row) for group in groups for path, held in group for row in held]
    assert flat == [(path, row) for path, held in pieces for row in held]
    sizes = [sum(len(held) for _, held in group) for group in groups]
    assert all(size == rows for size in sizes[:-1])
    assert 0 < sizes[-1] <= rows
    assert packed([], rows) == []


def test_rows_of_a_file_come_with_where_they_lie(staged: LakePaths, monkeypatch) -> None:
    images = catalog.images_snapshot(staged, "d")
    path = images.paths()[0]
    schema = pa.schema([images.schema.field("image_id"), pa.field("later", pa.int64())])
    whole = next(images.read_each(["image_id"]))[1]["image_id"].to_pylist()
    monkeypatch.setattr("jobs.datasets.split_sample.ROW_GROUP_ROWS", 40)
    wanted = [0, 39, 40, 41, 170]
    parts = list(read_pieces(images.uri, [(path, wanted)], schema))
    assert len(parts) == 3  # no window of rows is read for nothing
    found = pa.concat_tables(parts)
    assert found["row"].to_pylist() == wanted
    assert found["image_id"].to_pylist() == [whole[row] for row in wanted]
    assert set(found["shard"].to_pylist()) == {path}
    assert found["later"].null_count == 5  # a column that a later release has added
