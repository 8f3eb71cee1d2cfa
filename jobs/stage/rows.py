"""The rows that a stage unit writes, growing: images as shards, sources and quarantine beside them.

Memory stays that of one shard of pixels, however many rows the unit reads.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.datasets.image_shards import ImageShardWriter
from jobs.engine.plan import JobContext
from jobs.errors import RejectedInput
from jobs.imaging.decode import Staged, decode
from jobs.imaging.phash import perceptual_hashes
from jobs.imaging.pixel_arrays import Pixels
from jobs.imaging.target import Target
from jobs.schemas.dataset import passthrough_of, split_of
from jobs.sources.base import WHOLE_FILE, FileRange, Image, SourceBatch
from jobs.stage.tables import StageTables
from jobs.tables.data_file import Output
from jobs.tables.delta import Table
from jobs.tables.image_ids import IdSet, digests
from jobs.tables.shards import write_shard

PIXEL_BYTES = 32 << 20  # staged at a time


class UnitRows:
    """Takes source rows in order; `close` writes what is left and returns all outputs."""

    def __init__(
        self, context: JobContext, tables: StageTables, known: IdSet, unit_id: str, name: str
    ) -> None:
        self.quarantine, self.sources, self.images = tables
        self.target = target_of(context.settings)
        self.known = known
        self.name = name
        self.stamp = {"night": context.night, "job_id": context.job_id, "unit_id": unit_id}
        self.rows_per_shard: int = context.settings["rows_per_shard"]
        self.passthrough = passthrough_of(self.images.spec.schema)
        self.seen: set[str] = set()
        self.counts: Counter[str] = Counter(files_in=0, rows_read=0)
        self.outputs: list[Output] = []
        self._sources: list[pa.Table] = []
        self._quarantine: list[dict[str, Any]] = []
        self._shard: ImageShardWriter | None = None

    def add(self, batch: SourceBatch, own: IdSet | None = None) -> None:
        """own: images that the file had in an earlier version, which are staged from it anew."""
        step = max(1, PIXEL_BYTES // math.prod(self.target.image_shape))
        for start in range(0, len(batch.images), step):
            self._add(batch.slice(start, start + step), own)

    def _add(self, batch: SourceBatch, own: IdSet | None) -> None:
        ids = [_image_id(image) for image in batch.images]
        known = self._known(ids, own)
        pixels = np.empty((len(ids), *self.target.image_shape), np.uint8)
        kept: list[int] = []
        staged: list[Staged] = []
        fates: list[str] = []
        for index, (image, image_id) in enumerate(zip(batch.images, ids, strict=True)):
            # By hash, before anything is decoded.
            if image_id is not None and (known[index] or image_id in self.seen):
                fates.append("duplicate")
                continue
            try:
                if isinstance(image, RejectedInput):
                    raise image
                result = decode(image, self.target)
            except RejectedInput as refusal:
                place = self._place(batch, index)
                self._refuse(place, refusal, _bytes(image), image_id)
                fates.append("refused")
                continue
            assert image_id is not None
            self.seen.add(image_id)
            pixels[len(kept)] = result.pixels_HWC
            kept.append(index)
            staged.append(result._replace(pixels_HWC=np.empty(0)))
            fates.append("staged")
        self._sources.append(self._source_rows(batch, ids, fates))
        self.counts.update(fates)
        self.counts["rows_read"] += len(ids)
        if kept:
            good = [image_id for i in kept if (image_id := ids[i]) is not None]
            self._stage(batch, kept, good, staged, pixels[: len(kept)])

    def _known(self, ids: list[str | None], own: IdSet | None) -> np.ndarray:
        wanted = digests([image_id or "0" * 64 for image_id in ids])
        known = self.known.has(wanted)
        return known & ~own.has(wanted) if own is not None else known

    def _place(self, batch: SourceBatch, index: int) -> dict[str, Any]:
        member = batch.members[index] if batch.members is not None else None
        return {
            "source_uri": batch.uris[index],
            "source_row": batch.rows[index],
            "source_member": member,
        }

    def _refuse(
        self,
        place: dict[str, Any],
        refusal: RejectedInput,
        data: bytes | None,
        image_id: str | None,
    ) -> None:
        self.counts[f"refused_{refusal.reason}"] += 1
        self._quarantine.append(
            {
                **place,
                "byte_length": len(data) if data is not None else None,
                "content_hash": image_id,
                "reason": refusal.reason,
                "message": refusal.message,
            }
        )

    def refuse_part(self, part: FileRange, refusal: RejectedInput) -> None:
        """Every row of a part that cannot be read; one for the file where its rows are unknown."""
        rows = [WHOLE_FILE] if part.stop is None else range(part.start, part.stop)
        self.counts["files_refused"] += part.start == 0
        places = [
            {"source_uri": part.uri, "source_row": row, "source_member": None} for row in rows
        ]
        for place in places:
            self._refuse(place, refusal, None, None)
        self.counts["refused"] += len(places)
        self.counts["rows_read"] += len(places)
        batch = SourceBatch.of(part, list(rows), [None] * len(rows), pa.table({}))
        fates = ["refused"] * len(places)
        self._sources.append(self._source_rows(batch, [None] * len(places), fates))

    def _source_rows(self, batch: SourceBatch, ids: list[str | None], fates: list[str]) -> pa.Table:
        count = len(ids)
        columns = {
            "source_uri": pa.array(batch.uris, pa.string()),
            "source_row": pa.array(batch.rows, pa.int64()),
            "source_member": pa.array(batch.members or [None] * count, pa.string()),
            "etag": pa.array(batch.etags, pa.string()),
            "image_id": pa.array(ids, pa.string()),
            "fate": pa.array(fates, pa.string()),
            "removed_night": pa.nulls(count, pa.string()),
        }
        return self._stamped(columns, count, self.sources)

    def _stamped(self, columns: dict[str, Any], count: int, table: Table) -> pa.Table:
        schema = table.spec.file_schema
        columns |= {key: pa.repeat(value, count) for key, value in self.stamp.items()}
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _stage(
        self,
        batch: SourceBatch,
        kept: list[int],
        ids: list[str],
        staged: list[Staged],
        pixels: np.ndarray,
    ) -> None:
        schema = self.images.spec.file_schema
        count = len(kept)
        kind = schema.field("image").type
        members = [batch.members[i] for i in kept] if batch.members else [None] * count
        columns: dict[str, Any] = {
            "image_id": pa.array(ids, pa.string()),
            "image": pa.Array.from_buffers(kind, count, [None, pa.py_buffer(pixels)]),
            "pixels_hash": [hashlib.sha256(image).hexdigest() for image in pixels],
            "source_uri": pa.array([batch.uris[i] for i in kept], pa.string()),
            "source_row": pa.array([batch.rows[i] for i in kept], pa.int64()),
            "source_member": pa.array(members, pa.string()),
            "source_format": [one.source_format for one in staged],
            "source_mode": [one.source_mode for one in staged],
            "source_width": pa.array([one.source_width for one in staged], pa.int32()),
            "source_height": pa.array([one.source_height for one in staged], pa.int32()),
            "phash": pa.array(perceptual_hashes(pixels)),
            "split": [split_of(image_id) for image_id in ids],
        }
        for field in self.passthrough:
            columns[field.name] = _brought(batch, field, kept)
        rows = self._stamped(columns, count, self.images)
        while rows.num_rows:
            if self._shard is None:
                taken = len(self.outputs)
                self._shard = ImageShardWriter(self.images, f"{self.name}-{taken:03d}")
            room = self.rows_per_shard - self._shard.rows
            self._shard.write(rows.slice(0, room))
            rows = rows.slice(room)
            if self._shard.rows >= self.rows_per_shard:
                self.outputs.append(self._shard.close())
                self._shard = None

    def close(self) -> list[Output]:
        """Write the rest; the images' shards come first in the list, in order."""
        if self._shard is not None:
            self.outputs.append(self._shard.close())
        for table, rows in (
            (self.sources, pa.concat_tables([self._empty(self.sources), *self._sources])),
            (self.quarantine, self._quarantine_rows()),
        ):
            if rows.num_rows:
                self.outputs.append(write_shard(table.uri, table.spec, rows, self.name))
        self.counts["rows_in"] = sum(rows.num_rows for rows in self._sources)
        self.counts["duplicates"] = self.counts.pop("duplicate", 0)
        self.counts.update(staged=0, refused=0)
        return self.outputs

    def _empty(self, table: Table) -> pa.Table:
        return table.spec.file_schema.empty_table()

    def _quarantine_rows(self) -> pa.Table:
        schema = self.quarantine.spec.file_schema
        return pa.Table.from_pylist(
            [{**row, **self.stamp} for row in self._quarantine], schema=schema
        )


def target_of(settings: dict[str, Any]) -> Target:
    """Return what staged pixels look like, from a plan's settings."""
    target = settings["target"]
    return Target(
        image_shape=tuple(target["image_shape"]),
        fit=target["fit"],
        background=tuple(target["background"]),
        max_pixels=target["max_pixels"],
        exact=target["exact"],
    )


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Text that is UTF-8: Parquet does not check, and readers stumble over what is not."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.binary()).to_pylist()
        return pa.array([v if v is None else v.decode("utf-8", "replace") for v in values])
    return column


def _image_id(image: Image) -> str | None:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    return image.image_id if isinstance(image, Pixels) else None


def _bytes(image: Image) -> bytes | None:
    return image if isinstance(image, bytes) else None


def _brought(batch: SourceBatch, field: pa.Field, kept: list[int]) -> Any:
    """Return a passthrough column; null where this file has none."""
    if field.name not in batch.passthrough.column_names:
        return pa.nulls(len(kept), field.type)
    column = batch.passthrough[field.name]
    if len(kept) < len(column):
        column = column.take(pa.array(kept, pa.int64()))
    if pa.types.is_string(field.type):
        column = _readable(column)
    # Delta keeps microseconds; finer times are cut.
    return pc.cast(column, field.type, safe=not pa.types.is_timestamp(field.type))
