"""Resident and streamed loading: the same images in the global order, from any position."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.datasets.splits import Group, Split, find_splits, pixels_of
from jobs.engine import runner
from jobs.tables.catalog import images_snapshot
from jobs.train.data.loader import Loader, RankShare, Resident, Share, Streamed
from tests.helpers import image_bytes, write_files
from tests.inline import InlineStage
from tests.unit.jobs.train.data.test_sample_order import GROUPS, SMALL, global_rows, order_of

LOADERS = {"resident": Resident, "streamed": Streamed}


@dataclasses.dataclass(frozen=True)
class Made(Split):
    """Images of 1×1×4 whose bytes tell their group and row; every third is of another split."""

    def lying(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        told = np.full((group.rows + group.rows // 2, 2), 0xFFFF, np.uint16)
        kept = np.array([i for i in range(len(told)) if i % 3 != 2][: group.rows], np.int64)
        told[kept] = [[group.index, row] for row in range(group.rows)]
        return told.view(np.uint8).reshape(-1, 1, 1, 4), kept


def made(groups: list[int]) -> Made:
    return Made("train", (1, 1, 4), tuple(Group("", i, n) for i, n in enumerate(groups)))


def told(pixels: torch.Tensor) -> list[tuple[int, int]]:
    pairs = pixels.numpy().reshape(-1, 4).view(np.uint16).tolist()
    return [(group, row) for group, row in pairs]


def whole(shares: list[Share]) -> list[tuple[int, int]]:
    """The global batch that the ranks' shares make up."""
    places: dict[int, tuple[int, int]] = {}
    for share in shares:
        rows = told(share.pixels_NHWC)
        at = range(len(rows)) if share.positions is None else share.positions.tolist()
        assert len(rows) == len(at)
        assert not places.keys() & set(at)
        places |= dict(zip(at, rows, strict=True))
    assert {share.global_count for share in shares} == {len(places)}
    return [places[i] for i in range(len(places))]


@pytest.mark.parametrize("kind", LOADERS)
@given(
    groups=GROUPS,
    streams=SMALL,
    size=st.integers(1, 40),
    workers=st.integers(1, 5),
    epoch=st.integers(0, 2),
    position=st.floats(0, 1),
)
def test_any_ranks_from_any_position_give_the_global_order(
    kind, groups, streams, size, workers, epoch, position
) -> None:
    order = order_of(groups, streams)
    wanted = global_rows(order, epoch, size)
    first = int(position * len(wanted))
    loaders: list[Loader] = [
        LOADERS[kind](RankShare(made(groups), order, size, rank, workers))
        for rank in range(workers)
    ]
    steps = zip(*(loader.shares(epoch, first) for loader in loaders), strict=True)
    assert [whole(list(step)) for step in steps] == wanted[first:]


def test_epochs_of_one_loader_are_those_of_the_order() -> None:
    order = order_of([30, 5, 44])
    for kind in LOADERS.values():
        loader = kind(RankShare(made([30, 5, 44]), order, 16))
        for epoch in (0, 1, 5):
            assert [told(s.pixels_NHWC) for s in loader.shares(epoch)] == global_rows(
                order, epoch, 16
            )


def test_a_worker_reads_only_its_own_row_groups() -> None:
    read: list[int] = []

    class Watched(Made):
        def lying(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
            read.append(group.index)
            return super().lying(group)

    groups = [20] * 40
    split = Watched("train", (1, 1, 4), made(groups).groups)
    order = order_of(groups, streams=8)
    for kind in LOADERS.values():
        by_rank = []
        for rank in range(4):
            read.clear()
            list(kind(RankShare(split, order, 32, rank, 4)).shares(0))
            by_rank.append(set(read))
        assert sum(len(held) for held in by_rank) == 40


def test_streaming_holds_a_window_and_the_next_of_each_stream() -> None:
    held: list[int] = []

    class Counted(Made):
        def lying(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
            held.append(group.rows)
            return super().lying(group)

    groups = [50] * 200
    loader = Streamed(
        RankShare(Counted("train", (1, 1, 4), made(groups).groups), order_of(groups, 4, 400), 100)
    )
    shares = loader.shares(0)
    for number in range(1, 20):
        next(shares)
        # Windows of 100 rows: what is used up, the one at hand and the next one, and its rest.
        assert sum(held) <= number * 100 + 4 * (2 * 100 + 100)
    shares.close()


def test_a_fault_of_reading_reaches_the_loop() -> None:
    class Broken(Made):
        def lying(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
            raise OSError("gone")

    split = Broken("train", (1, 1, 4), made([10]).groups)
    with pytest.raises(OSError, match="gone"):
        list(Streamed(RankShare(split, order_of([10]), 4)).shares(0))


def test_splits_of_a_real_snapshot(lake, tmp_path) -> None:
    write_files(tmp_path / "s", {f"{n:03}.png": d for n, d in enumerate(image_bytes(range(300)))})
    runner.run(InlineStage(lake, tmp_path / "s", rows_per_unit=70))
    images = images_snapshot(lake, "d", None)
    rows = images.read(["image_id", "image", "split"])
    splits = find_splits(images.file_uris(), (28, 28, 1))
    assert set(splits) == {"train", "validation", "calibration", "test"}
    for name, split in splits.items():
        here = rows.filter(pa.array([value == name for value in rows["split"].to_pylist()]))
        wanted = dict(
            zip(here["image_id"].to_pylist(), pixels_of(here["image"], (28, 28, 1)), strict=True)
        )
        for world_size in (1, 3):
            found = {
                image_id: pixels
                for rank in range(world_size)
                for batch in split.batches(16, rank, world_size)
                for image_id, pixels in zip(batch.image_ids, batch.pixels_NHWC, strict=True)
            }
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[i], wanted[i]) for i in wanted)
        assert len(split) == len(wanted)
        assert [i for g in split.groups for i in split.ids(g)] == [
            i for batch in split.batches(1000) for i in batch.image_ids
        ]


def test_pixels_come_back_from_chunked_sliced_and_plain_binary_columns() -> None:
    data = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), dtype=np.uint8)
    rows = [image.tobytes() for image in data]
    fixed = pa.array(rows, pa.binary(6))
    chunked = pa.chunked_array([fixed.slice(0, 3), fixed.slice(3)])
    for column in (fixed, chunked, pa.array(rows, pa.binary())):
        assert np.array_equal(pixels_of(column, (2, 3, 1)), data)
    assert np.array_equal(pixels_of(fixed.slice(2, 3), (2, 3, 1)), data[2:5])
