"""The rows of one split of a pinned snapshot, row group by row group.

Needs numpy and pyarrow, not Ray.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.tables.shards import read_row_group, row_groups

READERS = 16


@dataclasses.dataclass(frozen=True)
class Group:
    """A row group of a shard, and how many of its rows are in the split."""

    uri: str
    index: int
    rows: int


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """uint8 (N, H, W, C) and the images' ids."""

    pixels_NHWC: np.ndarray
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __add__(self, other: ImageSet) -> ImageSet:
        pixels = np.concatenate([self.pixels_NHWC, other.pixels_NHWC])
        return ImageSet(pixels, self.image_ids + other.image_ids)

    def rows(self, start: int, stop: int) -> ImageSet:
        """Return the images of rows [start, stop)."""
        return ImageSet(self.pixels_NHWC[start:stop], self.image_ids[start:stop])


@dataclasses.dataclass(frozen=True)
class Split:
    """Groups are in the order of shard and row group."""

    name: str
    image_shape: tuple[int, int, int]
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def image_bytes(self) -> int:
        """Return the bytes of one image."""
        return int(np.prod(self.image_shape))

    def lying(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, H, W, C) of a whole row group, and which of its rows are in the split."""
        rows = read_row_group(group.uri, group.index, ["image", "split"])
        mine = pc.equal(rows["split"], self.name)  # type: ignore[attr-defined]
        return pixels_of(rows["image"], self.image_shape), np.flatnonzero(mine.to_numpy())

    def ids(self, group: Group) -> list[str]:
        """Read the ids of a row group's images."""
        return self._rows(group, ["image_id", "split"])["image_id"].to_pylist()

    def images(self, group: Group) -> ImageSet:
        """Read a row group's images."""
        rows = self._rows(group, ["image_id", "image", "split"])
        return ImageSet(pixels_of(rows["image"], self.image_shape), rows["image_id"].to_pylist())

    def _rows(self, group: Group, columns: Sequence[str]) -> pa.Table:
        rows = read_row_group(group.uri, group.index, columns)
        return rows.filter(pc.equal(rows["split"], self.name))  # type: ignore[attr-defined]

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[ImageSet]:
        """Yield a rank's images in batches of `size`, the last one of what is left.

        All ranks together have each image once.
        """
        pending = ImageSet(np.zeros((0, *self.image_shape), np.uint8), [])
        for group in self.groups[rank::world_size]:
            pending = pending + self.images(group)
            full = len(pending) - len(pending) % size
            yield from (pending.rows(start, start + size) for start in range(0, full, size))
            pending = pending.rows(full, len(pending))
        if len(pending):
            yield pending


class KeptSplit:
    """A split whose batches stay in memory once they are read."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._held: dict[tuple[int, int, int], list[ImageSet]] = {}

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[ImageSet]:
        """As the split's own."""
        key = (size, rank, world_size)
        if key not in self._held:
            self._held[key] = list(self._split.batches(*key))
        return iter(self._held[key])


def find_splits(shard_uris: Sequence[str], image_shape: tuple[int, int, int]) -> dict[str, Split]:
    """All splits of a snapshot by name, from one narrow column of its shards."""
    groups: dict[str, list[Group]] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for uri, counts in zip(shard_uris, pool.map(_counts, shard_uris), strict=True):
            for index, count in enumerate(counts):
                for name, rows in count.items():
                    groups.setdefault(name, []).append(Group(uri, index, rows))
    return {name: Split(name, image_shape, tuple(count)) for name, count in groups.items()}


def _counts(uri: str) -> list[Counter[str]]:
    found = []
    for rows in row_groups(uri, ["split"]):
        counts = rows["split"].value_counts().to_pylist()
        found.append(Counter({c["values"]: c["counts"] for c in counts}))
    return found


def pixels_of(column: pa.ChunkedArray | pa.Array, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Staged pixels as uint8 (N, H, W, C); no Python object per image."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = int(np.prod(image_shape))
    parts = []
    for chunk in chunks:
        fixed = chunk if pa.types.is_fixed_size_binary(chunk.type) else chunk.cast(pa.binary(size))
        data = np.frombuffer(fixed.buffers()[1], np.uint8)
        start = fixed.offset * size
        parts.append(data[start : start + len(fixed) * size].reshape(-1, *image_shape))
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, *image_shape), np.uint8)
