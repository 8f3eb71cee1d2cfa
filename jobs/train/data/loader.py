"""The training data: one rank's share of each global batch, resident or streamed.

Both give the same images in the same order (`jobs.train.data.sample_order`), from any batch of any
epoch on. Needs torch, numpy and pyarrow, not Ray.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jobs.datasets.splits import Split
from jobs.train.data.sample_order import Order, Piece, Window, rank_share

PREFETCH_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Share:
    """A rank's part of one global batch, maybe none of it.

    pixels: uint8 (n, H, W, C). positions: its places in the global batch; None for all of them.
    """

    pixels_NHWC: Tensor
    positions: Tensor | None
    global_count: int


class Loader(Protocol):
    """waited_s: how long shares were waited for, since the loader was made."""

    part: RankShare
    waited_s: float

    def shares(self, epoch: int, first_batch: int = 0) -> Iterator[Share]:
        """Return the rank's shares of an epoch (from 0) in step order, from a batch on."""
        ...


@dataclasses.dataclass(frozen=True)
class RankShare:
    """What one rank loads: the streams that are its own."""

    split: Split
    order: Order
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def streams(self) -> slice:
        """Return which of the epoch's streams are this rank's."""
        return rank_share(self.order.streams, self.rank, self.world_size)

    @property
    def stream_numbers(self) -> range:
        """Return the numbers of this rank's streams."""
        return range(self.streams.start, self.streams.stop)

    @property
    def rows(self) -> int:
        """Count the rows of an epoch that are this rank's."""
        return sum(self.order.stream_rows(stream) for stream in self.stream_numbers)

    @property
    def bytes(self) -> int:
        """Of pixels, should they be resident."""
        return self.rows * self.split.image_bytes

    @property
    def batches(self) -> int:
        """Count the batches of an epoch."""
        return self.order.batches(self.batch_size)

    def before(self, batch: int) -> int:
        """How many of the rank's rows come before a batch."""
        return sum(self.order.depth(batch, self.batch_size, s) for s in self.stream_numbers)

    def global_count(self, batch: int) -> int:
        """Count the images of a batch over all ranks."""
        return min(self.batch_size, self.order.rows - batch * self.batch_size)


def image_ids(part: RankShare, epoch: int, batch: int) -> list[str]:
    """Return the ids of a whole global batch, in its order, whoever has which of them."""
    taken = part.order.take(batch, part.batch_size, slice(0, part.order.streams))
    found: dict[int, str] = {}
    for stream in range(part.order.streams):
        mine = taken.streams == stream
        places, depths, first = taken.positions[mine], taken.depths[mine], 0
        for window in part.order.windows(stream, epoch):
            here = (depths >= first) & (depths < first + len(window.order))
            if here.any():
                laid = [i for piece in window.pieces for i in _piece_ids(part.split, piece)]
                rows = window.order[depths[here] - first]
                found |= {p: laid[r] for p, r in zip(places[here].tolist(), rows, strict=True)}
            first += len(window.order)
    return [found[place] for place in range(len(found))]


def _piece_ids(split: Split, piece: Piece) -> list[str]:
    return split.ids(split.groups[piece.group])[piece.start : piece.stop]


class Resident:
    """The rank's pixels in memory, of the machine or of a GPU, as uint8.

    A step costs an index; an epoch, one permutation.
    """

    def __init__(self, part: RankShare, device: torch.device | str = "cpu") -> None:
        self.part = part
        self.device = torch.device(device)
        self.waited_s = 0.0
        self._begins: dict[tuple[int, Piece], int] = {}
        self._pixels = torch.empty((part.rows, *part.split.image_shape), dtype=torch.uint8)
        self._fill()
        self._pixels = self._pixels.to(self.device)

    def _fill(self) -> None:
        at, wanted = 0, {}
        for stream in self.part.stream_numbers:
            for piece in self.part.order.pieces(stream):
                self._begins[stream, piece] = at
                wanted.setdefault(piece.group, []).append((at, piece))
                at += piece.rows
        for number, places in wanted.items():
            pixels, rows = self.part.split.lying(self.part.split.groups[number])
            for begin, piece in places:
                out = self._pixels[begin : begin + piece.rows].numpy()
                np.take(pixels, rows[piece.start : piece.stop], axis=0, out=out, mode="clip")

    def shares(self, epoch: int, first_batch: int = 0) -> Iterator[Share]:
        """Yield this rank's share of each batch of an epoch; see Loader."""
        part = self.part
        started = time.monotonic()
        sequence = self._sequence(epoch)
        self.waited_s += time.monotonic() - started
        at = part.before(first_batch)
        for batch in range(first_batch, part.batches):
            if part.world_size == 1:
                first = batch * part.batch_size
                rows, positions = sequence[first : first + part.batch_size], None
            else:
                taken = part.order.take(batch, part.batch_size, part.streams)
                rows = sequence[at : at + len(taken.positions)]
                at += len(rows)
                positions = torch.from_numpy(taken.positions)
            pixels = torch.index_select(self._pixels, 0, rows)
            yield Share(pixels, positions, part.global_count(batch))

    def _sequence(self, epoch: int) -> Tensor:
        """Where the rank's rows lie, in the order of the epoch, (rows,)."""
        order = self.part.order
        rounds = order.rows // order.streams
        columns, late = [], []
        for stream in self.part.stream_numbers:
            rows = np.concatenate([np.zeros(0, np.int64), *self._rows(stream, epoch)])
            columns.append(rows[:rounds])
            late.append(rows[rounds:])
        ordered = np.stack(columns, axis=1).ravel() if columns else np.zeros(0, np.int64)
        return torch.from_numpy(np.concatenate([ordered, *late])).to(self.device)

    def _rows(self, stream: int, epoch: int) -> Iterator[np.ndarray]:
        for window in self.part.order.windows(stream, epoch):
            places = [
                np.arange(begin, begin + piece.rows)
                for piece in window.pieces
                for begin in [self._begins[stream, piece]]
            ]
            yield np.concatenate(places)[window.order]


class Streamed:
    """The rank's pixels read as they are needed: of each stream one window, and the next one."""

    def __init__(self, part: RankShare) -> None:
        self.part = part
        self.waited_s = 0.0

    def shares(self, epoch: int, first_batch: int = 0) -> Iterator[Share]:
        """Yield this rank's share of each batch of an epoch; see Loader."""
        part = self.part
        with ThreadPoolExecutor(PREFETCH_THREADS, thread_name_prefix="prefetch") as pool:
            try:
                streams = [
                    _Stream(part, stream, epoch, first_batch, pool)
                    for stream in part.stream_numbers
                ]
                for batch in range(first_batch, part.batches):
                    started = time.monotonic()
                    share = self._share(batch, streams)
                    self.waited_s += time.monotonic() - started
                    yield share
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _share(self, batch: int, streams: list[_Stream]) -> Share:
        part = self.part
        taken = part.order.take(batch, part.batch_size, part.streams)
        pixels = np.empty((len(taken.positions), *part.split.image_shape), np.uint8)
        for stream, number in zip(streams, part.stream_numbers, strict=True):
            stream.fill(pixels, np.flatnonzero(taken.streams == number))
        positions = torch.from_numpy(taken.positions) if part.world_size > 1 else None
        return Share(torch.from_numpy(pixels), positions, part.global_count(batch))


class _Stream:
    """One stream's epoch from a batch on: a window at hand, the next one on its way."""

    def __init__(
        self, part: RankShare, stream: int, epoch: int, first_batch: int, pool: ThreadPoolExecutor
    ) -> None:
        self.split = part.split
        self.pool = pool
        self._windows = part.order.windows(stream, epoch)
        self._pixels = np.zeros((0, *part.split.image_shape), np.uint8)
        self._order = np.zeros(0, np.int64)
        self._at = 0
        self._skip = part.order.depth(first_batch, part.batch_size, stream)
        window = next(self._windows, None)
        while window is not None and len(window.order) <= self._skip:
            self._skip -= len(window.order)
            window = next(self._windows, None)
        self._coming = self._fetch(window)

    def _fetch(self, window: Window | None) -> Future[tuple[np.ndarray, np.ndarray]] | None:
        return self.pool.submit(self._load, window) if window is not None else None

    def _load(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        parts, rows, at = [], [], 0
        for piece in window.pieces:
            pixels, kept = self.split.lying(self.split.groups[piece.group])
            rows.append(kept[piece.start : piece.stop] + at)
            parts.append(pixels)
            at += len(pixels)
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # Rows of other splits stay among them: to leave them out would be a copy of all the rest.
        return pixels, np.concatenate(rows)[window.order]

    def fill(self, pixels: np.ndarray, places: np.ndarray) -> None:
        """Put the stream's next rows into some places of a batch."""
        done = 0
        while done < len(places):
            if self._at == len(self._order):
                self._next()
            rows = self._order[self._at : self._at + len(places) - done]
            pixels[places[done : done + len(rows)]] = self._pixels[rows]
            done += len(rows)
            self._at += len(rows)

    def _next(self) -> None:
        assert self._coming is not None, "an order gives no more rows than a stream has"
        self._at, self._skip = self._skip, 0
        self._pixels, self._order = self._coming.result()
        self._coming = self._fetch(next(self._windows, None))
