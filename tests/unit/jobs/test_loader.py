from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from jobs.loader import ImageSet, batches, epoch_order, epoch_shares, pixels_of, rank_share


@given(st.integers(0, 500), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide(rows, seed, epoch) -> None:
    order = epoch_order(rows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(rows))
    assert np.array_equal(order, epoch_order(rows, seed=seed, epoch=epoch))
    if rows > 50:
        assert not np.array_equal(order, epoch_order(rows, seed=seed, epoch=epoch + 1))
        assert not np.array_equal(order, epoch_order(rows, seed=seed + 1, epoch=epoch))


@given(st.integers(0, 300), st.integers(1, 9))
def test_shares_split_a_batch_without_gap_or_overlap(count: int, world_size: int) -> None:
    shares = [rank_share(count, rank, world_size) for rank in range(world_size)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 5))
def test_every_image_is_used_once_an_epoch_in_the_same_batches_for_any_worker_count(
    rows: int, batch_size: int, world_size: int
) -> None:
    pixels = np.arange(rows, dtype=np.uint8).reshape(-1, 1, 1, 1)
    images = ImageSet(pixels, [str(i) for i in range(rows)])

    def run(workers: int) -> list[list[int]]:
        ranks = [
            list(
                epoch_shares(
                    images,
                    batch_size=batch_size,
                    seed=1,
                    epoch=2,
                    rank=rank,
                    world_size=workers,
                )
            )
            for rank in range(workers)
        ]
        assert {len(shares) for shares in ranks} == {batches(rows, batch_size)}
        for step in zip(*ranks, strict=True):
            assert {s.global_count for s in step} == {sum(len(s.pixels_NHWC) for s in step)}
        return [
            [int(v) for share in step for v in share.pixels_NHWC.reshape(-1)]
            for step in zip(*ranks, strict=True)
        ]

    alone = run(1)
    assert run(world_size) == alone
    assert sorted(v for batch in alone for v in batch) == list(range(rows))


def test_pixels_come_back_from_chunked_sliced_and_plain_binary_columns() -> None:
    data = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), dtype=np.uint8)
    rows = [image.tobytes() for image in data]
    fixed = pa.array(rows, pa.binary(6))
    chunked = pa.chunked_array([fixed.slice(0, 3), fixed.slice(3)])
    for column in (fixed, chunked, pa.array(rows, pa.binary())):
        assert np.array_equal(pixels_of(column, (2, 3, 1)), data)
    assert np.array_equal(pixels_of(fixed.slice(2, 3), (2, 3, 1)), data[2:5])
