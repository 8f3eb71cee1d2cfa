"""The global order: a permutation, the same for any workers, from any position."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jobs.train.data.sample_order import Order, rank_share

GROUPS = st.lists(st.integers(0, 40), max_size=12)
SMALL = st.integers(1, 9)


def order_of(group_rows: list[int], streams: int = 4, window_rows: int = 30, seed: int = 0):
    return Order(group_rows=tuple(group_rows), seed=seed, streams=streams, window_rows=window_rows)


def global_rows(order: Order, epoch: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """By batch, the (group, row) of every place: by the definition, one row at a time."""
    streams = [
        [
            row
            for window in order.windows(stream, epoch)
            for laid in [[(p.group, r) for p in window.pieces for r in range(p.start, p.stop)]]
            for row in [laid[i] for i in window.order]
        ]
        for stream in range(order.streams)
    ]
    flat = [
        stream[depth]
        for depth in range(max(map(len, streams), default=0))
        for stream in streams
        if depth < len(stream)
    ]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


@given(GROUPS, SMALL, st.integers(1, 200), st.integers(0, 3), st.integers(0, 3))
def test_every_row_is_used_once_an_epoch(groups, streams, window, seed, epoch) -> None:
    order = order_of(groups, streams, window, seed)
    rows = [row for batch in global_rows(order, epoch, 7) for row in batch]
    assert Counter(rows) == Counter((g, r) for g, n in enumerate(groups) for r in range(n))
    lengths = [order.stream_rows(s) for s in range(streams)]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == [sum(p.rows for p in order.pieces(s)) for s in range(streams)]


@given(GROUPS, SMALL, st.integers(1, 30), SMALL)
def test_what_ranks_take_is_the_batch_whatever_their_number(groups, streams, size, workers) -> None:
    order = order_of(groups, streams)
    depths: Counter[int] = Counter()
    assert order.batches(size) == -(-sum(groups) // size)
    for batch in range(order.batches(size)):
        for stream in range(streams):
            assert order.depth(batch, size, stream) == depths[stream]
        shares = [
            order.take(batch, size, rank_share(streams, rank, workers)) for rank in range(workers)
        ]
        places = np.concatenate([share.positions for share in shares])
        count = min(size, order.rows - batch * size)
        assert sorted(places.tolist()) == list(range(count))
        whole = order.take(batch, size, slice(0, streams))
        assert whole.positions.tolist() == list(range(count))
        for share in shares:
            assert np.array_equal(share.streams, whole.streams[share.positions])
            assert np.array_equal(share.depths, whole.depths[share.positions])
        for stream, depth in zip(whole.streams.tolist(), whole.depths.tolist(), strict=True):
            assert depth == depths[stream]
            depths[stream] += 1
    assert depths == Counter({s: n for s in range(streams) if (n := order.stream_rows(s))})


def test_seed_and_epoch_decide_and_nothing_else_does() -> None:
    order = order_of([50, 60, 70, 10, 90])
    first = global_rows(order, 0, 20)
    assert first == global_rows(order_of([50, 60, 70, 10, 90]), 0, 20)
    assert first != global_rows(order, 1, 20)
    assert first != global_rows(order_of([50, 60, 70, 10, 90], seed=1), 0, 20)
    # A stream's pieces are its own in every epoch, so that a worker reads only what it keeps.
    assert order.pieces(2) == order_of([50, 60, 70, 10, 90]).pieces(2)


def test_batches_are_mixed() -> None:
    """Rows that lie together, of one class say, are spread over the epoch."""
    order = order_of([1000] * 16, streams=8, window_rows=4000)
    for batch in global_rows(order, 3, 256):
        groups = Counter(group for group, _ in batch)
        assert len(groups) >= 8
        assert max(groups.values()) <= 256 / 4
    first, second = ([r for b in global_rows(order, e, 256) for r in b] for e in (0, 1))
    place = {row: i for i, row in enumerate(second)}
    moved = np.array([place[row] for row in first])
    assert abs(np.corrcoef(np.arange(len(moved)), moved)[0, 1]) < 0.2


@given(st.integers(0, 300), SMALL)
def test_shares_split_without_gap_or_overlap(count: int, world_size: int) -> None:
    shares = [rank_share(count, rank, world_size) for rank in range(world_size)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
