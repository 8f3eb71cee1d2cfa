"""What a stage unit does: read, hash, decode, write; or write an earlier unit's outputs again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.corrections import correction_details, is_correction
from jobs.errors import InputError
from jobs.images import Refused, decode
from jobs.lake import Lake
from jobs.schema import passthrough_of, split_of
from jobs.shards import read_shard, write_shard
from jobs.sources import SourceBatch, current_etag, read_rows
from jobs.stage import stage_tables
from jobs.storage import join
from jobs.tables import Table
from jobs.units import Completion, JobContext, Output, Unit


class StageWorker:
    """One a worker process; knows the images that were published when the plan was made."""

    def __init__(self, lake: Lake, context: JobContext) -> None:
        self.context = context
        tables = stage_tables(lake, context.settings["dataset"], context.settings)
        self.quarantine, self.sources, self.images = tables
        self.image_shape: tuple[int, int, int] = tuple(context.settings["image_shape"])
        self.known = _published_ids(self.images, context.base["images"])

    def execute(self, unit: Unit, attempt: str) -> Completion:
        started = time.monotonic()
        if is_correction(unit):
            rows, details = self._corrected(unit)
        else:
            rows = _Rows(self, unit.unit_id)
            details = {"files": [[r["uri"], r["etag"]] for r in unit.inputs["ranges"]]}
            for source_range in unit.inputs["ranges"]:
                self._read(source_range, rows)
            rows = rows.tables()
        outputs = self._write(rows, f"{unit.unit_id}-{attempt}")
        return Completion(
            unit_id=unit.unit_id,
            attempt=attempt,
            outputs=outputs,
            counts=_counts(rows),
            seconds=time.monotonic() - started,
            details=details,
        )

    def _read(self, source_range: dict[str, Any], rows: _Rows) -> None:
        uri, etag = source_range["uri"], source_range["etag"]
        passthrough = [name for name, _ in self.context.settings["passthrough"]]
        for batch in read_rows(
            uri,
            source_range["start"],
            source_range["stop"],
            source_range["image_column"],
            passthrough,
        ):
            rows.add(uri, etag, batch)
        if current_etag(uri) != etag:
            raise InputError(f"{uri} was replaced while it was read; run stage again")

    def _write(self, rows: dict[str, pa.Table], name: str) -> list[Output]:
        outputs = []
        for table in (self.quarantine, self.sources, self.images):
            batch = rows[table.spec.name]
            if batch.num_rows:
                shape = {"latentlake.shape": str(list(self.image_shape))}
                metadata = shape if table is self.images else None
                outputs.append(write_shard(table.uri, table.spec, batch, name, metadata=metadata))
        return outputs

    def _corrected(self, unit: Unit) -> tuple[dict[str, pa.Table], dict[str, Any]]:
        """An earlier unit's rows, less what is held elsewhere."""
        inputs = unit.inputs
        published = {tuple(pair) for pair in inputs["published"]}
        rows: dict[str, pa.Table] = {}
        gone: set[tuple[str, int]] = set()
        for table in (self.sources, self.quarantine, self.images):
            path = inputs["outputs"].get(table.spec.name)
            if path is None:
                rows[table.spec.name] = table.spec.file_schema.empty_table()
                continue
            batch = read_shard(join(table.uri, path))
            if table is self.sources:
                batch, gone = _without_published(batch, published)
                batch = _as_duplicates(batch, inputs["lost"])
            else:
                batch = _without_rows(batch, gone)
                if table is self.images:
                    lost = pa.array(inputs["lost"], pa.string())
                    batch = batch.filter(pc.invert(pc.is_in(batch["image_id"], lost)))  # type: ignore[attr-defined]
            rows[table.spec.name] = batch
        pairs = rows["sources"].group_by(["source_uri", "etag"]).aggregate([])
        files = [[row["source_uri"], row["etag"]] for row in pairs.to_pylist()]
        return rows, {**correction_details(unit), "files": files}


def _published_ids(images: Table, version: int) -> frozenset[str]:
    if version < 0:
        return frozenset()
    snapshot = images.snapshot(version)
    held = snapshot.read(["image_id"]) if snapshot is not None else None
    return frozenset(held["image_id"].to_pylist()) if held is not None else frozenset()


def _without_published(
    sources: pa.Table, published: set[tuple[str, str]]
) -> tuple[pa.Table, set[tuple[str, int]]]:
    """Sources rows of files that no other job has published, and the (uri, row) of the rest."""
    uris, etags = sources["source_uri"].to_pylist(), sources["etag"].to_pylist()
    keep = [pair not in published for pair in zip(uris, etags, strict=True)]
    numbers = sources["source_row"].to_pylist()
    gone = {(u, r) for u, r, kept in zip(uris, numbers, keep, strict=True) if not kept}
    return sources.filter(pa.array(keep, pa.bool_())), gone


def _without_rows(batch: pa.Table, gone: set[tuple[str, int]]) -> pa.Table:
    pairs = zip(batch["source_uri"].to_pylist(), batch["source_row"].to_pylist(), strict=True)
    return batch.filter(pa.array([pair not in gone for pair in pairs], pa.bool_()))


def _as_duplicates(sources: pa.Table, lost: list[str]) -> pa.Table:
    """The rows that staged a lost image turn into duplicates."""
    staged = pc.equal(sources["fate"], "staged")  # type: ignore[attr-defined]
    held = pc.is_in(sources["image_id"], pa.array(lost, pa.string()))  # type: ignore[attr-defined]
    fate = pc.if_else(pc.and_(staged, held), "duplicate", sources["fate"])  # type: ignore[attr-defined]
    return sources.set_column(sources.schema.get_field_index("fate"), "fate", fate)


def _counts(rows: dict[str, pa.Table]) -> dict[str, int]:
    fates = Counter(rows["sources"]["fate"].to_pylist())
    reasons = Counter(rows["quarantine"]["reason"].to_pylist())
    return {
        "rows_in": rows["sources"].num_rows,
        "staged": rows["images"].num_rows,
        "refused": rows["quarantine"].num_rows,
        "duplicates": fates["duplicate"],
        **{f"refused_{reason}": count for reason, count in reasons.items()},
    }


class _Rows:
    """The rows of one unit, growing."""

    def __init__(self, worker: StageWorker, unit_id: str) -> None:
        self.worker = worker
        self.unit_id = unit_id
        self.seen: set[str] = set()
        self.images: list[dict[str, Any]] = []
        self.pixels: list[np.ndarray] = []
        self.passthrough: list[pa.Table] = []
        self.sources: list[dict[str, Any]] = []
        self.quarantine: list[dict[str, Any]] = []

    def add(self, uri: str, etag: str, batch: SourceBatch) -> None:
        kept = []
        for offset, data in enumerate(batch.data):
            place = {"source_uri": uri, "source_row": batch.start + offset}
            image_id = hashlib.sha256(data).hexdigest() if data is not None else None
            fate = self._take(place, image_id, data)
            if fate == "staged":
                kept.append(offset)
            self.sources.append({**place, "etag": etag, "image_id": image_id, "fate": fate})
        self.passthrough.append(self._passthrough(batch).take(pa.array(kept, pa.int64())))

    def _passthrough(self, batch: SourceBatch) -> pa.Table:
        """The declared columns; one that this file does not have is null."""
        schema = passthrough_of(self.worker.images.spec.schema)
        columns = [
            # Delta keeps microseconds; finer times are cut.
            batch.passthrough[field.name].cast(
                field.type, safe=not pa.types.is_timestamp(field.type)
            )
            if field.name in batch.passthrough.column_names
            else pa.nulls(len(batch.data), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    def _take(self, place: dict[str, Any], image_id: str | None, data: bytes | None) -> str:
        # By hash, before anything is decoded.
        if image_id is not None and (image_id in self.seen or image_id in self.worker.known):
            return "duplicate"
        try:
            staged = decode(data, self.worker.image_shape)
        except Refused as refusal:
            self.quarantine.append(
                {
                    **place,
                    "byte_length": len(data) if data is not None else None,
                    "content_hash": image_id,
                    "reason": refusal.reason,
                    "message": refusal.message,
                }
            )
            return "refused"
        assert image_id is not None
        self.seen.add(image_id)
        self.pixels.append(staged.pixels_HWC)
        self.images.append(
            {
                **place,
                "image_id": image_id,
                "pixels_hash": hashlib.sha256(staged.pixels_HWC.tobytes()).hexdigest(),
                "source_width": staged.source_width,
                "source_height": staged.source_height,
                "split": split_of(image_id),
            }
        )
        return "staged"

    def tables(self) -> dict[str, pa.Table]:
        stamp = {
            "night": self.worker.context.night,
            "job_id": self.worker.context.job_id,
            "unit_id": self.unit_id,
        }
        return {
            "images": self._images(stamp),
            "sources": _table(self.worker.sources, self.sources, {**stamp, "removed_night": None}),
            "quarantine": _table(self.worker.quarantine, self.quarantine, stamp),
        }

    def _images(self, stamp: dict[str, Any]) -> pa.Table:
        schema = self.worker.images.spec.file_schema
        own = pa.Table.from_pylist([{**row, **stamp} for row in self.images], schema=schema)
        pixels = np.stack(self.pixels) if self.pixels else np.zeros(0, np.uint8)
        kind = schema.field("image").type
        image = pa.Array.from_buffers(kind, len(self.images), [None, pa.py_buffer(pixels)])
        own = own.set_column(schema.get_field_index("image"), schema.field("image"), image)
        if self.passthrough and self.passthrough[0].num_columns:
            brought = pa.concat_tables(self.passthrough)
            for name in brought.column_names:
                own = own.set_column(
                    schema.get_field_index(name), schema.field(name), brought[name]
                )
        return own


def _table(table: Table, rows: list[dict[str, Any]], stamp: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{**row, **stamp} for row in rows], schema=table.spec.file_schema)
