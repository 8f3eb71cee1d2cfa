"""A sample of one split of a snapshot, by image id: the same as long as its images are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.lake.storage import join
from jobs.tables.delta import Snapshot
from jobs.tables.image_ids import digests
from jobs.tables.shards import ROW_GROUP_ROWS, read_span, with_all_columns

Piece = tuple[str, list[int]]  # path of a shard, rows of it in order


@dataclasses.dataclass(frozen=True)
class SplitSample:
    """pieces: by path. of: how many images the split has in all."""

    pieces: list[Piece]
    of: int

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.pieces)


def sample_of(images: Snapshot, split: str, most: int) -> SplitSample:
    """Return the images of a split whose ids come first, at most `most` of them.

    An id is a hash, so that they are as good as drawn; more images push few of them out.
    """
    paths: list[str] = []
    kept = np.zeros(0, [("high", "u8"), ("low", "u8"), ("path", "i8"), ("row", "i8")])
    total = 0
    for path, rows in images.read_each(["image_id", "split"]):
        mine = np.flatnonzero(pc.equal(rows["split"], split).to_numpy())  # type: ignore[attr-defined]
        ids = digests(rows["image_id"].take(mine))
        found = np.zeros(len(mine), kept.dtype)
        found["high"], found["low"] = ids["high"], ids["low"]
        found["path"], found["row"] = len(paths), mine
        paths.append(path)
        total += len(mine)
        kept = np.concatenate([kept, found])
        if len(kept) > 2 * most:
            kept = np.sort(kept)[:most]
    kept = np.sort(kept)[:most]
    pieces = []
    for number, path in enumerate(paths):
        chosen = np.sort(kept["row"][kept["path"] == number])
        if len(chosen):
            pieces.append((path, chosen.tolist()))
    return SplitSample(sorted(pieces), total)


def packed(pieces: Sequence[Piece], rows: int) -> list[list[Piece]]:
    """Return the pieces in groups of so many rows, the last one of what is left; each row in
    one."""
    groups: list[list[Piece]] = []
    room = 0
    for path, left in pieces:
        while left:
            if room == 0:
                groups.append([])
                room = rows
            taken, left = left[:room], left[room:]
            groups[-1].append((path, taken))
            room -= len(taken)
    return groups


def read_pieces(uri: str, pieces: Sequence[Piece], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the pieces' rows with the schema's columns, and their `shard` and `row`, a few at a
    time.

    uri: of the table.
    """
    for path, rows in pieces:
        numbers = np.array(rows)
        for window in np.unique(numbers // ROW_GROUP_ROWS):
            wanted = numbers[numbers // ROW_GROUP_ROWS == window]
            start, stop = int(wanted[0]), int(wanted[-1]) + 1
            found = read_span(join(uri, path), start, stop, schema.names).take(wanted - start)
            found = with_all_columns(found, schema)
            found = found.append_column("shard", pa.repeat(path, len(wanted)))
            yield found.append_column("row", pa.array(wanted, pa.int64()))
