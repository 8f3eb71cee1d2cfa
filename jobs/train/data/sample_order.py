"""The global sample order of training: a pure function of (snapshot, seed, epoch).

The rows of a split are dealt, row group by row group, over a fixed number of streams of equal
length. In each epoch a stream takes its row groups in another order and shuffles rows within
windows of a few of them; the global order takes one row of each stream in turn. How many workers
there are decides only who reads which streams, so that order, batches and noise belong to nobody.

Needs numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

_DEAL = 0  # epochs count from 1 in what a generator is keyed by


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a split, counted within one row group."""

    group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Count its rows."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Window:
    """Pieces that are shuffled together: `order` permutes their rows, laid end to end."""

    pieces: tuple[Piece, ...]
    order: np.ndarray


@dataclasses.dataclass(frozen=True)
class TakenRows:
    """A rank's part of one global batch, (n,) each: place in the batch, stream, row of that."""

    positions: np.ndarray
    streams: np.ndarray
    depths: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a split's rows in every epoch.

    group_rows: the split's rows in each row group of the snapshot, groups in a fixed order.
    streams: how many are read side by side. window_rows: rows, of all streams together, that are
    shuffled at once at the least.
    """

    group_rows: tuple[int, ...]
    seed: int
    streams: int
    window_rows: int

    @property
    def rows(self) -> int:
        """Count the rows of an epoch."""
        return sum(self.group_rows)

    def stream_rows(self, stream: int) -> int:
        """Equal for all streams, but for one row."""
        first, last = self._span(stream)
        return last - first

    def _span(self, stream: int) -> tuple[int, int]:
        return self.rows * stream // self.streams, self.rows * (stream + 1) // self.streams

    def batches(self, batch_size: int) -> int:
        """Global batches an epoch; the last may be smaller, none is dropped."""
        return -(-self.rows // batch_size)

    def pieces(self, stream: int) -> list[Piece]:
        """Return what a stream holds, the same in every epoch; each row of the split lies in one
        piece."""
        groups = _generator(self.seed, _DEAL, 0).permutation(len(self.group_rows))
        ends = np.cumsum(np.array(self.group_rows, np.int64)[groups])
        first, last = self._span(stream)
        found = []
        for at in range(int(np.searchsorted(ends, first, "right")), len(groups)):
            begin = int(ends[at]) - self.group_rows[groups[at]]
            if begin >= last:
                break
            start, stop = max(first, begin) - begin, min(last, int(ends[at])) - begin
            if start < stop:
                found.append(Piece(int(groups[at]), start, stop))
        return found

    def windows(self, stream: int, epoch: int) -> Iterator[Window]:
        """Yield a stream's epoch (from 0): its pieces in the epoch's order, rows shuffled in
        windows."""
        generator = _generator(self.seed, epoch + 1, stream)
        wanted = -(-self.window_rows // self.streams)
        pieces = self.pieces(stream)
        window: list[Piece] = []
        for index in generator.permutation(len(pieces)).tolist():
            window.append(pieces[index])
            rows = sum(piece.rows for piece in window)
            if rows >= wanted:
                yield Window(tuple(window), generator.permutation(rows))
                window = []
        if window:
            yield Window(tuple(window), generator.permutation(sum(p.rows for p in window)))

    def take(self, batch: int, batch_size: int, mine: slice) -> TakenRows:
        """Return what of a global batch comes from the streams [mine.start, mine.stop)."""
        first = batch * batch_size
        places = np.arange(first, min(first + batch_size, self.rows))
        depths, streams = np.divmod(places, self.streams)
        # The last round has a row of the longer streams only.
        rounds = self.rows // self.streams
        beyond = places - rounds * self.streams
        late = beyond >= 0
        if late.any():
            streams[late] = self._longer()[beyond[late]]
        own = (streams >= mine.start) & (streams < mine.stop)
        return TakenRows(places[own] - first, streams[own], depths[own])

    def depth(self, batch: int, batch_size: int, stream: int) -> int:
        """How many of a stream's rows come before a global batch."""
        place = min(batch * batch_size, self.rows)
        rounds = self.rows // self.streams
        beyond = place - rounds * self.streams
        if beyond > 0:
            return rounds + int(stream in self._longer()[:beyond])
        return place // self.streams + int(stream < place % self.streams)

    def _longer(self) -> np.ndarray:
        rounds = self.rows // self.streams
        return np.array([s for s in range(self.streams) if self.stream_rows(s) > rounds], np.int64)


def rank_share(count: int, rank: int, world_size: int) -> slice:
    """Return a rank's share of `count` things in a row: every one in exactly one share."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, stream])))
