"""What a training worker loads, and whether it is kept in memory: from settings and sizes."""

from __future__ import annotations

import torch

from jobs.datasets.splits import KeptSplit, Split
from jobs.errors import InputError
from jobs.train.data.loader import Loader, RankShare, Resident, Streamed
from jobs.train.data.sample_order import Order
from jobs.train.rank import Rank
from jobs.train.settings import TrainRun, TrainSettings

GIB = 1 << 30


def part_of(train: Split, settings: TrainSettings, rank: Rank) -> RankShare:
    """Return the rank's part of the train split. Raises InputError where batch or crop do not fit
    it."""
    if settings.fit == "gradient" and settings.batch_size > len(train):
        raise InputError(
            f"batch_size {settings.batch_size} is more than the {len(train)} images of the train "
            "split; lower it, or stage more images"
        )
    height, width, _ = train.image_shape
    if settings.crop >= min(height, width):
        raise InputError(f"crop {settings.crop} is too much for images of {height}x{width}")
    order = Order(
        group_rows=tuple(group.rows for group in train.groups),
        seed=settings.seed,
        streams=settings.streams,
        window_rows=settings.shuffle_rows,
    )
    return RankShare(train, order, settings.batch_size, rank.index, rank.world_size)


def loader_of(part: RankShare, run: TrainRun, device: torch.device) -> tuple[Loader, str]:
    """Resident where that fits the budget and nothing else is requested; and what was chosen."""
    fits = part.bytes <= run.memory_gib * GIB
    resident = run.data == "resident" or (run.data == "auto" and fits)
    shape = "x".join(map(str, part.split.image_shape))
    kept = "resident" if resident else "streamed"
    text = f"{part.order.rows:,} images of {shape}, {part.bytes / GIB:.2f} GiB a worker, {kept}"
    return Resident(part, device) if resident else Streamed(part), text


def validation_of(validation: Split, loader: Loader, run: TrainRun) -> Split | KeptSplit:
    """Kept in memory where the train split is, so that epochs need no lake that is there."""
    size = len(validation) * validation.image_bytes / loader.part.world_size
    fits = size <= run.memory_gib * GIB - loader.part.bytes
    return KeptSplit(validation) if isinstance(loader, Resident) and fits else validation
