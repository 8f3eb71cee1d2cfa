"""The training data: a split of one pinned snapshot, in an order that belongs to no worker.

Needs torch, numpy and pyarrow, not Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.shards import read_shard


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of a snapshot, resident: uint8 (N, H, W, C) and their ids, sorted by id."""

    pixels_NHWC: np.ndarray
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)


def pixels_of(column: pa.ChunkedArray | pa.Array, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Staged pixels as uint8 (N, H, W, C); one copy, no Python object per image."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = int(np.prod(image_shape))
    parts = []
    for chunk in chunks:
        fixed = chunk if pa.types.is_fixed_size_binary(chunk.type) else chunk.cast(pa.binary(size))
        data = np.frombuffer(fixed.buffers()[1], np.uint8)
        start = fixed.offset * size
        parts.append(data[start : start + len(fixed) * size].reshape(-1, *image_shape))
    return np.concatenate(parts) if parts else np.zeros((0, *image_shape), np.uint8)


def load_split(
    shard_uris: Sequence[str], split: str, image_shape: tuple[int, int, int]
) -> ImageSet:
    """All images of a split. Sorted by id, so that the order of shards is of no account."""
    pixels, ids = [], []
    for uri in shard_uris:
        rows = read_shard(uri, ["image_id", "image", "split"])
        rows = rows.filter(pc.equal(rows["split"], split))  # type: ignore[attr-defined]
        pixels.append(pixels_of(rows["image"], image_shape))
        ids += rows["image_id"].to_pylist()
    order = np.argsort(np.array(ids, dtype="U64"), kind="stable")
    stacked = np.concatenate(pixels) if pixels else np.zeros((0, *image_shape), np.uint8)
    return ImageSet(stacked[order], [ids[i] for i in order])


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The global sample order of an epoch: a permutation, the same for any number of workers."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(rows)


def batches(rows: int, batch_size: int) -> int:
    """Global batches an epoch; the last may be smaller, none is dropped."""
    return -(-rows // batch_size)


def rank_share(count: int, rank: int, world_size: int) -> slice:
    """A rank's positions in a global batch of `count`: every position in exactly one share."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


@dataclasses.dataclass(frozen=True)
class Share:
    """A rank's part of one global batch. positions: its slice of the global batch."""

    pixels_NHWC: np.ndarray
    positions: slice
    global_count: int


def epoch_shares(
    images: ImageSet, *, batch_size: int, seed: int, epoch: int, rank: int, world_size: int
) -> Iterator[Share]:
    """One rank's shares of an epoch, in step order; a share may be empty."""
    order = epoch_order(len(images), seed=seed, epoch=epoch)
    for batch in range(batches(len(images), batch_size)):
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        positions = rank_share(len(rows), rank, world_size)
        yield Share(images.pixels_NHWC[rows[positions]], positions, len(rows))
