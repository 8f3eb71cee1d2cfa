"""Shards written again with other rows."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from jobs.datasets.image_shards import ImageShardWriter
from jobs.lake.storage import join
from jobs.tables.data_file import Output
from jobs.tables.delta import Table
from jobs.tables.shards import ShardWriter, row_groups

Change = Callable[[pa.Table], pa.Table]


def rewritten(table: Table, path: str, name: str, change: Change) -> Output | None:
    """Write a file of the table anew, every row group changed; None if nothing is
    left."""
    writer = shard_writer(table, name)
    for rows in row_groups(join(table.uri, path)):
        writer.write(change(rows))
    return writer.close() if writer.rows else None


def shard_writer(table: Table, name: str) -> ShardWriter:
    """Make a writer of new files of a table, under a name."""
    if table.spec.name == "images":
        return ImageShardWriter(table, name)
    return ShardWriter(table.uri, table.spec, name)
