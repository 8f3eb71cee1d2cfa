"""Shards of the images table: they carry what the dataset card tells of their rows."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from jobs.datasets.splits import pixels_of
from jobs.schemas.dataset import image_shape_of
from jobs.tables.data_file import Output
from jobs.tables.delta import Table
from jobs.tables.shards import ShardWriter

STATISTICS = "latentlake.statistics"
MAX_LABELS = 1000  # distinct ones in a histogram; a column with more is no class label
# At most 256, since 256 · 255² < 2²⁴: sums of squares that float32 holds exactly. Fewer, so that a
# block stays in the cache.
BLOCK_VALUES, EXACT_IMAGES = 1 << 18, 256


@dataclasses.dataclass
class ImageStatistics:
    """Sums and counts over images; merging those of two shards gives those of both.

    sums, squares: of pixel values, by channel. sizes: by width and height before resizing, rounded
    down to a power of two. labels: None where there are too many.
    """

    rows: int = 0
    pixels: int = 0
    sums: list[int] = dataclasses.field(default_factory=list)
    squares: list[int] = dataclasses.field(default_factory=list)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    modes: Counter[str] = dataclasses.field(default_factory=Counter)
    splits: Counter[str] = dataclasses.field(default_factory=Counter)
    sizes: Counter[str] = dataclasses.field(default_factory=Counter)
    widths: list[int] = dataclasses.field(default_factory=list)  # least and greatest
    heights: list[int] = dataclasses.field(default_factory=list)
    labels: Counter[str] | None = dataclasses.field(default_factory=Counter)

    def add(self, rows: pa.Table, image_shape: tuple[int, int, int]) -> None:
        """rows: of an images table."""
        if not rows.num_rows:
            return
        channels = image_shape[2]
        sums, squares = _moments(pixels_of(rows["image"], image_shape), channels)
        self.rows += rows.num_rows
        self.pixels += rows.num_rows * image_shape[0] * image_shape[1]
        self.sums = _added(self.sums, sums)
        self.squares = _added(self.squares, squares)
        for totals, name in (
            (self.formats, "source_format"),
            (self.modes, "source_mode"),
            (self.splits, "split"),
        ):
            totals.update(counted(rows[name]))
        width, height = (rows[f"source_{side}"].to_numpy() for side in ("width", "height"))
        self.widths = _ends(self.widths, [int(width.min()), int(width.max())])
        self.heights = _ends(self.heights, [int(height.min()), int(height.max())])
        powers = np.stack([np.floor(np.log2(width)), np.floor(np.log2(height))], 1).astype(int)
        kinds, counts = np.unique(powers, axis=0, return_counts=True)
        for (w, h), count in zip(kinds.tolist(), counts.tolist(), strict=True):
            self.sizes[f"{2**w}x{2**h}"] += count
        self._add_labels(rows)

    def _add_labels(self, rows: pa.Table) -> None:
        if self.labels is None or "label" not in rows.column_names:
            return
        self.labels.update(counted(rows["label"]))
        if len(self.labels) > MAX_LABELS:
            self.labels = None

    def merge(self, other: ImageStatistics) -> None:
        """Add the statistics of other images."""
        if not other.rows:
            return
        self.rows += other.rows
        self.pixels += other.pixels
        self.sums = _added(self.sums, other.sums)
        self.squares = _added(self.squares, other.squares)
        for name in ("formats", "modes", "splits", "sizes"):
            getattr(self, name).update(getattr(other, name))
        self.widths = _ends(self.widths, other.widths)
        self.heights = _ends(self.heights, other.heights)
        if self.labels is None or other.labels is None:
            self.labels = None
        else:
            self.labels.update(other.labels)

    @property
    def mean(self) -> list[float]:
        """Of pixel values 0 to 255, by channel."""
        return [total / self.pixels for total in self.sums]

    @property
    def variance(self) -> list[float]:
        """Return the variance of each channel."""
        return [
            (square - total * total / self.pixels) / self.pixels
            for total, square in zip(self.sums, self.squares, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ImageStatistics:
        """Read what `to_json` gave."""
        values: dict[str, Any] = {
            k: Counter(v) if isinstance(v, dict) else v for k, v in raw.items()
        }
        return cls(**values)


def _moments(pixels_NHWC: np.ndarray, channels: int) -> tuple[list[int], list[int]]:
    flat = pixels_NHWC.reshape(len(pixels_NHWC), -1)
    sums = np.zeros(flat.shape[1])
    squares = np.zeros(flat.shape[1])
    step = max(1, min(EXACT_IMAGES, BLOCK_VALUES // flat.shape[1]))
    for start in range(0, len(flat), step):
        block = flat[start : start + step].astype(np.float32)
        ones = np.ones(len(block), np.float32)
        sums += ones @ block
        squares += ones @ np.square(block, out=block)
    by_channel = [v.reshape(-1, channels).sum(0).astype(int).tolist() for v in (sums, squares)]
    return by_channel[0], by_channel[1]


def counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value is there, by its text."""
    found = column.value_counts().to_pylist()
    return {"null" if f["values"] is None else str(f["values"]): f["counts"] for f in found}


def _added(sums: list[int], more: list[int]) -> list[int]:
    return [a + b for a, b in zip(sums, more, strict=True)] if sums else list(more)


def _ends(bounds: list[int], more: list[int]) -> list[int]:
    return [min(bounds[0], more[0]), max(bounds[1], more[1])] if bounds else list(more)


class ImageShardWriter(ShardWriter):
    """A shard of an images table, with its statistics in its footer."""

    def __init__(self, table: Table, name: str) -> None:
        self.image_shape = image_shape_of(table.spec.schema)
        super().__init__(
            table.uri, table.spec, name, metadata={"latentlake.shape": str(list(self.image_shape))}
        )
        self.statistics = ImageStatistics()

    def _encode(self, rows: pa.Table) -> None:
        self.statistics.add(rows, self.image_shape)
        super()._encode(rows)

    @override
    def close(self) -> Output:
        self._flush()  # the statistics are those of all rows
        self.metadata[STATISTICS] = json.dumps(self.statistics.to_json())
        return super().close()
